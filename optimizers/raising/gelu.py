"""GELU written out → `Gelu` (opset 20).

Before, in any order of the additions and multiplications::

    y = 0.5 * x * (1 + Erf(x / sqrt(2)))
    y = 0.5 * x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x³)))

After::

    y = Gelu(x, approximate="none")         or approximate="tanh"

Fires when:
1. the argument of `Erf` is a multiple of x (of `Tanh`: of x plus a multiple of x³), and the result
   is `a * x + b * x * Erf`. Whatever else is made of these functions is no site; `x * Sigmoid`
   (quick-GELU) has no standard operator;
2. the constants are those above, within `TOLERANCE`;
3. no value in the middle is read elsewhere.

Safe because `Gelu` is defined as exactly this. A constant that is off by a share d (at most
`TOLERANCE`) moves the result by at most 0.3 · d: x² · pdf(x) · d is largest at x = sqrt(2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import insert_before, replace_value
from tfc.optimizers.passes import Refusal, refusal
from tfc.optimizers.raising.polynomial import Polynomial, polynomial
from tfc.optimizers.raising.primitives import escaping, number, readers, without_cast

KIND = "gelu"
GELU_OPSET = 20
# Relative. Models trained in fp16 carry constants rounded to it: sqrt(2) is off by 1.1e-4 then,
# and 0.044715 by 1.5e-4. A constant with two digits is off by 1e-3 and more.
TOLERANCE = 2e-4
_APPROXIMATE = {"Erf": "none", "Tanh": "tanh"}
_FACTOR = {"Erf": 1 / math.sqrt(2), "Tanh": math.sqrt(2 / math.pi)}
_POWERS = {"Erf": {(1,)}, "Tanh": {(1,), (3,)}}
_CUBIC = 0.044715
# Every order of 0.5, x, 1 and x³ that exporters write fits in this many operations.
_MAX_STEPS = 5
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")


@dataclass(frozen=True)
class Match:
    """A site: the input, the last node, and the form of the function."""

    x: ir.Value
    last: ir.Node
    approximate: str


class Gelu:
    """The fusion; see the module's docstring."""

    name = "raise GELU"
    anchors = ("Erf", "Tanh")

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Conditions 1 to 3."""
        reason = ""
        for x in _sources(node.inputs[0]):
            argument = polynomial(node.inputs[0], [x])
            if argument is None or set(argument) != _POWERS[node.op_type]:
                continue
            for last in _results(x, node):
                result = polynomial(last.outputs[0], [x, node.outputs[0]])
                if result is None or set(result) != {(1, 0), (1, 1)}:
                    continue
                reason = _other_constants(node.op_type, argument, result)
                if not reason:
                    return _match(x, node, last)
            if reason:
                return refusal(KIND, node, reason)
        return None

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put `Gelu` in place of the last node."""
        gelu = ir.node(
            "Gelu",
            [match.x],
            {"approximate": match.approximate},
            name=f"{match.last.outputs[0].name}_gelu",
        )
        insert_before(match.last, [gelu])
        replace_value(match.last.outputs[0], gelu.outputs[0])
        model.opset_imports[""] = max(model.opset_imports[""], GELU_OPSET)


def _match(x: ir.Value, node: ir.Node, last: ir.Node) -> Match | Refusal:
    problem = escaping(x, last.outputs[0])
    return refusal(KIND, node, problem) if problem else Match(x, last, _APPROXIMATE[node.op_type])


def _sources(value: ir.Value | None) -> Iterator[ir.Value]:
    """The values that the argument may be a function of, nearest first."""
    level = [value]
    for _ in range(_MAX_STEPS + 1):
        given = [without_cast(v) for v in level if v is not None and number(v) is None]
        values = list(dict.fromkeys(given))
        yield from values
        above = (v.producer() for v in values)
        level = [v for n in above if n is not None and n.op_type in _ARITHMETIC for v in n.inputs]


def _results(x: ir.Value, node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that may be the last of the function, nearest first."""
    level = [node]
    for _ in range(_MAX_STEPS):
        users = [user for n in level for user in readers(n.outputs[0])]
        level = [user for user in users if user is not None and user.op_type in _ARITHMETIC]
        yield from level


def _other_constants(function: str, argument: Polynomial, result: Polynomial) -> str:
    """Condition 2: the constant that is not GELU's, or empty."""
    factor, name = argument[1,], function.lower()
    if not _close(factor, _FACTOR[function]):
        return f"{name} is taken of {factor:.6g} x, not of {_FACTOR[function]:.6g} x"
    cubic = argument.get((3,), factor * _CUBIC) / factor
    if not _close(cubic, _CUBIC):
        return f"the factor of the cube is {cubic:.6g}, not {_CUBIC}"
    a, b = result[1, 0], result[1, 1]
    if not (_close(a, 0.5) and _close(b, 0.5)):
        return f"the result is {a:.6g} x + {b:.6g} x {name}, not 0.5 x (1 + {name})"
    return ""


def _close(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=TOLERANCE)
