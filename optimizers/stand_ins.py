"""Stand-ins for the weights of graphs that are too large to run: passes are judged on them.

A pass is judged by the numbers before and after it. Those need not be the model's own: random
weights tell a wrong mask, scale or operand as well. So from `STAND_IN_BYTES` on, each large matrix
that is in a file becomes a stand-in: a view, at an offset of its own, into one buffer of
random numbers as large as the largest of them. No two stand-ins hold the same, and together they
take the memory of one weight. Norms, biases, small tables and what passes look at stay real.

A pass may not look at what a stand-in holds and write what it saw into the graph; the ledger
undoes one that does. What passes compute from weights they describe with
`tfc.optimizers.computed`; `with_real_weights` puts the weights in place of their stand-ins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.computed import Computed, Deferred, computed
from tfc.optimizers.graph import add_weight, attribute, is_op, nodes_of, set_type

# BERT-large has 1.3 GB, and each run of it reads all of that: three times as much is bearable.
STAND_IN_BYTES = 4 << 30
# Smaller tensors stay real: norms, biases, tables of positions and masks, which passes recognise.
_MATRIX_BYTES = 1 << 20
_TABLE_BYTES = 64 << 20
# Views start this many numbers apart, so that each holds others: an odd number of cache lines.
_STRIDE = 16 * 37
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_WEIGHT = 1


class Noise:
    """One buffer of random numbers that fp16 can hold, and how often stand-ins were read."""

    def __init__(self, size: int, spread: float) -> None:
        self._full = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
        self._full *= np.float32(spread)
        self._full[:] = self._full.astype(np.float16)
        self._half: npt.NDArray[np.float16] | None = None
        self.reads = 0

    def view(self, dtype: ir.DataType, offset: int, shape: ir.Shape) -> npt.NDArray[np.generic]:
        """So many numbers from an offset on."""
        self.reads += 1
        sizes = shape.numpy()
        if dtype == _HALF and self._half is None:
            self._half = self._full.astype(np.float16)
        buffer = self._half if dtype == _HALF and self._half is not None else self._full
        return buffer[offset : offset + int(np.prod(sizes))].reshape(sizes)


class StandIn(Deferred):
    """Random numbers in place of a weight; in another float type they are the same numbers."""

    def __init__(
        self, original: ir.TensorProtocol, dtype: ir.DataType, noise: Noise, offset: int
    ) -> None:
        self.original = original
        self.noise = noise
        self._offset = offset
        shape = ir.Shape(original.shape.numpy())
        super().__init__(
            lambda: ir.tensor(noise.view(dtype, offset, shape)), dtype, shape, name=original.name
        )

    def in_fp32(self) -> StandIn:
        """The same numbers in fp32."""
        return StandIn(self.original, _FLOAT, self.noise, self._offset)


def with_stand_ins(model: ir.Model, limit: int = STAND_IN_BYTES) -> ir.Model:
    """The graph with stand-ins for its large weights, or itself if its weights are below `limit`.

    Weights that are in memory already stay. The given model is not changed.

    Args:
        model: a graph as `onnx_ir.load` gives it.
        limit: in bytes.
    """
    weights = [
        v.const_value for v in model.graph.initializers.values() if v.const_value is not None
    ]
    if sum(tensor.nbytes for tensor in weights) < limit:
        return model
    model = model.clone()
    chosen = [value for value in model.graph.initializers.values() if _may_be_replaced(value)]
    if not chosen:
        return model
    sizes = [_tensor(value).size for value in chosen]
    width = min(_tensor(chosen[int(np.argmax(sizes))]).shape.numpy())
    noise = Noise(max(sizes) + _STRIDE * len(chosen), width**-0.5)
    for number, value in enumerate(chosen):
        tensor = _tensor(value)
        value.const_value = StandIn(tensor, tensor.dtype, noise, number * _STRIDE)
    _turn_transposed(model)
    return model


def stand_ins_of(model: ir.Model) -> list[StandIn]:
    """The stand-ins that the graph's weights are, or are computed from."""
    weights = [v.const_value for v in model.graph.initializers.values()]
    return list({id(s): s for tensor in weights for s in _leaves(tensor)}.values())


