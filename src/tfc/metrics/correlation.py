"""Spearman's and Pearson's correlation of scores with those of the data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tfc.errors import BadData, require
from tfc.metrics.base import Found, Indices, not_a

# Names of the metrics: those in -1 to 1, where a percentage would mislead.
SPEARMAN, PEARSON = CORRELATIONS = ("Spearman", "Pearson")


class CorrelationTally:
    """Two columns of numbers `[rows]`."""

    def __init__(self, golds: Sequence[float], scores: Sequence[float]) -> None:
        self._golds, self._scores = np.asarray(golds, np.float64), np.asarray(scores, np.float64)

    def values(self, rows: Indices) -> dict[str, float]:
        """Of ranks, and of values."""
        from scipy.stats import pearsonr, spearmanr

        golds, scores = self._golds[rows], self._scores[rows]
        if np.ptp(golds) == 0 or np.ptp(scores) == 0:
            return dict.fromkeys(CORRELATIONS, math.nan)
        return {
            SPEARMAN: float(spearmanr(golds, scores).statistic),
            PEARSON: float(pearsonr(golds, scores).statistic),
        }

    def report(self) -> dict[str, dict[str, float]]:
        """Scores have no classes."""
        return {}


class _Correlation(ABC):
    """Labels are numbers.

    Raises:
        MissingPackage: scipy is not installed.
    """

    main: ClassVar[str] = SPEARMAN
    decides: ClassVar[bool] = False

    def __init__(self) -> None:
        require("scipy", "eval")

    def gold(self, value: Any) -> float:
        """The number."""
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise not_a(value, "a number")
        if not math.isfinite(value):
            raise BadData(f"the label is {value}, not a finite number")
        return float(value)

    def check(self, golds: Sequence[float], where: str) -> None:
        """Refuse numbers that are all equal: nothing correlates with them."""
        if min(golds) == max(golds):
            raise BadData(
                f"all labels are {golds[0]:g}: nothing can be correlated with them",
                where=where,
                fix="Give rows with different labels",
            )

    def tally(self, golds: Sequence[float], found: Sequence[Found]) -> CorrelationTally:
        """The numbers of the data beside those found."""
        return CorrelationTally(golds, [self.answer(each) for each in found])

    @abstractmethod
    def answer(self, found: Found) -> float:
        """The score."""

    def change(self, gold: float, reference: Found, engine: Found) -> float:
        """How far the score moved: labels are of another scale, so any way is for the worse."""
        return -abs(self.answer(engine) - self.answer(reference))


class SimilarityScorer(_Correlation):
    """The score of two texts is the cosine of their embeddings."""

    pair: ClassVar[str | None] = "text_pair"
    splits: ClassVar[bool] = True

    def answer(self, found: Found) -> float:
        """The cosine; 0 of a vector of zeros."""
        left, right = (np.asarray(each["embedding"], np.float64) for each in found)
        norms = float(np.linalg.norm(left) * np.linalg.norm(right))
        return float(left @ right) / norms if norms else 0.0


class RegressionScorer(_Correlation):
    """The score of a text, or of a pair, is the model's only output."""

    pair: ClassVar[str | None] = None
    splits: ClassVar[bool] = False

    def answer(self, found: Found) -> float:
        """The model's score."""
        return float(found[0]["score"])
