"""The sites of a graph that can lose units: heads of attentions, neurons of FFNs.

A site is a region of the graph (`lanes`) with one product at its end, which reads all units. What
it loses can be made good there: its matrix is fitted anew.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import constant, is_op, known_shape, module_of, only_user
from tfc.optimizers.simplification.lanes import (
    CannotCut,
    Lane,
    Region,
    attention_seeds,
    rank_of,
    spread,
    weight_of,
)

HEADS, NEURONS = "heads", "neurons"
_TOKEN_RANK = 3  # [batch, sequence, channels]; a pooled vector has no sequence
_GEMM_BIAS = 2  # input of Gemm
_LEAST = 2  # a single neuron is no layer


@dataclass(frozen=True)
class Site:
    """Units that can be taken out, and what they cost.

    Attributes:
        name: of the node of the product that reads them.
        module: the path of its module; empty where that is not told.
        kind: `heads` (with grouped queries, of keys and values) or `neurons`.
        units: how many there are.
        region: the values and nodes that they run through.
        reads: the unit of each row of the reader's matrix.
        weights: the elements of matrices that belong to one unit.
        scores: channels of Q and V that a unit's queries and values have together, by which
            attention is counted.
        removable: whether all units may go, which leaves a constant.
    """

    name: str
    module: str
    kind: str
    units: int
    region: Region
    reads: tuple[int, ...]
    weights: int
    scores: int
    removable: bool

    @property
    def reader(self) -> ir.Node:
        """The product that reads the units."""
        return self.region.readers[0]

    @property
    def layer(self) -> int | None:
        """The number of the layer, as the module's path tells it."""
        found = re.search(r"\.(\d+)(\.|$)", self.module)
        return int(found[1]) if found else None

    def flops(self, sequence: int) -> int:
        """Operations of one unit for one token, in texts of so many tokens."""
        return 2 * self.weights + 2 * self.scores * sequence


@dataclass(frozen=True)
class LeftAlone:
    """A site that cannot lose units, and why."""

    module: str
    kind: str
    reason: str


def sites_of(model: ir.Model) -> tuple[list[Site], list[LeftAlone]]:
    """The sites of a graph with `Attention`s, in its order; and what only looks like one."""
    sites: list[Site] = []
    left: list[LeftAlone] = []
    for node in list(model.graph):
        try:
            if is_op(node, "Attention"):
                sites.append(_site(spread(attention_seeds(node)), HEADS, node))
            elif _may_be_ffn(node):
                sites.append(_site(spread(_ffn_seed(node)), NEURONS, None))
        except CannotCut as error:
            if is_op(node, "Attention"):
                left.append(LeftAlone(module_of(node) or str(node.name), HEADS, str(error)))
    counted = Counter(site.name for site in sites)
    return [site for site in sites if counted[site.name] == 1], left


def _may_be_ffn(node: ir.Node) -> bool:
    """A product of token vectors with a matrix, other than a head over the vocabulary."""
    weight, given = weight_of(node), node.inputs[0] if node.inputs else None
    if weight is None or given is None or given.shape is None:
        return False
    return rank_of(given) == _TOKEN_RANK and len(weight) >= _LEAST


def _ffn_seed(node: ir.Node) -> dict[ir.Value, Lane]:
    weight, given = weight_of(node), node.inputs[0]
    assert weight is not None
    assert given is not None
    return {given: Lane(_TOKEN_RANK - 1, tuple(range(len(weight))))}


def _site(region: Region, kind: str, attention: ir.Node | None) -> Site:
    if len(region.readers) != 1:
        raise CannotCut(f"{len(region.readers)} products read its units")
    if not region.makers:
        raise CannotCut("no product makes its units")
    reader = region.readers[0]
    given = reader.inputs[0]
    assert given is not None
    reads = region.lanes[given].units
    units = len(set(reads))
    matrices = [weight_of(node) for node in [*region.makers, reader]]
    size = sum(matrix.size for matrix in matrices if matrix is not None)
    scores = 0
    if attention is not None:
        query, value = (known_shape(each) for each in (attention.inputs[0], attention.inputs[2]))
        assert query is not None
        assert value is not None
        widths = [shape[-1] for shape in (query, value)]
        scores = sum(width for width in widths if isinstance(width, int)) * int(query[1]) // units
    return Site(
        str(reader.name),
        module_of(reader),
        kind,
        units,
        region,
        reads,
        size // units,
        scores,
        _only_added(output_of(reader)),
    )


def bias_of(reader: ir.Node) -> ir.Node | None:
    """The node that adds a constant vector to what a product gives: an Add, or the Gemm itself."""
    if is_op(reader, "Gemm"):
        given = reader.inputs[_GEMM_BIAS] if len(reader.inputs) > _GEMM_BIAS else None
        return reader if given is not None and _is_vector(given) else None
    user = only_user(reader.outputs[0])
    if not is_op(user, "Add"):
        return None
    assert user is not None
    return user if any(_is_vector(given) for given in user.inputs) else None


def bias_input(node: ir.Node) -> int:
    """Which input of the node that `bias_of` gives is the vector."""
    if is_op(node, "Gemm"):
        return _GEMM_BIAS
    return next(place for place, given in enumerate(node.inputs) if _is_vector(given))


def output_of(reader: ir.Node) -> ir.Value:
    """What a product gives, with its bias."""
    return (bias_of(reader) or reader).outputs[0]


def _is_vector(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.ndim == 1


def _only_added(value: ir.Value) -> bool:
    """Whether the value is only ever added to others of its shape, as on a residual stream."""
    users = [use.node for use in value.uses()]
    if value.is_graph_output() or not users:
        return False
    return all(
        is_op(user, "Add")
        and all(known_shape(each) == known_shape(value) for each in user.inputs)
        and all(each is not None and constant(each) is None for each in user.inputs)
        for user in users
    )
