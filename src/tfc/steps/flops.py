"""The arithmetic of a graph's matrix products and attentions, from its shapes.

A product of [M, K] and [K, N] takes 2·M·N·K operations, and so do the two products inside an
attention: queries with keys, and probabilities with values. They count as one attention, whether
it is an `Attention` or written as its products. Convolutions are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfc.runtime.backends.base import Profile

if TYPE_CHECKING:
    import onnx_ir as ir

ATTENTION_OP = "Attention"
_PAST_KEY = 4  # the inputs of Attention: Q, K, V, mask, past key, past value
_TOKEN_RANK = 3  # token tensors are [batch, sequence, …]; a pooled tensor is [batch, …]
_OF_SHAPES = frozenset({"Shape", "Size"})
# Between a quantised tensor and the product that reads it.
_TRANSPARENT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
_TYPES = {
    "FLOAT": "fp32",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "INT8": "int8",
    "UINT8": "int8",
    "FLOAT8E4M3FN": "fp8",
}
UNKNOWN = "unknown"

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Product:
    """A MatMul, Gemm or Attention node, or the products of an attention.

    Attributes:
        node: its name; of an attention in products the name of the last one.
        module: the path of the module that it came from; empty where that is not told.
        attention: whether it is an attention.
        precision: the type that it computes in as the graph says; `unknown` if it does not.
        flops: operations at the profile's best sizes; None where a size is not told.
        of_tokens: whether what it reads, weights aside, has one vector for each token.
    """

    node: str
    module: str
    attention: bool
    precision: str
    flops: int | None
    of_tokens: bool


def products_of_graph(model: ir.Model, profile: Profile) -> list[Product]:
    """The matrix products and attentions of a graph in standard operators, in order.

    One of which nothing but the shape is used is left out: no backend computes it.
    """
    from tfc.optimizers.attention_products import all_attention_products
    from tfc.optimizers.graph import module_of

    used = _used_nodes(model)
    scores_of = {each.output: each.scores for each in all_attention_products(model)}
    counted_later = set(scores_of.values())
    count: dict[str, Callable[[ir.Node, Profile], int | None]] = {
        "MatMul": _matmul_flops,
        "Gemm": _gemm_flops,
        ATTENTION_OP: _attention_flops,
    }
    found = []
    for node in model.graph:
        standard = node.op_type in count and node.domain in ("", "ai.onnx")
        if not standard or node not in used or node in counted_later:
            continue
        flops = count[node.op_type](node, profile)
        if node in scores_of:
            flops = _plus(flops, _matmul_flops(scores_of[node], profile))
        found.append(
            Product(
                node=str(node.name),
                module=module_of(node),
                attention=node.op_type == ATTENTION_OP or node in scores_of,
                precision=_precision(scores_of.get(node, node)),
                flops=flops,
                of_tokens=_of_tokens(node),
            )
        )
    return found


def _used_nodes(model: ir.Model) -> set[ir.Node]:
    """The nodes whose numbers, not their shapes alone, reach an output of the graph."""
    used: set[ir.Node] = set()
    todo = [value.producer() for value in model.graph.outputs]
    while todo:
        node = todo.pop()
        if node is None or node in used:
            continue
        used.add(node)
        if node.op_type not in _OF_SHAPES:
            todo += [value.producer() for value in node.inputs if value is not None]
    return used


def _matmul_flops(node: ir.Node, profile: Profile) -> int | None:
    return _times(2, *_sizes(node.outputs[0], profile), *_sizes(node.inputs[0], profile)[-1:])


def _gemm_flops(node: ir.Node, profile: Profile) -> int | None:
    first = _sizes(node.inputs[0], profile)
    inner = first[0] if node.attributes.get_int("transA", 0) else first[-1]
    return _times(2, *_sizes(node.outputs[0], profile), inner)


def _attention_flops(node: ir.Node, profile: Profile) -> int | None:
    """Q [batch, heads, queries, d], K [batch, …, keys, d], V [batch, …, keys, d'].

    With three axes, as [batch, length, heads·d], the products are as large.
    """
    queries, keys, values = (_sizes(value, profile) for value in node.inputs[:3])
    past = node.inputs[_PAST_KEY] if len(node.inputs) > _PAST_KEY else None
    if len(queries) < _TOKEN_RANK or len(keys) < _TOKEN_RANK:
        return None
    length = keys[-2]
    if past is not None:
        earlier = _sizes(past, profile)[-2:-1]
        length = _plus(length, earlier[0] if earlier else None)
    if len(queries) == _TOKEN_RANK:
        heads = (node.attributes.get_int(f"{side}_num_heads", 1) for side in ("q", "kv"))
        width = _times(values[-1], next(heads) // next(heads))
    else:
        width = values[-1]
    scores = _times(2, *queries, length)
    mixed = _times(2, *queries[:-1], length, width)
    return _plus(scores, mixed)


def _sizes(value: ir.Value | None, profile: Profile) -> Dims:
    """The shape at the profile's best sizes; (None,) where the rank is not told."""
    if value is None or value.shape is None:
        return (None,)
    return tuple(d if isinstance(d, int) else _size(d.value, profile) for d in value.shape)


def _size(axis: str | None, profile: Profile) -> int | None:
    """Of a dynamic axis by its name, or of a product of axes: `2*batch`."""
    sizes: list[int | None] = []
    for factor in (axis or "?").split("*"):
        known = factor in ("batch", "sequence") or factor in profile.others
        if factor.isdigit():
            sizes.append(int(factor))
        else:
            sizes.append(profile.of_axis(factor).opt if known else None)
    return _times(*sizes)


def _times(*sizes: int | None) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _plus(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def _precision(node: ir.Node) -> str:
    """The type of its factors; of quantised ones the type that they are stored in."""
    stored = [_stored_type(value) for value in node.inputs[:2]]
    if stored[0] == stored[1]:
        return stored[0]
    # One factor is quantised and the other is not: it is widened before the product.
    wide = [name for name in stored if name not in ("int8", "fp8")]
    return wide[0] if len(wide) == 1 else UNKNOWN


def _stored_type(value: ir.Value | None) -> str:
    while value is not None:
        producer = value.producer()
        if producer is None:
            break
        if producer.op_type == "DequantizeLinear":
            value = producer.inputs[0]
            break
        if producer.op_type not in _TRANSPARENT or not _is_dequantized(producer.inputs[0]):
            break
        value = producer.inputs[0]
    if value is None or value.dtype is None:
        return UNKNOWN
    return _TYPES.get(value.dtype.name, value.dtype.name.lower())


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is None:
        return False
    if producer.op_type == "DequantizeLinear":
        return True
    return producer.op_type in _TRANSPARENT and _is_dequantized(producer.inputs[0])


def _of_tokens(node: ir.Node) -> bool:
    factors = node.inputs[:3] if node.op_type == ATTENTION_OP else node.inputs[:2]
    activations = [v for v in factors if v is not None and not _is_weight(v)]
    return bool(activations) and all(_has_tokens(value) for value in activations)


def _has_tokens(value: ir.Value) -> bool:
    """Whether it is [batch, sequence, …], or flattened: [batch*sequence, …]."""
    if value.shape is None:
        return False
    factors = (d.value.split("*") for d in value.shape if not isinstance(d, int) and d.value)
    flat = any(sum(not factor.isdigit() for factor in axis) > 1 for axis in factors)
    return flat or len(value.shape) >= _TOKEN_RANK


def _is_weight(value: ir.Value) -> bool:
    """Whether it is a constant, or one that is transposed or cast in the graph (tied weights)."""
    source: ir.Value | None = value
    while source is not None and source.const_value is None:
        producer = source.producer()
        if producer is None or producer.op_type not in (*_TRANSPARENT, "Cast", "DequantizeLinear"):
            return False
        source = producer.inputs[0]
    return source is not None
