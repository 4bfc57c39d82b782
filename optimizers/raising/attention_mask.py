"""The attention mask's sub-graph → what it means.

Exporters write the mask as some twenty nodes (ranges, comparisons, `GatherND`, `Expand`, …),
each release differently. What they compute is almost always one thing: key j of row i may be
seen if `attention_mask[i, j]` is not 0. So this pass does not match nodes. It cuts the sub-graph
out, evaluates it on masks of every kind (all masks of a short row, and random ones with padding
left, right and in holes at several lengths, among them lengths beyond every integer constant in
the sub-graph, where a sliding window would show), and compares with that meaning.

Before::

    Attention(q, k, v, <twenty nodes>(attention_mask))

After::

    keep = Unsqueeze(Cast(attention_mask, BOOL), [1, 2])      # [batch, 1, 1, sequence]
    Attention(q, k, v, keep)

Fires when, on every probe, the mask is true (or 0.0) exactly where the key may be seen and false
(or at most -1e4) elsewhere, whatever the other inputs hold. A causal mask, a window or a position
bias differs on some probe and is left as it is.

Safe because a boolean mask and an additive one that vanishes give the same softmax in every row
that has at least one key to see; a row without any has no meaning in either form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tfc.errors import first_line
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.graph import (
    add_constant,
    ancestors,
    constant,
    known_shape,
    nodes_of,
    set_type,
)
from tfc.optimizers.passes import PassResult, Refusal, refusal

KIND = "attention_mask"
_MASK = 3
# exp(-1e4) is 0 in fp32.
_VANISHES = -1e4
# Mask sub-graphs have tens of nodes; a value that depends on hundreds is not one.
_MAX_NODES = 200
# Integer constants up to this size may be windows or block sizes; larger ones are limits.
_MAX_WINDOW = 2048
_HEAVY = frozenset({"MatMul", "Gemm", "Attention", "LayerNormalization", "Softmax", "Conv"})


@dataclass(frozen=True)
class ReduceAttentionMask:
    """The pass; see the module's docstring.

    `mask_input` is the graph input that it looks for. A graph of several models with a tokenizer
    each has others beside it, numbered: `attention_mask_2`.
    """

    mask_input: str = "attention_mask"
    name: str = "reduce attention mask"

    def apply(self, model: ir.Model) -> PassResult:
        """Give every `Attention` whose mask means "ignore padding" the short form of it."""
        sources = self._sources(model)
        if not sources:
            return PassResult(0)
        verdicts: dict[ir.Value, tuple[ir.Value, str]] = {}
        changed, refusals = 0, []
        short: dict[ir.Value, ir.Value] = {}
        for node in nodes_of(model, "Attention"):
            mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
            if mask is None or mask in short.values():
                continue
            if mask not in verdicts:
                source = _source_of(mask, sources)
                verdicts[mask] = source, _why_not_key_padding(model, mask, source)
            source, reason = verdicts[mask]
            if reason:
                refusals.append(refusal(KIND, node, reason))
                continue
            if source not in short:
                short[source] = _key_padding(model, source)
            node.replace_input_with(_MASK, short[source])
            changed += 1
        if changed:
            RemoveUnusedNodesPass()(model)
        return PassResult(changed, tuple(_once_each(refusals)))

    def _sources(self, model: ir.Model) -> list[ir.Value]:
        named = re.compile(rf"{re.escape(self.mask_input)}(_\d+)?")
        return [
            value
            for value in model.graph.inputs
            if named.fullmatch(str(value.name)) and len(known_shape(value) or ()) == 2
        ]


def _source_of(mask: ir.Value, sources: list[ir.Value]) -> ir.Value:
    """The first of the masks of tokens that the attention mask is computed from, if any."""
    read = {value for node in ancestors(mask) for value in node.inputs}
    return next((source for source in sources if source in read), sources[0])


def _why_not_key_padding(model: ir.Model, mask: ir.Value, source: ir.Value) -> str:
    """Empty if the mask means "ignore padding"; otherwise the reason why not."""
    if mask.producer() is None:
        return "the mask is a constant, or an input of the graph"
    nodes = ancestors(mask)
    if len(nodes) > _MAX_NODES or any(node.op_type in _HEAVY for node in nodes):
        return "the mask is computed from more than masks and shapes"
    graph = _cut_out(model, mask)
    for number, feed in enumerate(_probes(graph, nodes, str(source.name))):
        try:
            (outputs,) = outputs_of(graph, [feed])
        except Exception as error:  # ONNX Runtime's errors have no common root
            return f"its sub-graph does not run on masks alone: {first_line(error)}"
        (got,) = outputs.values()
        reason = _mismatch(got, feed[str(source.name)])
        if reason:
            batch, keys = feed[str(source.name)].shape
            return f"{reason} (probe {number}, {batch} rows of {keys} keys)"
    return ""


def _cut_out(model: ir.Model, mask: ir.Value) -> ir.Model:
    """A model that computes the mask alone, from the same inputs."""
    copy = model.clone()
    twin = next(v for n in copy.graph for v in n.outputs if v.name == mask.name)
    copy.graph.outputs.clear()
    copy.graph.outputs.append(twin)
    RemoveUnusedNodesPass()(copy)
    for value in [v for v in copy.graph.inputs if not v.uses()]:
        copy.graph.inputs.remove(value)
    return copy


def _probes(
    graph: ir.Model, nodes: list[ir.Node], source: str
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    rng = np.random.default_rng(0)
    every = (np.arange(1, 8)[:, None] >> np.arange(3)) & 1
    masks = [np.ones((1, 1), np.int64), every]
    lengths = [7, 33, *(c + 5 for c in _constants(nodes) if 8 <= c <= _MAX_WINDOW)]
    for length in sorted(set(lengths)):
        random = rng.integers(0, 2, (3, length))
        random[:, rng.integers(0, length)] = 1
        right = (np.arange(length) < max(1, length // 2)).astype(np.int64)
        masks.append(np.concatenate([random, right[None], right[None, ::-1]]))
    for mask in masks:
        others = {
            str(v.name): _random_input(v, mask.shape, rng)
            for v in graph.graph.inputs
            if v.name != source
        }
        yield {**others, source: np.ascontiguousarray(mask, np.int64)}


def _random_input(
    value: ir.Value, sizes: tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Zeros and ones; `sizes` are those of the two dynamic axes, batch and sequence."""
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.int64)
    shape = known_shape(value) or sizes
    concrete = [d if isinstance(d, int) else sizes[min(i, 1)] for i, d in enumerate(shape)]
    return np.ascontiguousarray(rng.integers(0, 2, concrete).astype(dtype))