def with_real_weights(model: ir.Model) -> None:
    """Put every weight in place of its stand-in; what is computed from some stays described."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, Deferred):
            value.const_value = _real(value.const_value)


def in_fp32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """An fp16 or bf16 tensor's numbers in fp32; one of another type is returned as it is."""
    if isinstance(tensor, Computed):
        return tensor.of([in_fp32(source) for source in tensor.sources])
    if tensor.dtype not in (_HALF, ir.DataType.BFLOAT16):
        return tensor
    if isinstance(tensor, StandIn):
        return tensor.in_fp32()
    return ir.tensor(np.asarray(tensor.numpy()).astype(np.float32), name=tensor.name)


def write_out_computed(model: ir.Model) -> None:
    """Let the graph itself compute, in each run, what is computed from stand-ins."""
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if isinstance(tensor, Computed):
            first = next(node for node in model.graph if value in node.inputs)
            result = _nodes_of(model, tensor, name, first)
            ir.convenience.replace_all_uses_with(value, result)
            del model.graph.initializers[name]


def _may_be_replaced(value: ir.Value) -> bool:
    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype not in (_FLOAT, _HALF):
        return False
    if tensor.nbytes < _MATRIX_BYTES or value.is_graph_output() or value.is_graph_input():
        return False
    return bool(value.uses()) and all(_is_weight(use, tensor.nbytes) for use in value.uses())


def _is_weight(use: Any, size: int) -> bool:
    node = use.node
    if is_op(node, "Transpose"):
        return all(_is_weight(then, size) for then in node.outputs[0].uses())
    if is_op(node, "Gather"):
        return use.idx == 0 and size >= _TABLE_BYTES
    return use.idx == _WEIGHT and any(is_op(node, op) for op in _PRODUCTS)


def _turn_transposed(model: ir.Model) -> None:
    """`Transpose(weight)` of a weight that nothing else reads → a weight."""
    for node in nodes_of(model, "Transpose"):
        value, out = node.inputs[0], node.outputs[0]
        if value is None or not isinstance(value.const_value, StandIn) or out.is_graph_output():
            continue
        if len(list(value.uses())) != 1:
            continue
        tensor = value.const_value
        turned = computed("Transpose", [tensor], perm=_perm(node, tensor))
        new = ir.Value(name=out.name, shape=ir.Shape(turned.shape.numpy()), const_value=turned)
        new.type = ir.TensorType(turned.dtype)
        ir.convenience.replace_all_uses_with(out, new)
        model.graph.remove(node, safe=True)
        del model.graph.initializers[str(value.name)]
        model.graph.register_initializer(new)


def _perm(node: ir.Node, tensor: ir.TensorProtocol) -> list[int]:
    backwards = range(len(tensor.shape.numpy()))[::-1]
    return [int(axis) for axis in attribute(node, "perm", backwards)]


def _nodes_of(model: ir.Model, tensor: Computed, name: str, before: ir.Node) -> ir.Value:
    """Nodes that compute the tensor, and the value that they give."""
    attributes = dict(tensor.attributes)
    sources = list(tensor.sources)
    if "factor" in attributes:
        sources.append(ir.tensor(np.array(attributes.pop("factor"), tensor.dtype.numpy())))
    inputs = [
        _nodes_of(model, source, f"{name}_{number}", before)
        if isinstance(source, Computed)
        else add_weight(model, f"{name}_{number}", source)
        for number, source in enumerate(sources)
    ]
    node = ir.node(tensor.op, inputs, attributes)
    model.graph.insert_before(before, [node])
    set_type(node.outputs[0], tensor.dtype, ir.Shape(tensor.shape.numpy()))
    return node.outputs[0]


def _real(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, StandIn):
        return tensor.original
    if isinstance(tensor, Computed):
        return tensor.of([_real(source) for source in tensor.sources])
    return tensor


def _leaves(tensor: ir.TensorProtocol | None) -> Iterator[StandIn]:
    if isinstance(tensor, StandIn):
        yield tensor
    elif isinstance(tensor, Computed):
        for source in tensor.sources:
            yield from _leaves(source)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value
