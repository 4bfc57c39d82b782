"""What a chain of reshapes and transposes does, told by running it.

Exporters move data in many ways (`Transpose`; `Reshape`, `Transpose`, `Reshape`; with shapes that
are constants, or computed by `Shape`, `Slice` and `Concat`). Instead of matching each way, the
chain is cut out and run on a tensor of distinct numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import attribute, is_op, known_shape

_LAYOUT_OPS = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")
# No exporter chains more steps to move one tensor.
_MAX_STEPS = 6
# Sizes for dynamic axes, distinct so that no two axes can be mistaken for each other.
_PROBE_SIZES = (2, 5, 3, 7)


def layout_sources(value: ir.Value) -> Iterator[ir.Value]:
    """The values that `value` is a rearrangement of, nearest first."""
    for _ in range(_MAX_STEPS):
        node = value.producer()
        if node is None or node.op_type not in _LAYOUT_OPS or node.inputs[0] is None:
            return
        value = node.inputs[0]
        yield value


def is_permutation(source: ir.Value, result: ir.Value, perm: Sequence[int]) -> bool:
    """Whether `result` is `source` transposed by `perm`, for every size of its axes."""
    node = result.producer()
    if node is not None and is_op(node, "Transpose") and node.inputs[0] is source:
        return tuple(attribute(node, "perm", ())) == tuple(perm)
    shape = known_shape(source)
    if shape is None or len(shape) != len(perm):
        return False
    graph = _cut_out(source, result)
    if graph is None:
        return False
    sizes = [d if isinstance(d, int) else _PROBE_SIZES[i] for i, d in enumerate(shape)]
    probe = np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
    got = _run(graph, probe)
    return got is not None and np.array_equal(got, probe.transpose(perm))


def _cut_out(source: ir.Value, result: ir.Value) -> ir.Graph | None:
    """The nodes between the two, or None if they need anything else than `source`."""
    if source.graph is None or not source.name or not result.name:
        return None
    try:
        return ir.convenience.extract(source.graph, [source.name], [result.name])
    except ValueError:
        return None


def _run(graph: ir.Graph, probe: np.ndarray) -> np.ndarray | None:
    from onnx.reference import ReferenceEvaluator

    for value in (*graph.inputs, *graph.outputs):
        value.type = ir.TensorType(ir.DataType.FLOAT)
    graph.outputs[0].shape = None
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    try:
        (got,) = ReferenceEvaluator(model).run(None, {str(graph.inputs[0].name): probe})
    except (ValueError, RuntimeError, TypeError):
        return None
    return np.asarray(got)
