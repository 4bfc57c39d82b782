"""Weights that are computed from others when they are read, not before.

A pass that packs, scales or transposes weights says so with `computed`. Where the weights are in
memory, the result is computed at once. Where passes are judged on stand-ins
(`tfc.optimizers.stand_ins`), the result is only described: the judge runs the description on the
stand-ins, and the weights themselves are read, one at a time, when the graph is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]


# Operator → what it gives of arrays. Each takes the attributes that ONNX gives it; a product with
# a number takes that instead of its second operand, and is rounded once, from fp64.
_OPS: Mapping[str, Callable[..., Array]] = {
    "Concat": lambda *arrays, axis: np.concatenate(arrays, axis),
    "Gather": lambda array, places, axis: np.take(array, places, axis),
    "Mul": lambda array, factor: (array.astype(np.float64) * factor).astype(array.dtype),
    "Transpose": lambda array, perm: np.transpose(array, perm),
}


class Deferred(ir.LazyTensor):
    """A tensor that is not to be read while the graph is optimized."""


class Computed(Deferred):
    """What a standard operator gives of other tensors."""

    def __init__(self, op: str, sources: Sequence[ir.TensorProtocol], **attributes: Any) -> None:
        self.op = op
        self.sources = tuple(sources)
        self.attributes = attributes
        shape = _shape(op, [tuple(s.shape.numpy()) for s in sources], attributes)
        super().__init__(self._array, sources[0].dtype, ir.Shape(shape))

    def of(self, sources: Sequence[ir.TensorProtocol]) -> Computed:
        """The same of other tensors."""
        return Computed(self.op, sources, **self.attributes)

    def _array(self) -> ir.TensorProtocol:
        return ir.tensor(_OPS[self.op](*map(_read, self.sources), **self.attributes))


def computed(op: str, sources: Sequence[ir.TensorProtocol], **attributes: Any) -> ir.TensorProtocol:
    """The operator's result: an array, or its description if a source is not to be read yet.

    Args:
        op: `Concat`, `Gather`, `Mul` or `Transpose`.
        sources: the operands.
        attributes: the operator's attributes, with defaults; `factor` of `Mul`.
    """
    found = Computed(op, sources, **attributes)
    if any(isinstance(source, Deferred) for source in sources):
        return found
    return ir.tensor(found.numpy())


def _read(tensor: ir.TensorProtocol) -> Array:
    """The array; of a file, in memory of its own, so that its pages can leave the process."""
    if not isinstance(tensor, ir.ExternalTensor):
        return np.asarray(tensor.numpy())
    mapped = ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=str(tensor.name),
        base_dir=tensor.base_dir,
    )
    return np.array(mapped.numpy())


def _shape(op: str, shapes: Sequence[tuple[int, ...]], attributes: Mapping[str, Any]) -> list[int]:
    shape = list(shapes[0])
    if op == "Concat":
        axis = attributes["axis"]
        shape[axis] = sum(each[axis] for each in shapes)
    elif op == "Gather":
        axis = attributes["axis"] % len(shape)
        shape[axis : axis + 1] = shapes[1]
    elif op == "Transpose":
        shape = [shape[axis] for axis in attributes["perm"]]
    return shape
