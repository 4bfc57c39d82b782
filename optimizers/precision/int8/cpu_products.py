"""Products of a constant matrix → integer products, as ONNX Runtime's CPU provider runs them best.

Before, with the bias of the layer in an `Add`, a `Sum` or the `Gemm` itself::

    y = MatMul(x, W) + b

After::

    y = com.microsoft.MatMulIntegerToFloat(q, V, x_scale, w_scale, x_zero, , b)

with `x ≈ x_scale·(q − x_zero)` in uint8 and `W ≈ w_scale·V` in int8, one scale for each column.
Sums are 32-bit integers; the scales and the bias are applied in fp32 while a block of the result
is still in the cache. Of all forms this one is the fastest: on a core with VNNI 3.1 to 4.2 times
the fp32 product (`perf/int8_products.py`), and 2.6 times our fp32 for all of MiniLM at 32×128
(`perf/int8_forms.py`). Every activation is quantised once, whoever reads it: the query, key and
value projections share it. One packed product for the three is no faster with more than a few
rows, for its result has to be split.

The activation is uint8 and the weight int8, because VNNI multiplies those. An int8 activation has
no kernel (a quarter of the speed of fp32), a uint8 weight takes twice as long. On x86 without VNNI
the product of uint8 and int8 saturates; sessions convert the weights there (`tfc.vnni`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tfc.errors import BadInput, UsageError
from tfc.optimizers.graph import (
    add_constant,
    attribute,
    constant,
    insert_before,
    is_op,
    only_user,
    replace_value,
    set_type,
)
from tfc.optimizers.precision.int8.sites import sites_of
from tfc.optimizers.precision.int8.weights import quantized_weight

DOMAIN = "com.microsoft"
_GEMM_BIAS = 2


@dataclass(frozen=True)
class Quantized:
    """An activation in uint8: `scale·(values − zero)`, each a value of the graph."""

    values: ir.Value
    scale: ir.Value
    zero: ir.Value


Matrix = npt.NDArray[np.float32]
Quantize = Callable[[ir.Node, ir.Value], Quantized]
"""Quantises a value in front of the first node that reads it so."""


@dataclass(frozen=True)
class _Bias:
    """A constant vector that is added to a product, and the node behind which it is in.

    `rest` is what else that node adds, in its order.
    """

    vector: ir.Value | None
    last: ir.Node
    rest: tuple[ir.Value, ...] = ()


@dataclass
class _Writer:
    """One rewrite under way: what has been quantised so far."""

    model: ir.Model
    quantize: Quantize
    activations: dict[ir.Value, Quantized] = field(default_factory=dict)
    weights: dict[tuple[ir.Value, bool, float], tuple[ir.Value, ir.Value]] = field(
        default_factory=dict
    )

    def write(self, node: ir.Node) -> None:
        """Put the integer product in place of a site and of the addition of its bias."""
        x = node.inputs[0]
        assert x is not None
        if x not in self.activations:
            self.activations[x] = self.quantize(node, x)
        q = self.activations[x]
        weight, scale = self._weight_of(node)
        bias = _gemm_bias(self.model, node) if node.op_type == "Gemm" else _added_bias(node)
        inputs: list[ir.Value | None] = [q.values, weight, q.scale, scale, q.zero]
        if bias.vector is not None:
            inputs += [None, bias.vector]
        product = ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN, name=node.name)
        insert_before(node, [product])
        out = product.outputs[0]
        old = bias.last.outputs[0]
        set_type(out, ir.DataType.FLOAT, old.shape)
        if bias.rest:
            total = ir.node("Sum", [out, *bias.rest], name=bias.last.name)
            insert_before(bias.last, [total])
            out = total.outputs[0]
        replace_value(old, out)

    def _weight_of(self, node: ir.Node) -> tuple[ir.Value, ir.Value]:
        """The weight in int8, [in, out], and the scale of each column, made once for a matrix."""
        source = node.inputs[1]
        assert source is not None
        key = (source, bool(attribute(node, "transB", 0)), float(attribute(node, "alpha", 1.0)))
        if key not in self.weights:
            matrix = _matrix(source)
            made = quantized_weight(np.ascontiguousarray(matrix.T) if key[1] else matrix, axis=1)
            scales = made.scales * np.float32(key[2])
            self.weights[key] = (
                add_constant(self.model, f"{source.name}.int8", made.values),
                add_constant(self.model, f"{source.name}.scale", scales),
            )
        return self.weights[key]


def to_integer_products(model: ir.Model, sites: Collection[str], quantize: Quantize) -> None:
    """Compute these sites in integers, in place.

    Args:
        model: an fp32 graph lowered for `onnxruntime`, in topological order.
        sites: the names of their nodes (`tfc.optimizers.precision.int8.sites`).
        quantize: called once for every activation, with the first of the nodes that read it.

    Raises:
        UsageError: a name is not that of a site, or a Gemm adds what is not a constant vector. The
            model is as it was.
        BadInput: a weight is not finite. The model is as it was.
    """
    nodes = _nodes_of(model, sites)
    for node in nodes:
        _check(node)
    if not nodes:
        return
    writer = _Writer(model, quantize)
    for node in nodes:
        writer.write(node)
    RemoveUnusedNodesPass()(model)
    model.opset_imports[DOMAIN] = 1


def _nodes_of(model: ir.Model, sites: Collection[str]) -> list[ir.Node]:
    """The nodes in the graph's order."""
    known = {site.node for site in sites_of(model)}
    for name in sites:
        if name not in known:
            raise UsageError(
                f"there is no product of a constant matrix called '{name}'",
                fix="Choose among the nodes that tfc.optimizers.precision.int8.sites_of gives",
            )
    wanted = set(sites)
    return [node for node in model.graph if node.name in wanted]


