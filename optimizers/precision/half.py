"""An fp32 graph → the same graph computing in fp16 or bf16, with casts where the two meet.

What runs in half: matrix products and attention on token tensors (rank 3 and more, or flattened to
`[batch·sequence, …]`), GELU, LayerNormalization (its statistics stay in fp32: `stash_type` 1),
embedding look-ups, and element-wise work between them. The table of a language model's head, which
reads it transposed, is a weight like others.

What stays in fp32:
1. reductions, softmax, divisions, powers and roots written out: they lose or overflow. In an
   attention written as its products too, so that masks are added there; but a softmax with a guard
   for rows without a key runs in half, for TensorRT fuses no other form of it;
2. what works on pooled tensors (rank 2: pooler, classifier head, normalisation): it costs
   nothing and decides the result;
3. a node with a constant that the half type cannot hold, and every node that gives or reads a
   value that was seen to be too large for it (`tfc.optimizers.precision.ranges`; for fp16 only:
   bf16 has the exponents of fp32);
4. the graph's inputs and outputs.

An attention is one node in this, whether it is one `Attention` or written as its products
(`tfc.optimizers.attention_products`): where any value of it is too large, all of it is in fp32.

Every value is cast at most once to each type, and a cast back reads the original value, so no
pair of casts cancels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.attention_products import AttentionProducts, all_attention_products
from tfc.optimizers.graph import add_constant, constant, insert_before, set_type
from tfc.optimizers.precision.types import FP16, HalfType

_FLOAT = ir.DataType.FLOAT
# A mask's lowest value, as a share of the half type's largest. exp(-32752) is 0 already, and a
# score added to it does not overflow.
_LEAST_MASK = -0.5
# Token tensors are [batch, sequence, …]; a pooled tensor is [batch, …].
_TOKEN_RANK = 3

_MASK = 3
_PRODUCTS = frozenset({"MatMul", "Gemm", "Attention"})
_HALF_OPS = frozenset({"Gelu", "LayerNormalization", "RMSNormalization", "RotaryEmbedding"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Neg", "Tanh", "Relu", "Erf", "Sigmoid", "Where"})
LAYOUT = frozenset(
    {"Reshape", "Transpose", "Split", "Squeeze", "Unsqueeze", "Concat", "Slice", "Expand",
     "Gather", "GatherElements", "Identity", "Flatten", "Tile"}
)  # fmt: skip


@dataclass(frozen=True)
class HalfReport:
    """How many nodes run in each precision, and the nodes kept in fp32 because half overflows."""

    half: dict[str, int]
    fp32: dict[str, int]
    kept: tuple[str, ...]


@dataclass
class _Converter:
    """One conversion under way: the casts and constants made so far."""

    model: ir.Model
    type: HalfType
    too_large: Collection[str] = ()
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    origin: dict[ir.Value, ir.Value] = field(default_factory=dict)
    bounded: dict[ir.Value, ir.Value] = field(default_factory=dict)
    half: Counter[str] = field(default_factory=Counter)
    fp32: Counter[str] = field(default_factory=Counter)
    kept: list[str] = field(default_factory=list)
    attention_of: dict[ir.Node, AttentionProducts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.attention_of = {
            node: each for each in all_attention_products(self.model) for node in each.nodes
        }

    def convert(self, node: ir.Node) -> None:
        """Choose the node's precision and give it inputs of that type."""
        floats = [i for i, v in enumerate(node.inputs) if self._is_float(v)]
        if not floats:
            return
        if self._runs_in_half(node, [node.inputs[i] for i in floats]):
            wanted = self.type.dtype
            self.half[node.op_type] += 1
        else:
            wanted = _FLOAT
            self.fp32[node.op_type] += 1
        for index in floats:
            value = node.inputs[index]
            if value is None or value.dtype == wanted:
                continue
            if wanted != _FLOAT and self._adds_numbers(node, index):
                value = self.within_half(value, node)
            node.replace_input_with(index, self.as_type(value, wanted, node))
        for output in node.outputs:
            if self._is_float(output) and node.op_type != "Cast":
                set_type(output, wanted, output.shape)

    def _adds_numbers(self, node: ir.Node, index: int) -> bool:
        """Whether this operand is added to scores, and no row of it may be -inf throughout."""
        block = self.attention_of.get(node)
        if block is None:
            return node.op_type == "Attention" and index == _MASK
        return node is block.masking and node.inputs[index] is block.mask and not block.guard

    def within_half(self, mask: ir.Value, before: ir.Node) -> ir.Value:
        """A mask whose lowest values are still numbers in half.

        As infinities they would make a row without any key to see a row of NaN.
        """
        if constant(mask) is not None:
            return mask
        if mask not in self.bounded:
            lowest = np.array(_LEAST_MASK * self.type.largest, np.float32)
            least = add_constant(self.model, "half_mask_least", lowest)
            bound = ir.node("Max", [mask, least], name=f"{mask.name}_within_half")
            insert_before(before, [bound])
            set_type(bound.outputs[0], _FLOAT, mask.shape)
            self.bounded[mask] = bound.outputs[0]
        return self.bounded[mask]

    def as_type(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        """The value in another float type: a converted constant, or one cast shared by all."""
        original = self.origin.get(value, value)
        if original.dtype == wanted:
            return original
        key = (original, wanted)
        if key not in self.casts:
            self.casts[key] = self._cast(original, wanted, before)
            self.origin[self.casts[key]] = original
        return self.casts[key]

    def _cast(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        array = constant(value)
        if array is not None:
            name = f"{value.name}.{'fp32' if wanted == _FLOAT else self.type.name}"
            return add_constant(self.model, name, array.astype(wanted.numpy()))
        cast = ir.node("Cast", [value], {"to": wanted}, name=f"{value.name}_as_{wanted.name}")
        out = cast.outputs[0]
        set_type(out, wanted, value.shape)
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            producer.graph.insert_after(producer, [cast])
        else:
            insert_before(before, [cast])
        return out

    def _attention_in_half(self, node: ir.Node, block: AttentionProducts) -> bool:
        """Whether this node of an attention runs in half."""
        choice = block.masking is not None and block.masking.op_type == "Where"
        wide = (block.softmax, block.masking if choice else None)
        if node in wide and not block.guard:
            return False
        read = (self.origin.get(v, v) for v in block.operands if v is not None)
        given = (value for each in block.nodes for value in each.outputs)
        if any(value.name in self.too_large for value in (*read, *given)):
            self.kept.append(str(node.name))
            return False
        return True

    def _runs_in_half(self, node: ir.Node, floats: list[ir.Value | None]) -> bool:
        if node in self.attention_of:
            return self._attention_in_half(node, self.attention_of[node])
        activations = [v for v in floats if _weight(v) is None]
        constants_fit = all(self._fits(v) for v in floats if _weight(v) is not None)
        if not constants_fit or self._touches_a_large_value(node):
            self.kept.append(str(node.name))
            return False
        if node.op_type in _PRODUCTS:
            return all(_has_tokens(v) for v in activations)
        if node.op_type in _HALF_OPS:
            return True
        if node.op_type in _ELEMENTWISE or node.op_type in LAYOUT:
            return all(v is not None and v.dtype == self.type.dtype for v in activations)
        return False

    def _is_float(self, value: ir.Value | None) -> bool:
        return value is not None and value.dtype in (_FLOAT, self.type.dtype)

    def _fits(self, value: ir.Value | None) -> bool:
        array = _weight(value)
        return array is None or bool((np.abs(array) <= self.type.largest).all())

    def _touches_a_large_value(self, node: ir.Node) -> bool:
        # A mask may hold the lowest fp32 number; it is bounded before it is cast.
        operands = node.inputs[:_MASK] if node.op_type == "Attention" else node.inputs
        read = (self.origin.get(v, v) for v in operands if v is not None)
        return any(v.name in self.too_large for v in (*read, *node.outputs))


def half_from_fp32(
    model: ir.Model, half: HalfType = FP16, too_large: Collection[str] = ()
) -> tuple[ir.Model, HalfReport]:
    """The graph in fp16 or bf16 as far as it is safe. Inputs and outputs keep their types.

    The given model, of standard operators in topological order, is not changed.

    Args:
        model: an fp32 graph.
        half: the type to compute in.
        too_large: the names of values that it cannot hold.
    """
    model = model.clone()
    converter = _Converter(model, half, too_large)
    outputs = {id(v): str(v.name) for v in model.graph.outputs}
    for node in list(model.graph):
        converter.convert(node)
    for index, value in enumerate(list(model.graph.outputs)):
        if value.dtype == half.dtype:
            _cast_output(model, index, value, outputs[id(value)])
    for name in [n for n, v in model.graph.initializers.items() if not v.uses()]:
        del model.graph.initializers[name]
    report = HalfReport(dict(converter.half), dict(converter.fp32), tuple(converter.kept))
    return model, report


def _cast_output(model: ir.Model, index: int, value: ir.Value, name: str) -> None:
    """Give the graph an fp32 output of the old name in place of a half one."""
    value.name = f"{name}_half"
    cast = ir.node("Cast", [value], {"to": _FLOAT}, name=f"{name}_as_FLOAT")
    out = cast.outputs[0]
    out.name = name
    set_type(out, _FLOAT, value.shape)
    model.graph.append(cast)
    model.graph.outputs[index] = out


def _weight(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The constant that this is, or the transpose of: a head shares its weights with a table."""
    producer = value.producer() if value is not None else None
    transposed = producer is not None and producer.op_type == "Transpose"
    return constant(producer.inputs[0] if transposed and producer is not None else value)


def _has_tokens(value: ir.Value | None) -> bool:
    """Whether it is [batch, sequence, …], or flattened: [batch*sequence, …]."""
    if value is None or value.shape is None:
        return False
    factors = (d.value.split("*") for d in value.shape if not isinstance(d, int) and d.value)
    flat = any(sum(not factor.isdigit() for factor in axis) > 1 for axis in factors)
    return flat or len(value.shape) >= _TOKEN_RANK
