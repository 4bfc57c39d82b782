"""Shapes that no inference rule can tell, told by running the graph.

Exporters compute shapes with `Shape`, `Gather`, `Concat` and `Reshape`; symbolic inference loses
track of them, and a fusion that needs "the same shape" or "the number of heads" then finds
nothing. Here the graph runs a few times on inputs whose dynamic axes have other, prime, sizes
each time. An axis of an inner value that always has one size is that size; one that follows the
size of an input's axis, or a product or sum of such sizes, is called after it.

What is found holds for the probes, not by proof: every pass that uses it is checked by the ledger
on other sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tfc.errors import first_line
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.graph import add_constant, known_shape, nodes_of, replace_value, set_type
from tfc.optimizers.passes import PassResult, refusal
from tfc.optimizers.probes import dynamic_axes, feed_of_sizes, sizes_of_probe

KIND = "shapes"
_PROBES = 3
# An encoder and a decoder with its cache have six; beyond that, products become ambiguous.
_MAX_AXES = 6
Dim = int | str


class InferShapes:
    """Fills in shapes that are not fully known. Changes no node."""

    name = "infer shapes"

    def apply(self, model: ir.Model) -> PassResult:
        """Run the probes and name every axis that can be told."""
        axes = dynamic_axes(model)
        unknown = [
            value for node in model.graph for value in node.outputs if _is_unknown(value, axes)
        ]
        if not unknown or len(axes) > _MAX_AXES:
            return PassResult(0)
        sizes = [sizes_of_probe(axes, number) for number in range(_PROBES if axes else 1)]
        try:
            shapes = _observed(model, unknown, sizes)
        except Exception as error:  # ONNX Runtime's errors have no common root
            reason = f"the graph does not run at other sizes: {first_line(error)}"
            return PassResult(0, (refusal(KIND, model.graph[0], reason),))
        told = 0
        for value, seen in zip(unknown, shapes, strict=True):
            if len({len(shape) for shape in seen}) != 1:
                continue
            dims = [_dim([shape[i] for shape in seen], sizes) for i in range(len(seen[0]))]
            value.shape = ir.Shape([dim if dim is not None else None for dim in dims])
            told += all(dim is not None for dim in dims)
        return PassResult(told)


class ShapesFromInputs:
    """`Shape(inner value)` → the sizes of the graph's inputs, axis by axis, where they are known.

    Frees the arithmetic on shapes, and the attention mask's sub-graph with it, from the values
    that it happened to be asked of; what only fed a `Shape` disappears.
    """

    name = "take shapes from inputs"

    def apply(self, model: ir.Model) -> PassResult:
        """Rewrite every `Shape` of an inner value with an axis that is fixed or an input's."""
        sources = {
            str(dim.value): (value, place)
            for value in reversed(model.graph.inputs)
            for place, dim in enumerate(value.shape or ())
            if not isinstance(dim, int) and dim.value
        }
        changed = 0
        for node in nodes_of(model, "Shape"):
            source = node.inputs[0]
            if source is None or source.is_graph_input():
                continue
            if source.shape is None:
                continue
            shape = [d if isinstance(d, int) else d.value for d in source.shape]
            if not any(isinstance(d, int) or d in sources for d in shape):
                continue
            start = node.attributes["start"].value if "start" in node.attributes else 0
            end = node.attributes["end"].value if "end" in node.attributes else None
            places = range(len(shape))[start:end]
            self._rewrite(model, node, [(place, shape[place]) for place in places], sources)
            changed += 1
        if changed:
            RemoveUnusedNodesPass()(model)
        return PassResult(changed)

    def _rewrite(
        self,
        model: ir.Model,
        node: ir.Node,
        dims: Sequence[tuple[int, Dim | None]],
        sources: dict[str, tuple[ir.Value, int]],
    ) -> None:
        new: list[ir.Node] = []
        parts = []
        for place, dim in dims:
            if isinstance(dim, int):
                parts.append(add_constant(model, f"size_{dim}", np.array([dim], np.int64)))
                continue
            value, axis = sources.get(str(dim), (node.inputs[0], place))
            new.append(ir.node("Shape", [value], {"start": axis, "end": axis + 1}))
            set_type(new[-1].outputs[0], ir.DataType.INT64, ir.Shape([1]))
            parts.append(new[-1].outputs[0])
        new.append(ir.node("Concat", parts, {"axis": 0}))
        model.graph.insert_before(node, new)
        replace_value(node.outputs[0], new[-1].outputs[0])


def _is_unknown(value: ir.Value, axes: list[str]) -> bool:
    shape = known_shape(value)
    return shape is None or any(isinstance(dim, str) and dim not in axes for dim in shape)


def _observed(
    model: ir.Model, values: list[ir.Value], sizes: list[dict[str, int]]
) -> list[list[tuple[int, ...]]]:
    """The concrete shapes of the values in every probe."""
    probe = model.clone()
    twins = {v.name: v for node in probe.graph for v in node.outputs}
    probe.graph.outputs.clear()
    for number, value in enumerate(values):
        shape = ir.node("Shape", [twins[value.name]])
        probe.graph.append(shape)
        out = shape.outputs[0]
        out.name = f"shape_of_{number}"
        out.type = ir.TensorType(ir.DataType.INT64)
        probe.graph.outputs.append(out)
    feeds = [feed_of_sizes(model, size, seed) for seed, size in enumerate(sizes)]
    found = outputs_of(probe, feeds)
    return [
        [tuple(int(n) for n in outputs[f"shape_of_{number}"]) for outputs in found]
        for number in range(len(values))
    ]


def _dim(seen: list[int], sizes: list[dict[str, int]]) -> Dim | None:
    """What an axis is: a number, an input's axis, a product of some, or None."""
    if len(set(seen)) == 1:
        return seen[0]
    axes = list(sizes[0])
    for count in (1, 2):
        for chosen in itertools.combinations_with_replacement(axes, count):
            products = [int(np.prod([size[axis] for axis in chosen])) for size in sizes]
            factors = {n / p for n, p in zip(seen, products, strict=True)}
            if len(factors) == 1 and (factor := factors.pop()).is_integer():
                name = "*".join(chosen)
                return name if factor == 1 else f"{int(factor)}*{name}"
    return None
