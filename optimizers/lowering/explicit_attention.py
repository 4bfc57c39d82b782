"""`Attention` → its products and its softmax, which TensorRT compiles to fewer kernels.

Before (9 kernels in a post-LN encoder layer, after `tfc.optimizers.lowering.pack_qkv`)::

    y = Attention(q, k, v, mask, scale)

After (8 kernels; the attention is one fused kernel in both)::

    scores = MatMul(q · scale, Transpose(k))
    masked = Where(mask, scores, low)                  mask of booleans
    masked = Add(scores, mask)                         mask of numbers
    p = Softmax(masked, axis=-1)
    p = Where(IsNaN(p), 0, p)                          where a row may have no key to see
    y = MatMul(p, v)

The kernel that moves the result out of the heads goes, and so do most of the kernels that prepare
the mask: the fused kernel reads the booleans as they are. Grouped keys and values are repeated by
`Unsqueeze`, `Expand` and `Reshape`, which TensorRT takes back into the fused kernel; with `Gather`
it writes them out, and with a product of five axes it does not fuse. The measurements:
`perf/layer_forms.py`, `perf/results/layer_forms.json`. ONNX Runtime runs products with any mask.

Fires when
1. queries, keys and values are `[batch, heads, sequence, head_dim]` and nothing but the result is
   used. A cache among the operands, and a causal flag, stay with `Attention`, whose kernel then
   need not look at every key;
2. the queries' heads are a multiple of the keys';
3. the softmax is not asked for in a wider type where a guard is needed: TensorRT does not fuse
   that form.

A row without any key to see becomes 0, as in ONNX Runtime's `Attention`: `low` is -inf, the softmax
gives NaN and the guard 0. That can be where the mask has a row for each query (a causal mask or a
window, with padding). A mask with one row for all, `[batch, 1, 1, keys]`, hides every key of a text
without tokens only, and such a text means nothing; its `low` is a number and it needs no guard, so
its softmax may be in fp32 in a half-precision graph (`tfc.optimizers.precision.half`). Numbers that
are added need a guard only if -inf may be among them: others leave the mean of the values.

It is written before precision is set, not for the plan alone: so the passes check it by its
numbers, the scores are values that the range analysis sees, and what is compiled is what ran.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import (
    add_constant,
    attribute,
    insert_before,
    is_op,
    known_shape,
    replace_value,
    scalar,
)
from tfc.optimizers.passes import Refusal, refusal

KIND = "explicit_attention"
_MASK = 3
_HEADS_RANK = 4
_SWAP = (0, 1, 3, 2)
_GROUP_AXIS = 2
# Of the lowest number: its exponential is 0, and no score is far enough above it to overflow.
_LOW = 0.5
# What these give holds none of the numbers that masks are made with.
_NOT_OF_MASKS = frozenset(
    {"MatMul", "Gemm", "Attention", "Softmax", "LayerNormalization", "RMSNormalization", "Shape"}
)
_OPTIONS = ("softcap", "q_num_heads", "qk_matmul_output_mode")


@dataclass(frozen=True)
class Match:
    """The block, the factor on its queries, how often keys are repeated, and its mask.

    `guarded` if a row may have no key to see; `wide` is the type of the softmax where it is another
    than that of the queries.
    """

    attention: ir.Node
    scale: float
    repeats: int
    mask: ir.Value | None
    guarded: bool
    wide: ir.DataType | None


class ExplicitAttention:
    """The fusion; see the module's docstring."""

    name = "write attention as products"
    anchors = ("Attention",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Conditions 1 to 3."""
        if node.domain not in ("", "ai.onnx"):
            return None
        query, key = (known_shape(value) for value in node.inputs[:2])
        problem = _not_plain(node) or _unknown_heads(query, key)
        if problem or query is None or key is None:
            return refusal(KIND, node, problem)
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        guarded = mask is not None and _may_hide_every_key(mask)
        wide = _softmax_type(node)
        if guarded and wide is not None:
            return refusal(KIND, node, "a row may be masked throughout, and the softmax is wider")
        head_dim, repeats = int(query[3]), int(query[1]) // int(key[1])
        scale = float(attribute(node, "scale", None) or head_dim**-0.5)
        return Match(node, scale, repeats, mask, guarded, wide)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put the products in place of the block."""
        writer = _Writer(model, match.attention)
        query, key, value = match.attention.inputs[:3]
        assert query is not None
        assert key is not None
        assert value is not None
        if match.scale != 1.0:
            query = writer.op("Mul", query, writer.number("attention_scale", match.scale))
        if match.repeats > 1:
            key, value = (writer.repeated(each, match.repeats) for each in (key, value))
        scores = writer.op("MatMul", query, writer.op("Transpose", key, perm=_SWAP), name="scores")
        if match.wide is not None:
            scores = writer.op("Cast", scores, to=match.wide)
        masked = writer.masked(scores, match)
        weights = writer.op("Softmax", masked, name="softmax", axis=-1)
        if match.guarded:
            zero = writer.number("attention_no_key", 0.0)
            weights = writer.op("Where", writer.op("IsNaN", weights), zero, weights)
        if match.wide is not None:
            weights = writer.op("Cast", weights, to=writer.dtype)
        result = writer.op("MatMul", weights, value)
        insert_before(match.attention, writer.nodes)
        writer.nodes[-1].name = match.attention.name
        replace_value(match.attention.outputs[0], result)


class _Writer:
    """The nodes of one block, named after its `Attention`."""

    def __init__(self, model: ir.Model, attention: ir.Node) -> None:
        query = attention.inputs[0]
        assert query is not None
        self.nodes: list[ir.Node] = []
        self.dtype = query.dtype or ir.DataType.FLOAT
        self._model = model
        self._name = attention.name

    def op(
        self, op_type: str, *operands: ir.Value, name: str = "", **attributes: object
    ) -> ir.Value:
        """A node with one result."""
        own = f"{self._name}_{name}" if name and self._name else None
        self.nodes.append(ir.node(op_type, operands, attributes, name=own))  # type: ignore[arg-type]
        return self.nodes[-1].outputs[0]

    def number(self, name: str, number: float, dtype: ir.DataType | None = None) -> ir.Value:
        """A constant, of the queries' type unless another is given."""
        kind = dtype or self.dtype
        suffix = "" if kind == ir.DataType.FLOAT else f"_{kind.name.lower()}"
        return add_constant(self._model, name + suffix, np.array(number, kind.numpy()))

    def masked(self, scores: ir.Value, match: Match) -> ir.Value:
        """The scores with the mask on them."""
        if match.mask is None:
            return scores
        if match.mask.dtype != ir.DataType.BOOL:
            mask, kind = match.mask, match.wide or self.dtype
            if mask.dtype not in (None, kind):
                mask = self.op("Cast", mask, to=kind)
            return self.op("Add", scores, mask, name="masked")
        kind = match.wide or self.dtype
        if match.guarded:
            low = self.number("attention_never", -np.inf, kind)
        else:
            low = self.number("attention_low", _LOW * float(kind.min), kind)
        return self.op("Where", match.mask, scores, low, name="masked")

    def repeated(self, heads: ir.Value, repeats: int) -> ir.Value:
        """`[batch, groups, sequence, head_dim]` with each group as often as queries share it."""
        batch, groups, length, head_dim = known_shape(heads) or ()
        axis = add_constant(self._model, "group_axis", np.array([_GROUP_AXIS], np.int64))
        times = np.ones(_HEADS_RANK + 1, np.int64)
        times[_GROUP_AXIS] = repeats
        several = add_constant(self._model, f"repeat_{repeats}", times)
        target = np.array([0, int(groups) * repeats, -1, int(head_dim)], np.int64)
        shape = add_constant(self._model, f"repeated_{target[1]}_{target[3]}", target)
        wide = self.op("Expand", self.op("Unsqueeze", heads, axis), several)
        result = self.op("Reshape", wide, shape)
        result.type = heads.type
        result.shape = ir.Shape([batch, int(target[1]), length, head_dim])
        return result


def _not_plain(node: ir.Node) -> str:
    """Condition 1, as far as the node tells: what it does beyond the products; empty if nothing."""
    if any(value is not None for value in node.inputs[_MASK + 1 :]):
        return "it reads a cache"
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "more than its result is used"
    if attribute(node, "is_causal", 0):
        return "it is causal"
    used = [name for name in _OPTIONS if attribute(node, name, 0)]
    return f"it has {used[0]}" if used else ""


def _unknown_heads(query: tuple[int | str, ...] | None, key: tuple[int | str, ...] | None) -> str:
    """The rest of condition 1, and condition 2."""
    if query is None or key is None:
        return "the shapes of its queries and keys are not known"
    if len(query) != _HEADS_RANK or len(key) != _HEADS_RANK:
        return "its heads are not split"
    numbers = (query[1], query[3], key[1], key[3])
    if not all(isinstance(number, int) for number in numbers) or int(query[1]) % int(key[1]):
        return "its heads are not known"
    return ""


def _softmax_type(node: ir.Node) -> ir.DataType | None:
    """The type that the softmax is asked for in, if it is wider than the queries'."""
    query = node.inputs[0]
    asked = attribute(node, "softmax_precision", 0)
    wanted = ir.DataType(asked) if asked else None
    return wanted if query is not None and wanted not in (None, query.dtype) else None


def _rows_differ(mask: ir.Value) -> bool:
    """Whether the mask has a row for each query, or is one of such rows, as far as is known."""
    node = mask.producer()
    while node is not None and is_op(node, "Slice") and node.inputs[0] is not None:
        mask = node.inputs[0]
        node = mask.producer()
    shape = known_shape(mask)
    return shape is None or len(shape) < 2 or shape[-2] != 1


def _may_hide_every_key(mask: ir.Value) -> bool:
    """Whether -inf, or false, may stand in a whole row that has a meaning."""
    if not _rows_differ(mask):
        return False
    return mask.dtype == ir.DataType.BOOL or _may_hold_infinity(mask)


def _may_hold_infinity(mask: ir.Value) -> bool:
    """Whether the mask is made with -inf, or of an input of the graph that may hold it."""
    seen: set[ir.Value] = set()
    todo: list[ir.Value | None] = [mask]
    while todo:
        value = todo.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        number, node = scalar(value), value.producer()
        given = value.is_graph_input() and value.dtype == mask.dtype
        if given or (number is not None and np.isneginf(number)):
            return True
        if node is not None and node.op_type not in _NOT_OF_MASKS:
            bounded = is_op(node, "Max") and any(scalar(v) is not None for v in node.inputs)
            todo += () if bounded else node.inputs
    return False