def _check(node: ir.Node) -> None:
    weight = node.inputs[1]
    assert weight is not None
    if not np.isfinite(_matrix(weight)).all():
        raise BadInput(
            f"the weight '{weight.name}' holds numbers that are not finite",
            where=str(node.name),
            fix="Check the checkpoint: such a model predicts nothing",
        )
    added = _gemm_operand(node)
    if added is not None and _shape(added) not in ((), (1,), (_width(node),), (1, _width(node))):
        raise UsageError(
            "this Gemm adds a matrix, and an integer product adds a constant vector",
            where=str(node.name),
            fix="Leave it in fp32",
        )


def _gemm_bias(model: ir.Model, node: ir.Node) -> _Bias:
    """The bias of a Gemm: its third operand times `beta`."""
    source, width = _gemm_operand(node), _width(node)
    array = constant(source)
    if source is None or array is None:
        return _Bias(None, node)
    beta = np.float32(attribute(node, "beta", 1.0))
    if beta == 1 and array.shape == (width,):
        return _Bias(source, node)
    vector = np.broadcast_to(array.reshape(-1) * beta, (width,))
    return _Bias(add_constant(model, f"{source.name}.vector", vector), node)


def _added_bias(node: ir.Node) -> _Bias:
    """The constant vector that an `Add` or `Sum`, the only reader of the product, adds to it."""
    product = node.outputs[0]
    user = only_user(product)
    if user is None or not (is_op(user, "Add") or is_op(user, "Sum")):
        return _Bias(None, node)
    others = [v for v in user.inputs if v is not None and v is not product]
    vector = next((v for v in others if _shape(v) == (_width(node),)), None)
    if vector is None:
        return _Bias(None, node)
    return _Bias(vector, user, tuple(v for v in others if v is not vector))


def _gemm_operand(node: ir.Node) -> ir.Value | None:
    """What a Gemm adds to its product."""
    is_there = node.op_type == "Gemm" and len(node.inputs) > _GEMM_BIAS
    return node.inputs[_GEMM_BIAS] if is_there else None


def _width(node: ir.Node) -> int:
    """How many columns the product of a site has."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return weight.const_value.shape.numpy()[0 if attribute(node, "transB", 0) else 1]


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a constant, None for any other value."""
    return None if value.const_value is None else tuple(value.const_value.shape.numpy())


def _matrix(weight: ir.Value) -> Matrix:
    array = constant(weight)
    assert array is not None
    return array
