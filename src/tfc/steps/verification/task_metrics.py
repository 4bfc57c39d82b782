"""What an engine's differences cost: metrics of PyTorch and of an engine on the same labelled rows.

The differences come with an interval, the rows that the engine changed with their lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tfc.metrics.base import Found, Tally
from tfc.metrics.bootstrap import CONFIDENCE, RESAMPLES, SEED, Difference, paired_differences
from tfc.metrics.correlation import CORRELATIONS
from tfc.metrics.ranking import NDCG
from tfc.metrics.texts import BLEU
from tfc.steps.batches import Outputs, is_finite
from tfc.steps.verification.label_rows import MOST_NAMED
from tfc.steps.verification.labelled import Labelled

# A drop of just what is allowed is allowed: 0.9 - 0.895 is a little above 0.005.
_ROUNDING = 1e-9
_PLAIN = (*CORRELATIONS, NDCG)  # written without a percent sign, as the field does


@dataclass(frozen=True)
class ChangedRow:
    """A row in which the engine differs: what PyTorch and the engine say.

    `change` is how much nearer to the label the engine is than PyTorch: of the margin between
    the label and the likeliest other one (classification; of several labels that of the one
    nearest to being wrong), of the row's F1 (entities, answers) or chrF (texts that are written),
    or the size of the change of the score, as a negative number (correlations).
    """

    line: int
    pytorch: Any
    engine: Any
    change: float


@dataclass(frozen=True)
class EngineMetrics:
    """The metrics of one engine, and what differs from PyTorch.

    `flips` are the rows whose prediction is another one, None where predictions are scores;
    `worst` those that went furthest from their label, the worst first.
    """

    values: dict[str, float]
    report: dict[str, dict[str, float]]
    differences: dict[str, Difference]
    flips: list[ChangedRow] | None
    worst: list[ChangedRow]

    def as_json(self) -> dict[str, Any]:
        """As reports/verify.json holds it: of flips the number, and the first."""
        found: dict[str, Any] = {
            "values": self.values,
            "classes": self.report,
            "differences": {name: asdict(each) for name, each in self.differences.items()},
        }
        if self.flips is not None:
            found["flipped"] = {
                "rows": len(self.flips),
                "first": [asdict(row) for row in self.flips[:MOST_NAMED]],
            }
        return {**found, "worst": [asdict(row) for row in self.worst]}


@dataclass(frozen=True)
class Judge:
    """Compares engines with what PyTorch gave for labelled rows."""

    labelled: Labelled
    pytorch: list[Found]

    @property
    def main(self) -> str:
        """The metric that `max_drop` is about: the first."""
        return next(iter(self.values))

    @cached_property
    def tally(self) -> Tally:
        """PyTorch's."""
        return self.labelled.tally(self.pytorch)

    @cached_property
    def values(self) -> dict[str, float]:
        """PyTorch's metrics."""
        return self.tally.values(self.labelled.every)

    def engine_metrics(self, outputs: Sequence[Outputs]) -> EngineMetrics | None:
        """Of the outputs of an engine; None where they are not finite numbers."""
        return self.metrics_of(self.labelled.found(outputs)) if is_finite(outputs) else None

    def metrics_of(self, engine: list[Found]) -> EngineMetrics:
        """Of what an engine predicts for each row."""
        tally, scorer = self.labelled.tally(engine), self.labelled.scorer
        changed = [
            ChangedRow(row.line, scorer.answer(p), scorer.answer(e), scorer.change(row.gold, p, e))
            for row, p, e in zip(self.labelled.rows, self.pytorch, engine, strict=True)
        ]
        worse = sorted((row for row in changed if row.change < 0), key=lambda row: row.change)
        flips = [row for row in changed if row.pytorch != row.engine]
        return EngineMetrics(
            tally.values(self.labelled.every),
            tally.report(),
            paired_differences(self.tally, tally, len(engine)),
            flips if scorer.decides else None,
            worse[:MOST_NAMED],
        )

    def too_low(self, found: EngineMetrics, max_drop: float) -> list[str]:
        """Why the engine's main metric is not good enough; nothing if it is."""
        return drop_reasons(self.main, self.values[self.main], found.values[self.main], max_drop)

    def as_json(self) -> dict[str, Any]:
        """As reports/verify.json holds it, without the engines."""
        left_out = self.labelled.left_out
        return {
            "columns": asdict(self.labelled.columns),
            "rows": len(self.labelled.rows),
            "left_out": {"rows": left_out.rows, **asdict(left_out)},
            "main": self.main,
            "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": SEED},
            "pytorch": {"values": self.values, "classes": self.tally.report()},
        }


def drop_reasons(metric: str, before: float, after: float, max_drop: float) -> list[str]:
    """One sentence where `after` is further below `before` than `max_drop`, or is no number."""
    if before - after <= max_drop + _ROUNDING:
        return []
    return [
        f"{metric} is {value_text(metric, after)}, {points_text(metric, before - after)} below"
        f" PyTorch's {value_text(metric, before)}, and at most {points_text(metric, max_drop)}"
        " are allowed"
    ]


def value_text(metric: str, value: float) -> str:
    """A metric for people: `93.33%`, BLEU `93.33`, a correlation or nDCG `0.9333`."""
    if metric == BLEU:
        return f"{value * 100:.2f}"
    return f"{value:.4f}" if metric in _PLAIN else f"{value:.2%}"


def points_text(metric: str, value: float) -> str:
    """A difference of metrics for people: `0.50 points`, of correlations and nDCG `0.0050`."""
    return f"{value:.4f}" if metric in _PLAIN else f"{value * 100:.2f} points"
