"""A fault that an engine makes while it fuses: found in sub-graphs that are cut, not watched.

Where every inner value is an output, an engine fuses nothing, and what its fusions get wrong is
not there. So whole sub-graphs run, each with one output: first the shortest beginning of the graph
that is wrong, then the shortest end of that. Both are found by bisection, which supposes that a
longer sub-graph shows what a shorter one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.bisection.cutting import Run, computed, nodes_of_part
from tfc.optimizers.bisection.gap import Array, Gap
from tfc.optimizers.executor import Feed, Outputs


@dataclass(frozen=True)
class Segment:
    """The shortest sub-graph found that an engine gets wrong: cut `at` values, up to `value`."""

    at: tuple[str, ...]
    value: str
    nodes: tuple[ir.Node, ...]
    gap: Gap


def wrong_segment(
    model: ir.Model,
    feed: Feed,
    expected: Outputs,
    run: Run,
    compare: Callable[[str, Array], Gap],
) -> Segment | None:
    """The shortest sub-graph that is wrong on exact inputs; None if no beginning is wrong.

    Args:
        model: the engine's graph.
        feed: its inputs.
        expected: the values of its nodes, in its order.
        run: what runs a graph as the engine does.
        compare: how far a value of this name is off.
    """
    names = list(expected)

    def gap(start: int, end: int) -> Gap:
        given = {name: expected[name] for name in names[: start + 1]}
        name = names[end]
        return compare(name, computed(model, feed, [name], given, run)[name])

    last = len(names) - 1
    if not gap(-1, last).beyond:
        return None
    end = _first_true(range(last + 1), lambda place: gap(-1, place).beyond)
    start = _last_true(range(-1, end), lambda place: gap(place, end).beyond)
    at = tuple(names[: start + 1])
    return Segment(at, names[end], tuple(nodes_of_part(model, at, names[end])), gap(start, end))


def _first_true(places: Sequence[int], holds: Callable[[int], bool]) -> int:
    """The first place that holds, by bisection; the last one is known to."""
    low, high = 0, len(places) - 1
    while low < high:
        middle = (low + high) // 2
        if holds(places[middle]):
            high = middle
        else:
            low = middle + 1
    return places[low]


def _last_true(places: Sequence[int], holds: Callable[[int], bool]) -> int:
    """The last place that holds, by bisection; the first one is known to."""
    low, high = 0, len(places) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if holds(places[middle]):
            low = middle
        else:
            high = middle - 1
    return places[low]
