"""Scores beside those of the data: how they correlate, and how they rank what is of one query."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np

from tfc.errors import BadData, require
from tfc.metrics.base import Found, Indices, not_a
from tfc.metrics.ranking import NDCG, Ranking

# Names of the metrics: those in -1 to 1, where a percentage would mislead.
SPEARMAN, PEARSON = CORRELATIONS = ("Spearman", "Pearson")


class ScoreTally:
    """Two columns of numbers `[rows]`, and the query of each row.

    Where rows share a query, their ranking is the main metric, and a draw takes whole queries.
    """

    def __init__(
        self, golds: Sequence[float], scores: Sequence[float], queries: Sequence[Hashable] = ()
    ) -> None:
        self._golds, self._scores = np.asarray(golds, np.float64), np.asarray(scores, np.float64)
        ranking = None
        if len(queries) and self._golds.min() >= 0:  # a gain below 0 has no meaning
            ranking = Ranking(self._golds, self._scores, queries)
        self._ranking = ranking if ranking is not None and ranking.counts else None

    @property
    def units(self) -> Sequence[Indices] | None:
        """The rows of each query."""
        return self._ranking.units if self._ranking is not None else None

    def values(self, rows: Indices) -> dict[str, float]:
        """Of the ranking if there is one, of ranks, and of values."""
        ranking = {} if self._ranking is None else {NDCG: self._ranking.ndcg(rows)}
        return {**ranking, **self._correlations(rows)}

    def _correlations(self, rows: Indices) -> dict[str, float]:
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
        MissingPackage: scipy or scikit-learn is not installed.
    """

    decides: ClassVar[bool] = False

    def __init__(self) -> None:
        require("scipy", "eval")
        require("sklearn", "eval")

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

    def tally(
        self, golds: Sequence[float], found: Sequence[Found], queries: Sequence[Hashable] = ()
    ) -> ScoreTally:
        """The numbers of the data beside those found."""
        return ScoreTally(golds, [self.answer(each) for each in found], queries)

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
