"""The input on which an engine is furthest from PyTorch: one row, where one row shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfc.manifest import BATCH, Manifest
from tfc.runtime.padding import Feed
from tfc.runtime.parity import Tolerance, failures, parity_of, tolerance_of
from tfc.steps.cases import Cases, real_values
from tfc.steps.reference import Recorded, Reference

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
Call = Callable[[Feed], Outputs]


@dataclass(frozen=True)
class Judged:
    """Why a graph's outputs fail, their largest difference from PyTorch, and what is allowed."""

    reasons: list[str]
    max_abs: float
    allowed: float


class Given(Protocol):
    """What a graph is bisected on: its inputs, what PyTorch gives for them, and which they are."""

    @property
    def feed(self) -> Feed:
        """The inputs."""

    @property
    def expected(self) -> Outputs:
        """PyTorch's outputs in fp32."""

    @property
    def described(self) -> str:
        """In words which input it is."""

    def judged(self, got: Outputs, exact: bool) -> Judged:
        """Compare outputs of a graph in fp32 (`exact`), or in the engine's precision."""


@dataclass(frozen=True)
class BisectInput:
    """The input of a model that answers at once; `exact` is the tolerance of graphs in fp32."""

    feed: Feed
    expected: Outputs
    axes: dict[str, list[int | str]]
    described: str
    tolerance: Tolerance
    exact: Tolerance

    def judged(self, got: Outputs, exact: bool) -> Judged:
        """See `Given`."""
        tolerance = self.exact if exact else self.tolerance
        reasons, largest = _failures(self.expected, got, self.axes, self.feed, tolerance)
        return Judged(reasons, largest, tolerance.max_abs)


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
    exact = tolerance_of(found[0], None, "fp32")
    whole = BisectInput(feed, expected, cases.axes, of, tolerance, exact)
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
    fails = bool(whole.judged(call(feed), exact=False).reasons)
    if worst is None or (worst[0] < 0 and fails):
        return whole
    one = _row(feed, worst[1])
    described = f"row {worst[1] + 1} of {of}"
    return BisectInput(one, reference(one), cases.axes, described, tolerance, exact)


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
