"""What additions and multiplications compute, told as a polynomial.

`0.5 * x * (1 + t)`, `(x + x * t) / 2` and every other order of the same operations give the same
coefficients, so a fusion compares those instead of matching each order.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tfc.optimizers.raising.primitives import number, without_cast

# The exponent of each variable → the coefficient.
Polynomial = dict[tuple[int, ...], float]

# The functions that are told this way are of degree 4 or less, over a handful of operations.
_MAX_EXPONENT = 4
_MAX_STEPS = 8


def polynomial(
    value: ir.Value | None, variables: Sequence[ir.Value], steps: int = _MAX_STEPS
) -> Polynomial | None:
    """The value as a polynomial in the variables; None if it needs anything else than these,
    numbers, `Add`, `Sub`, `Mul`, `Div` by a number and `Pow` to one.
    """
    if value is None:
        return None
    value = without_cast(value)
    if value in variables:
        return {tuple(int(value is v) for v in variables): 1.0}
    constant = number(value)
    if constant is not None:
        return {(0,) * len(variables): constant}
    node = value.producer()
    if node is None or steps == 0 or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type not in ("Add", "Sub", "Mul", "Div", "Pow"):
        return None
    left = polynomial(node.inputs[0], variables, steps - 1)
    if left is None:
        return None
    if node.op_type in ("Div", "Pow"):
        return _by_number(node.op_type, left, number(node.inputs[1]))
    right = polynomial(node.inputs[1], variables, steps - 1)
    if right is None:
        return None
    if node.op_type == "Mul":
        return _product(left, right)
    return _sum(left, right, -1.0 if node.op_type == "Sub" else 1.0)


def _by_number(op_type: str, left: Polynomial, right: float | None) -> Polynomial | None:
    if op_type == "Div":
        return {e: c / right for e, c in left.items()} if right else None
    if right is None or not right.is_integer() or not 1 <= right <= _MAX_EXPONENT:
        return None
    power = left
    for _ in range(int(right) - 1):
        power = _product(power, left)
    return power


def _sum(left: Polynomial, right: Polynomial, sign: float) -> Polynomial:
    return {e: left.get(e, 0.0) + sign * right.get(e, 0.0) for e in (*left, *right)}


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    product: Polynomial = {}
    for e, a in left.items():
        for f, b in right.items():
            exponents = tuple(i + j for i, j in zip(e, f, strict=True))
            product[exponents] = product.get(exponents, 0.0) + a * b
    return product
