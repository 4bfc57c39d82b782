"""The heads that a linear layer's result is taken apart into, however the graph does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from tfc.optimizers.graph import is_op, known_shape, only_user
from tfc.optimizers.layout import HeadColumns, head_columns
from tfc.optimizers.lowering.heads import Projection, projection_of

# What moves or chooses elements of its first input and computes nothing.
_MOVING = ("Reshape", "Slice", "Split", "Squeeze", "Gather", "Transpose", "Unsqueeze", "Identity")
_ATTENTION = ("Attention", "Softmax")


@dataclass(frozen=True)
class HeadTensor:
    """A rank-4 tensor of heads, and which columns of the layer's result stand in it."""

    value: ir.Value
    found: HeadColumns

    @property
    def count(self) -> int:
        """The number of heads."""
        return int(self.found.columns.shape[0])

    @property
    def head_dim(self) -> int:
        """The size of one head."""
        return int(self.found.columns.shape[1])


@dataclass(frozen=True)
class ProjectedHeads:
    """A linear layer, and all that its result is taken apart into."""

    layer: Projection
    parts: tuple[HeadTensor, ...]

    @property
    def readers(self) -> frozenset[ir.Node]:
        """The attentions (or softmaxes, where there is no attention) that the heads lead to."""
        return frozenset(node for part in self.parts for node in _attentions_after(part.value))


def projected_heads_of(product: ir.Node) -> ProjectedHeads | None:
    """The heads behind a product with a constant weight, or None if its result is used otherwise.

    Each use has to lead, by moving elements only, to a tensor `[batch, sequence, heads, head_dim]`
    or `[batch, heads, sequence, head_dim]`. The first such tensor on the way counts, or the
    second if it is the first one transposed.
    """
    flat = product.outputs[0]
    following = only_user(flat)
    if following is not None and is_op(following, "Add"):
        flat = following.outputs[0]
    layer = projection_of(flat)
    if isinstance(layer, str) or layer.product is not product:
        return None
    parts = _parts(flat)
    return ProjectedHeads(layer, parts) if parts else None


def _parts(flat: ir.Value) -> tuple[HeadTensor, ...] | None:
    found: list[HeadTensor] = []
    open_values = [flat]
    while open_values:
        value = open_values.pop(0)
        heads = _heads(flat, value)
        if heads is not None:
            found.append(_heads(flat, _transposed(value)) or heads)
            continue
        if value.is_graph_output() or not all(_moves(use) for use in value.uses()):
            return None
        open_values += [out for use in value.uses() for out in use.node.outputs if out.uses()]
    return tuple(found)


def _heads(flat: ir.Value, value: ir.Value) -> HeadTensor | None:
    shape, before = known_shape(value), known_shape(flat)
    if shape is None or before is None or len(shape) != 4 or not isinstance(shape[3], int):
        return None
    if shape[0] != before[0] or before[1] not in shape[1:3] or value.is_graph_output():
        return None
    columns = head_columns(flat, value)
    return HeadTensor(value, columns) if columns is not None else None


def _transposed(value: ir.Value) -> ir.Value:
    """The value with heads and sequence swapped, if that is all that it is read for."""
    user = only_user(value)
    swapped = user is not None and is_op(user, "Transpose")
    return user.outputs[0] if user is not None and swapped else value


def _attentions_after(value: ir.Value) -> set[ir.Node]:
    """The first attentions on each way from the value."""
    found: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    open_values = [value]
    while open_values:
        for user in {use.node for use in open_values.pop().uses()} - seen:
            seen.add(user)
            if user.op_type in _ATTENTION:
                found.add(user)
            else:
                open_values += user.outputs
    return found


def _moves(use: Any) -> bool:
    return use.node.op_type in _MOVING and use.idx == 0
