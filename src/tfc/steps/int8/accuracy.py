"""What a quantised graph keeps of the fp32 graph's accuracy, on the rows of a calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.manifest import Task
from tfc.runtime.padding import Feed
from tfc.steps.batches import Outputs, is_finite
from tfc.steps.cases import OnBatch, real_values
from tfc.steps.int8.rows import CalibrationRows
from tfc.steps.verification.agreement import agreement_of, decisions_in, measure_of

Run = Callable[[Feed], Outputs]
# A drop of just what is allowed is allowed: 0.9 - 0.895 is a little above 0.005.
_ROUNDING = 1e-9
# As many decisions may turn right as may turn wrong.
_BOTH_WAYS = 2.0


@dataclass(frozen=True)
class Answers:
    """What a graph says: `[…, values]` arrays, and the main metric where rows have labels.

    The metric is minus infinity, without a name, where an output is not finite.
    """

    vectors: list[npt.NDArray[Any]]
    name: str = ""
    metric: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """A quantised graph beside the fp32 graph on the same rows.

    Attributes:
        measure: what `agreement` is (`tfc.steps.verification.agreement`).
        agreement: from 0 to 1.
        decisions: of how many decisions it is a share; 0 if it is no share.
        metric: the name of the task's main metric; empty where rows have no labels.
        before: that metric in fp32.
        after: of the quantised graph.
        rms: root mean square difference of the outputs.
        max_abs: their largest difference.
        error: `rms` as a share of the root mean square of the outputs.
    """

    measure: str
    agreement: float
    decisions: int
    metric: str
    before: float | None
    after: float | None
    rms: float
    max_abs: float
    error: float

    @property
    def drop(self) -> float:
        """What the budget is about: of the metric where there is one, or else of the agreement."""
        if self.before is None or self.after is None:
            return 1 - self.agreement
        return self.before - self.after

    def holds(self, max_drop: float) -> bool:
        """Whether the drop is within the budget.

        A metric may stay where it is while decisions change both ways: of those that agreement is
        a share of, twice the budget may.
        """
        if self.decisions and 1 - self.agreement > _BOTH_WAYS * max_drop + _ROUNDING:
            return False
        return self.drop <= max_drop + _ROUNDING


def answers_of(run: Run, rows: CalibrationRows, on_batch: OnBatch) -> Answers:
    """Run a graph on all rows."""
    axes, feeds = rows.cases.axes, rows.feeds
    vectors: list[npt.NDArray[Any]] = []
    kept: list[Outputs] = []
    for number, feed in enumerate(feeds):
        on_batch(number, len(feeds))
        outputs = run(feed)
        vectors += [real_values(outputs[name], axis, feed) for name, axis in axes.items()]
        if rows.labelled is not None:
            kept.append(outputs)
    on_batch(len(feeds), len(feeds))
    return Answers(vectors, *_metric(rows, kept))


def _metric(rows: CalibrationRows, outputs: list[Outputs]) -> tuple[str, float | None]:
    """The name of the main metric, which is the first, and its value."""
    labelled = rows.labelled
    if labelled is None:
        return "", None
    if not is_finite(outputs):
        return "", -np.inf
    values = labelled.tally(labelled.found(outputs)).values(labelled.every)
    return next(iter(values.items()))


def accuracy_of(task: Task, exact: Answers, got: Answers) -> Accuracy:
    """The quantised graph's answers beside those of fp32."""
    pairs = list(zip(exact.vectors, got.vectors, strict=True))
    wrong = np.concatenate([(e.astype(np.float64) - g).reshape(-1) for e, g in pairs])
    wrong = np.where(np.isfinite(wrong), wrong, np.inf)
    right = np.concatenate([e.astype(np.float64).reshape(-1) for e in exact.vectors])
    size = float(np.sqrt(np.mean(right**2))) or 1.0
    rms = float(np.sqrt(np.mean(wrong**2)))
    return Accuracy(
        measure=measure_of(task),
        agreement=agreement_of(task, exact.vectors, got.vectors),
        decisions=decisions_in(task, exact.vectors),
        metric=exact.name,
        before=exact.metric,
        after=got.metric,
        rms=rms,
        max_abs=float(np.abs(wrong).max(initial=0.0)),
        error=rms / size,
    )
