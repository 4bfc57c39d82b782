"""Small questions about an onnx_ir graph, asked by every pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

MODULE_KEY = "tfc.module"


def module_of(node: ir.Node) -> str:
    """The path of the PyTorch module that the node came from, empty if unknown."""
    return node.metadata_props.get(MODULE_KEY, "")


def is_op(node: ir.Node | None, op_type: str, domain: str = "") -> bool:
    """Whether the node is this operator (of the standard domain unless another is given)."""
    return node is not None and node.op_type == op_type and node.domain in _same_domain(domain)


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The value's array if it is known at compile time."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def scalar(value: ir.Value | None) -> float | None:
    """The value as a number if it is a constant with one element."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute, or the operator's default."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, or None if there are more, or it is a graph output."""
    users = list(value.uses())
    if len(users) != 1 or value.is_graph_output():
        return None
    return users[0].node


def known_shape(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """The value's shape with names for dynamic axes; None if any axis is unknown."""
    if value is None or value.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in value.shape]
    return None if any(d is None for d in dims) else tuple(d for d in dims if d is not None)


def same_shape(first: ir.Value, second: ir.Value) -> bool:
    """Whether both shapes are known and equal, dynamic axes by name."""
    shape = known_shape(first)
    return shape is not None and shape == known_shape(second)


def broadcast_shape(
    first: ir.Value | None, second: ir.Value | None
) -> tuple[int | str, ...] | None:
    """The shape of an elementwise result; None if it is not known."""
    a, b = known_shape(first), known_shape(second)
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    a, b = ((1,) * (rank - len(shape)) + shape for shape in (a, b))
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        return None
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def ancestors(value: ir.Value) -> list[ir.Node]:
    """Every node that the value depends on, each after those that it depends on."""
    order: list[ir.Node] = []
    done: set[ir.Node] = set()

    stack: list[tuple[ir.Node | None, bool]] = [(value.producer(), False)]
    while stack:
        node, finished = stack.pop()
        if node is None or node in done:
            continue
        if finished:
            done.add(node)
            order.append(node)
            continue
        stack.append((node, True))
        stack += [(v.producer(), False) for v in node.inputs if v is not None]
    return order


def add_constant(model: ir.Model, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Register an array as an initializer; an equal one of the same name is used again."""
    existing = model.graph.initializers.get(name)
    if existing is not None and np.array_equal(np.asarray(constant(existing)), array):
        return existing
    return add_weight(model, name, ir.tensor(array))


def add_weight(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor, as `tfc.optimizers.computed` gives it, as an initializer."""
    base, number = name, 1
    while name in model.graph.initializers:
        name, number = f"{base}_{number}", number + 1
    tensor.name = name
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def insert_before(anchor: ir.Node, nodes: Sequence[ir.Node], like: ir.Node | None = None) -> None:
    """Insert nodes before `anchor`, with the module path of `like` (default: of the anchor)."""
    source = like or anchor
    for node in nodes:
        if MODULE_KEY in source.metadata_props:
            node.metadata_props[MODULE_KEY] = source.metadata_props[MODULE_KEY]
    assert anchor.graph is not None
    anchor.graph.insert_before(anchor, nodes)


def set_type(value: ir.Value, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    """Type a value anew. (Assigning `dtype` would change the type object that clones share.)"""
    value.type = ir.TensorType(dtype)
    value.shape = shape


def copy_type(old: ir.Value, new: ir.Value) -> None:
    """Give a new value the type and shape of the one that it replaces, as far as known."""
    new.type = old.type
    new.shape = old.shape


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads `old` read `new`, which takes its type, and its name if the
    graph gives `old` as an output.
    """
    copy_type(old, new)
    name, is_output = old.name, old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if is_output:
        old.name = f"{name}_replaced"
        new.name = name


def without_trailing_none(values: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """The inputs of a node without the absent ones at the end.

    Naming an absent last input is legal, but ONNX Runtime 1.31's SkipLayerNormFusion crashes on a
    LayerNormalization that does.
    """
    kept = list(values)
    while kept and kept[-1] is None:
        kept.pop()
    return kept


def nodes_of(model: ir.Model, op_type: str, domain: str = "") -> Iterator[ir.Node]:
    """The graph's nodes of one operator, in order."""
    return (node for node in list(model.graph) if is_op(node, op_type, domain))


def _same_domain(domain: str) -> tuple[str, ...]:
    return ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
