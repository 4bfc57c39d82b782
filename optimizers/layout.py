"""What a chain of reshapes and transposes does, told by running it.

Exporters move data in many ways (`Transpose`; `Reshape`, `Transpose`, `Reshape`; with shapes that
are constants, or computed by `Shape`, `Slice` and `Concat`). Instead of matching each way, the
chain is cut out and run on a tensor of distinct numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.graph import attribute, is_op, known_shape

Array = npt.NDArray[Any]

_LAYOUT_OPS = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")
# No exporter chains more steps to move one tensor.
_MAX_STEPS = 6
# Sizes for dynamic axes, distinct so that no two axes can be mistaken for each other.
_PROBE_SIZES = (2, 5, 3, 7)


@dataclass(frozen=True)
class HeadColumns:
    """Where heads stand in the last axis of `[batch, sequence, width]`: `[heads, head_dim]`.

    `heads_first` says that they were found as `[batch, heads, sequence, head_dim]`, not as
    `[batch, sequence, heads, head_dim]`.
    """

    columns: Array
    heads_first: bool


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
    moved = _probed(source, result, shape)
    return moved is not None and np.array_equal(moved[1], moved[0].transpose(perm))


def head_columns(source: ir.Value, result: ir.Value) -> HeadColumns | None:
    """The columns of `source` `[batch, sequence, width]` that `result` has as heads.

    None if the nodes between the two do anything else than choose columns and move axes.
    """
    before, after = known_shape(source), known_shape(result)
    if before is None or after is None or len(before) != 3 or len(after) != 4:
        return None
    moved = _probed(source, result, before)
    if moved is None or moved[1].ndim != len(after):
        return None
    heads_first = after[1] != before[1]
    probe, got = moved[0], moved[1].swapaxes(1, 2) if heads_first else moved[1]
    if got.shape[:2] != probe.shape[:2]:
        return None
    columns = got - probe[:, :, :1, None]
    first = columns[0, 0].astype(np.int64)
    in_range = first.size and first.min() >= 0 and first.max() < probe.shape[2]
    return HeadColumns(first, heads_first) if in_range and (columns == first).all() else None


def _probed(
    source: ir.Value, result: ir.Value, shape: Sequence[int | str]
) -> tuple[Array, Array] | None:
    """Distinct numbers in the shape of `source`, and what the nodes up to `result` make of them."""
    names = list(dict.fromkeys(d for d in shape if isinstance(d, str)))
    sizes = dict(zip(names, _PROBE_SIZES, strict=False))
    cut = _cut_out(source, result)
    if cut is None or len(sizes) < len(names):
        return None
    concrete = [d if isinstance(d, int) else sizes[d] for d in shape]
    probe = np.arange(np.prod(concrete), dtype=np.float32).reshape(concrete)
    got = _run(cut, source, probe, sizes)
    return None if got is None else (probe, got)


def _cut_out(source: ir.Value, result: ir.Value) -> ir.Graph | None:
    """The nodes between the two, or None if they need more than `source` and the input's sizes."""
    graph = source.graph
    if not isinstance(graph, ir.Graph) or not source.name or not result.name:
        return None
    inputs = [str(v.name) for v in graph.inputs if v is not source]
    try:
        cut = ir.convenience.extract(graph, [source.name, *inputs], [result.name])
    except ValueError:
        return None
    for value in [v for v in cut.inputs if not v.uses()]:
        cut.inputs.remove(value)
    return cut


def _run(graph: ir.Graph, source: ir.Value, probe: Array, sizes: dict[str, int]) -> Array | None:
    """What the cut-out nodes make of the probe; other inputs are read for their sizes only."""
    from onnx.reference import ReferenceEvaluator

    feed: dict[str, Array] = {}
    for value in graph.inputs:
        if value.name == source.name:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            feed[str(value.name)] = probe
            continue
        shape = known_shape(value) or ("",)
        concrete = [d if isinstance(d, int) else sizes.get(d, 0) for d in shape]
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        feed[str(value.name)] = np.zeros(concrete, dtype)
    graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.outputs[0].shape = None
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    try:
        (got,) = ReferenceEvaluator(model).run(None, feed)
    except (ValueError, RuntimeError, TypeError):
        return None
    return np.asarray(got)
