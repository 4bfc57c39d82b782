"""F1, the share of rows with just the right labels, and the report of a multi-label classifier."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tfc.metrics.base import AnyLabels, Found, Indices, LoneRows, not_a
from tfc.metrics.classification import ClassificationScorer, report_of

Flags = npt.NDArray[np.bool_]


class LabelsTally(LoneRows):
    """Which labels rows have, and which were predicted: flags `[rows, labels]`."""

    def __init__(self, golds: Flags, predicted: Flags, labels: list[str]) -> None:
        self._golds, self._predicted, self._labels = golds, predicted, labels

    def values(self, rows: Indices) -> dict[str, float]:
        """F1 over all labels together, the mean F1 of the labels that occur, and exact match."""
        golds, predicted = self._golds[rows], self._predicted[rows]
        hits = (golds & predicted).sum(axis=0)
        wanted, found = golds.sum(axis=0), predicted.sum(axis=0)
        total = int(wanted.sum() + found.sum())
        has = wanted > 0
        f1 = 2 * hits[has] / (found + wanted)[has]
        return {
            "micro F1": 2 * int(hits.sum()) / total if total else 0.0,
            "macro F1": float(f1.mean()) if len(f1) else 0.0,
            "exact match": float((golds == predicted).all(axis=1).mean()),
        }

    def report(self) -> dict[str, dict[str, float]]:
        """Of the labels that rows have or were given."""
        occur = np.flatnonzero((self._golds | self._predicted).any(axis=0))
        return report_of(self._golds.astype(int), self._predicted.astype(int), self._labels, occur)


class MultiLabelScorer(AnyLabels):
    """A row's label is a list of names or indices of the model's labels; it may be empty.

    Raises:
        MissingPackage: scikit-learn is not installed.
    """

    pair: ClassVar[str | None] = None
    splits: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __init__(self, labels: list[str]) -> None:
        self._one = ClassificationScorer(labels)
        self._labels = labels

    def gold(self, value: Any) -> Flags:
        """Which labels the row has `[labels]`."""
        if not isinstance(value, list):
            raise not_a(value, "a list of labels")
        flags = np.zeros(len(self._labels), np.bool_)
        flags[[self._one.gold(each) for each in value]] = True
        return flags

    def tally(
        self, golds: Sequence[Flags], found: Sequence[Found], queries: Sequence[Hashable] = ()
    ) -> LabelsTally:
        """The labels of rows beside those given."""
        predicted = [self.gold(self.answer(each)) for each in found]
        return LabelsTally(np.stack(golds), np.stack(predicted), self._labels)

    def answer(self, found: Found) -> list[str]:
        """The labels given, in the model's order."""
        return list(found[0]["labels"])

    def change(self, gold: Flags, reference: Found, engine: Found) -> float:
        """Of the margin: how far the label that is nearest to being wrong is on the right side.

        Of a probability of 0.9 that is 0.4 where the row has the label, else -0.4.
        """
        return self._margin(gold, engine) - self._margin(gold, reference)

    def _margin(self, gold: Flags, found: Found) -> float:
        scores = np.array([found[0]["scores"][label] for label in self._labels])
        return float(np.where(gold, scores - 0.5, 0.5 - scores).min())