def _constants(nodes: list[ir.Node]) -> set[int]:
    """The integers that the sub-graph compares or slices with."""
    found: set[int] = set()
    for node in nodes:
        for value in node.inputs:
            array = constant(value)
            if array is not None and array.dtype.kind == "i" and array.size <= 8:
                found |= {abs(int(n)) for n in array.reshape(-1)}
    return found


def _mismatch(got: npt.NDArray[Any], mask: npt.NDArray[Any]) -> str:
    rows, keys = mask.shape
    if got.ndim != 4 or got.shape[3] != keys or got.shape[0] not in (1, rows):
        return f"the mask has shape {got.shape}"
    if got.dtype == np.bool_:
        seen, hidden = got, ~got
    else:
        seen, hidden = got == 0, got <= _VANISHES
    wanted = np.broadcast_to(mask.astype(bool)[:, None, None, :], (rows, *got.shape[1:]))
    if not np.array_equal(np.broadcast_to(seen, wanted.shape), wanted):
        return "the mask is not the padding mask"
    if not np.array_equal(np.broadcast_to(hidden, wanted.shape), ~wanted):
        return "the mask's values for hidden keys do not vanish in the softmax"
    return ""


def _key_padding(model: ir.Model, source: ir.Value) -> ir.Value:
    """`[batch, 1, 1, sequence]`, true where the key may be seen."""
    axes = add_constant(model, "attention_mask_axes", np.array([1, 2], np.int64))
    cast = ir.node("Cast", [source], {"to": ir.DataType.BOOL}, name=f"{source.name}_bool")
    unsqueeze = ir.node("Unsqueeze", [cast.outputs[0], axes], name=f"{source.name}_keys")
    assert source.shape is not None
    set_type(cast.outputs[0], ir.DataType.BOOL, source.shape)
    out = unsqueeze.outputs[0]
    keys = ir.Shape([source.shape[0], 1, 1, source.shape[1]])
    set_type(out, ir.DataType.BOOL, keys)
    model.graph.insert_before(model.graph[0], [cast, unsqueeze])
    return out


def _once_each(refusals: list[Refusal]) -> list[Refusal]:
    return list({(r.module, r.reason): r for r in refusals}.values())
