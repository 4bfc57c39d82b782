"""Convert to half precision, measure, keep in fp32 what loses, until the gate holds.

The gate (`Gate`) holds where each output's root mean square error against the fp32 graph is at most
`NOISE_FACTOR` times that of the fp32 graph with the roundings that no half-precision kernel can
leave out (`tfc.optimizers.precision.noise`), both measured on the same inputs.

Where it does not hold, the nodes that add most error are found (`tfc.optimizers.precision.locate`)
and values are pinned to fp32, with the nodes that give and read them:

1. a value that overflows or underflows;
2. of a node that loses (a norm of numbers whose mean is large, a difference of two that are nearly
   the same): what it reads, for the rounding of that is what it makes large. What is in fp32
   already is passed over, and what it was computed from is pinned. Of several the largest come
   first: they have the coarsest rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfc.optimizers.attention_products import all_attention_products
from tfc.optimizers.executor import Feed, Outputs, outputs_of
from tfc.optimizers.graph import constant, module_of
from tfc.optimizers.precision.half import LAYOUT, HalfReport, half_from_fp32
from tfc.optimizers.precision.locate import Loss, losses
from tfc.optimizers.precision.noise import FACTORS, rounded_products
from tfc.optimizers.precision.types import HalfType
from tfc.runtime.parity import FP32_TOLERANCE, NOISE_FACTOR

# Each round converts, runs and compares the graph. Trouble of one kind in each of 12 layers may
# show in one layer after the other.
MAX_ROUNDS = 16
# Nodes that add at least this share of the worst one's error are repaired in the same round: the
# same place of every layer, as a rule.
_AS_BAD = 0.5
# Below this, fp16 loses bits. bf16 has the exponents of fp32.
_SMALLEST_NORMAL = 2.0**-14

Select = Callable[[Sequence[Outputs]], Sequence[Outputs]]


@dataclass(frozen=True)
class Gate:
    """How far an output of the half graph is off, what is allowed, and what rounding alone gives.

    All are root mean squares in the output's own units. `output` is the worst one.
    """

    output: str
    error: float
    allowed: float
    floor: float

    @property
    def holds(self) -> bool:
        """Whether the error is finite and no larger than allowed."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Pin:
    """A value kept in fp32, the node that overflows or loses because of it, its module, and why."""

    value: str
    node: str
    module: str
    why: str


@dataclass(frozen=True)
class Repaired:
    """The converted graph, what was pinned beyond the range analysis, and the last measurement."""

    model: ir.Model
    report: HalfReport
    pins: tuple[Pin, ...]
    gate: Gate
    rounds: int


def repaired_half(
    model: ir.Model,
    half: HalfType,
    feeds: Sequence[Feed],
    too_large: Mapping[str, str],
    select: Select = list,
    *,
    at_least: float = 0.0,
    first: Sequence[Pin] = (),
) -> Repaired:
    """The graph in half precision with pins until the gate holds, or nothing is left to pin.

    Args:
        model: an fp32 graph of standard operators in topological order.
        half: the type.
        feeds: real inputs.
        too_large: values that range analysis pins already.
        select: what of the outputs counts (positions of real tokens).
        at_least: an error (root mean square) that is allowed whatever the noise floor is: what
            something else adds anyway.
        first: pins to begin with, such as another checkpoint of the same architecture needed. They
            are measured like any others.
    """
    expected = select(outputs_of(model, feeds))
    floor = select(outputs_of(rounded_products(model, half), feeds))
    pins: dict[str, Pin] = {pin.value: pin for pin in first}
    for number in range(1, MAX_ROUNDS + 1):
        converted, report = half_from_fp32(model, half, {*too_large, *pins})
        gate = gate_of(expected, select(outputs_of(converted, feeds)), floor)
        gate = dataclasses.replace(gate, allowed=max(gate.allowed, at_least))
        if gate.holds or number == MAX_ROUNDS:
            break
        found = _pins(losses(model, converted, feeds), converted, half)
        more = {pin.value: pin for pin in found if pin.value not in {*too_large, *pins}}
        if not more:
            break
        pins |= more
    return Repaired(converted, report, tuple(pins.values()), gate, number)


