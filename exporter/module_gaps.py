"""How far each module's output is from PyTorch's in a graph, and how far PyTorch's own rounding is.

PyTorch runs in fp32, and once more with other rounding: in the half precision that the graph
computes in, or for an fp32 graph in fp64. The difference of the two, module by module, is the floor
that the graph's difference is held against.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from tfc.exporter.module_values import Array, Call, calls_of, leaving_values
from tfc.exporter.rounding import in_fp64
from tfc.optimizers.bisection.cutting import computed
from tfc.optimizers.bisection.gap import FP32_SHARE, Gap, gap_of
from tfc.optimizers.bisection.places import half_of
from tfc.optimizers.precision.types import HalfType
from tfc.runtime.padding import MASK, Feed

_FP64 = "fp64"
_TOKENS_AXIS = 1


@dataclass(frozen=True)
class ModuleGap:
    """A module's output and the graph's value that stands for it; `gap` is accumulated."""

    module: str
    kind: str
    value: str
    gap: Gap


@dataclass(frozen=True)
class Traced:
    """What a module's submodules gave, and the same with other rounding, by the name of that."""

    calls: list[Call]
    floors: Mapping[str, list[Call]]


def traced(module: torch.nn.Module, feed: Feed, halves: Sequence[HalfType]) -> Traced:
    """Run a module in fp32, in fp64 where it can, and in half precisions.

    Args:
        module: in fp32.
        feed: its inputs.
        halves: the half precisions wanted.
    """
    calls = calls_of(module, feed)
    floors: dict[str, list[Call]] = {}
    for half in halves:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[half.name]
        floors[half.name] = calls_of(copy.deepcopy(module).to(dtype), feed, dtype)
    try:
        with in_fp64(module):
            floors[_FP64] = calls_of(module, feed, torch.float64)
    except (RuntimeError, TypeError):  # an operator met operands of both types
        floors[_FP64] = []
    same = {name: found for name, found in floors.items() if len(found) == len(calls)}
    return Traced(calls, same)


def module_gaps(trace: Traced, model: ir.Model, feed: Feed) -> list[ModuleGap]:
    """The modules whose output has a counterpart in the graph, in the order of their ends."""
    leaving = leaving_values(model, {call.module for call in trace.calls})
    names = {str(v.name) for values in leaving.values() for v in values}
    got = computed(model, feed, names)
    half = half_of(model)
    floors = trace.floors.get(half.name if half is not None else _FP64)
    share = FP32_SHARE if half is None else 2.0**-half.bits
    found = []
    for number, call in enumerate(trace.calls):
        values = [str(v.name) for v in leaving.get(call.module, [])]
        for place, expected in enumerate(call.outputs):
            match = _nearest(expected, values, got)
            if match is None:
                continue
            name, position = match
            floor = floors[number].outputs[place] if floors else None
            arrays = [_at(a, position, feed) for a in (expected, floor) if a is not None]
            value = _at(got[name], None, feed) if position is None else got[name]
            gap = gap_of(arrays[0], value, arrays[1] if floor is not None else None, share)
            found.append(ModuleGap(call.module, call.kind, name, gap))
    return found


def expected_values(trace: Traced, model: ir.Model, feed: Feed) -> dict[str, Array]:
    """PyTorch's arrays for the graph's values that stand for a module's output."""
    leaving = leaving_values(model, {call.module for call in trace.calls})
    names = {str(v.name) for values in leaving.values() for v in values}
    got = computed(model, feed, names)
    found: dict[str, Array] = {}
    for call in trace.calls:
        values = [str(v.name) for v in leaving.get(call.module, [])]
        for expected in call.outputs:
            match = _nearest(expected, values, got)
            if match is not None and match[1] is None:
                found.setdefault(match[0], expected)
    return found


def _nearest(
    expected: Array, values: Sequence[str], got: Mapping[str, Array]
) -> tuple[str, int | None] | None:
    """The value nearest to a module's output; where it has one position only, which that is."""
    candidates: list[tuple[float, str, int | None]] = []
    for name in values:
        array = got[name]
        if array.shape == expected.shape:
            candidates.append((_distance(expected, array), name, None))
        elif _is_one_position(array, expected):
            each = [expected[:, i : i + 1] for i in range(expected.shape[_TOKENS_AXIS])]
            distances = [_distance(one, array) for one in each]
            nearest = int(np.argmin(distances))
            candidates.append((distances[nearest], name, nearest))
    if not candidates or expected.size == 0:
        return None
    _, name, position = min(candidates, key=lambda each: each[0])
    return name, position


def _is_one_position(array: Array, expected: Array) -> bool:
    """Whether it is `[batch, 1, …]` of `[batch, tokens, …]`: what a pass left of it."""
    if array.ndim != expected.ndim or array.ndim <= _TOKENS_AXIS + 1:
        return False
    shape = [*expected.shape]
    shape[_TOKENS_AXIS] = 1
    return list(array.shape) == shape


def _distance(expected: Array, got: Array) -> float:
    difference = np.abs(expected - got)
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0.0))


def _at(array: Array, position: int | None, feed: Feed) -> Array:
    """One position of an array per token, or its real tokens."""
    if position is not None:
        return array[:, position : position + 1]
    mask: Any = feed.get(MASK)
    if mask is None or array.ndim <= _TOKENS_AXIS or array.shape[:2] != mask.shape:
        return array
    return np.asarray(array[mask.astype(bool)])
