"""The input on which an engine is furthest from PyTorch: one row, where one row shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.manifest import BATCH, Manifest
from tfc.runtime.padding import Feed
from tfc.runtime.parity import Tolerance, failures, parity_of
from tfc.steps.cases import Cases, real_values
from tfc.steps.reference import Recorded, Reference

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
Call = Callable[[Feed], Outputs]


@dataclass(frozen=True)
class BisectInput:
    """The input, what PyTorch gives for it, and in words which one it is."""

    feed: Feed
    expected: Outputs
    axes: dict[str, list[int | str]]
    described: str

    def failures(self, got: Outputs, tolerance: Tolerance) -> tuple[list[str], float]:
        """Why these outputs fail, and their largest difference."""
        return _failures(self.expected, got, self.axes, self.feed, tolerance)


def bisect_input(
    manifest: Manifest,
    cases: Cases,
    reference: Reference | Recorded,
    call: Call,
    found: tuple[Sequence[Array], Sequence[Array]],
    tolerance: Tolerance,
) -> BisectInput:
    """The input to bisect on.

    Args:
        manifest: of the artifact.
        cases: all inputs.
        reference: PyTorch.
        call: runs the engine, or the graph in its place.
        found: PyTorch's values and the engine's, as `cases` gives them.
        tolerance: the engine's.
    """
    number = _worst_feed(cases, *found)
    feed = cases.feeds[number]
    expected = reference(feed)
    of = f"batch {number + 1} of {len(cases.feeds)} of {cases.origin}"
    whole = BisectInput(feed, expected, cases.axes, of)
    if isinstance(reference, Recorded) or not _by_rows(manifest):
        return whole
    rows = len(next(iter(feed.values())))
    worst: tuple[float, int] | None = None
    for row in range(rows):
        one = _row(feed, row)
        right = {name: array[row : row + 1] for name, array in expected.items()}
        reasons, largest = _failures(right, call(one), cases.axes, one, tolerance)
        rank = largest if reasons else -1.0
        if worst is None or rank > worst[0]:
            worst = rank, row
    fails = bool(whole.failures(call(feed), tolerance)[0])
    if worst is None or (worst[0] < 0 and fails):
        return whole
    one = _row(feed, worst[1])
    return BisectInput(one, reference(one), cases.axes, f"row {worst[1] + 1} of {of}")


def _worst_feed(cases: Cases, expected: Sequence[Array], got: Sequence[Array]) -> int:
    outputs = len(cases.axes)
    distances = [_largest(e, g) for e, g in zip(expected, got, strict=True)]
    by_feed = [max(distances[i : i + outputs]) for i in range(0, len(distances), outputs)]
    return int(np.argmax(by_feed))


def _largest(expected: Array, got: Array) -> float:
    difference = np.abs(expected.astype(np.float64) - got)
    return float(np.where(np.isfinite(got), difference, np.inf).max(initial=0.0))


def _by_rows(manifest: Manifest) -> bool:
    """Whether the first axis of everything is the batch."""
    specs = [*manifest.signature.inputs, *manifest.signature.outputs]
    return all(spec.shape and spec.shape[0] == BATCH for spec in specs)


def _row(feed: Feed, row: int) -> Feed:
    return {name: np.ascontiguousarray(array[row : row + 1]) for name, array in feed.items()}


def _failures(
    expected: Outputs,
    got: Outputs,
    axes: dict[str, list[int | str]],
    feed: Feed,
    tolerance: Tolerance,
) -> tuple[list[str], float]:
    right, found = (
        [real_values(outputs[name], own, feed) for name, own in axes.items()]
        for outputs in (expected, got)
    )
    parity = parity_of(right, found, tolerance)
    return failures(parity, tolerance), parity.max_abs