def measured(
    model: ir.Model, converted: ir.Model, half: HalfType, feeds: Sequence[Feed], select: Select
) -> Gate:
    """How far a converted graph is off, and how far it may be."""
    graphs = (model, converted, rounded_products(model, half))
    return gate_of(*(select(outputs_of(graph, feeds)) for graph in graphs))


def gate_of(expected: Sequence[Outputs], got: Sequence[Outputs], floor: Sequence[Outputs]) -> Gate:
    """The gate of the output that is furthest beyond what it may be, or closest to it."""
    gates = [_gate(name, expected, got, floor) for name in expected[0]]
    return max(gates, key=lambda gate: gate.error / (gate.allowed or 1.0))


def _gate(
    name: str, expected: Sequence[Outputs], got: Sequence[Outputs], floor: Sequence[Outputs]
) -> Gate:
    exact, found, noise = (
        np.concatenate([np.asarray(one[name], np.float64).reshape(-1) for one in outputs])
        for outputs in (expected, got, floor)
    )
    finite = np.isfinite(exact)
    scale = float(np.abs(exact[finite]).max(initial=0.0)) or 1.0
    lowest = _rms(exact[finite], noise[finite])
    same = np.array_equal(finite, np.isfinite(found))
    error = _rms(exact[finite], found[finite]) if same else float("inf")
    return Gate(name, error, max(NOISE_FACTOR * lowest, FP32_TOLERANCE * scale), lowest)


def _rms(exact: np.ndarray, found: np.ndarray) -> float:
    return float(np.sqrt(np.mean((exact - found) ** 2))) if exact.size else 0.0


def _pins(found: Sequence[Loss], converted: ir.Model, half: HalfType) -> list[Pin]:
    """What to keep in fp32 next, because of the nodes that add most error."""
    nodes = {node.name: node for node in converted.graph}
    factors = {each.output: each.operands for each in all_attention_products(converted)}
    largest = {loss.value: loss.largest for loss in found}
    worst = found[0].added if found else 0.0
    pins: dict[str, Pin] = {}
    for loss in found:
        if loss.added <= 0 or loss.added < _AS_BAD * worst:
            break
        node = nodes[loss.node.name]
        own = _out_of_range(loss, half) and node.outputs[0].dtype == half.dtype
        for value in (
            [loss.value]
            if own
            else _coarsest(_rounded(factors.get(node, _factors(node)), half), largest)
        ):
            why = _why(loss, largest.get(value, 0.0), half)
            pins.setdefault(value, Pin(value, str(node.name), module_of(node), why))
    return list(pins.values())


def _coarsest(values: Sequence[str], largest: Mapping[str, float]) -> list[str]:
    """Those with the coarsest rounding: a floating-point type's steps grow with its numbers."""
    sizes = {value: largest.get(value, 0.0) for value in values}
    return [v for v, size in sizes.items() if size >= _AS_BAD * max(sizes.values())]


def _out_of_range(loss: Loss, half: HalfType) -> bool:
    return loss.largest > half.largest or (not half.wide and loss.largest < _SMALLEST_NORMAL)


def _why(loss: Loss, largest: float, half: HalfType) -> str:
    if max(loss.largest, largest) > half.largest:
        return "overflow"
    if not half.wide and loss.largest < _SMALLEST_NORMAL:
        return "underflow"
    if not np.isfinite(loss.error):
        return "not finite"
    return f"lost: {max(1, round(100 * loss.error))} % of its value"


def _factors(node: ir.Node) -> Sequence[ir.Value | None]:
    """What a node reads, a mask aside."""
    return node.inputs[:FACTORS] if node.op_type == "Attention" else node.inputs


def _rounded(read: Sequence[ir.Value | None], half: HalfType) -> list[str]:
    """The nearest values on which these values of the converted graph depend and that are rounded.

    Reshaping does not round, so what it reads belongs to what it gives.
    """
    found: dict[str, None] = {}
    seen: set[ir.Value] = set()
    todo = list(read)
    while todo:
        value = todo.pop()
        if value is None or value in seen or constant(value) is not None:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast":
            source = producer.inputs[0]
            rounded = source is not None and half.dtype in (value.dtype, source.dtype)
            value = source if rounded and source is not None else value
        else:
            rounded = value.dtype == half.dtype
        producer = value.producer()
        if rounded:
            found[str(value.name)] = None
        if producer is not None and (not rounded or producer.op_type in LAYOUT):
            todo += producer.inputs
    return list(found)
