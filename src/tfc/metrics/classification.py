"""Accuracy, macro F1 and the classification report of a classifier of one label per text."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tfc.errors import require
from tfc.metrics.base import AnyLabels, Found, Indices, LoneRows, UnknownLabel, not_a


class LabelTally(LoneRows):
    """Labels and predictions as indices `[rows]` into `labels`."""

    def __init__(self, golds: Sequence[int], predicted: Sequence[int], labels: list[str]) -> None:
        self._golds, self._predicted = np.asarray(golds), np.asarray(predicted)
        self._labels = labels

    def values(self, rows: Indices) -> dict[str, float]:
        """Accuracy, and the mean F1 of the classes that these rows are labelled with."""
        golds, predicted = self._golds[rows], self._predicted[rows]
        right = golds == predicted
        size = len(self._labels)
        hits = np.bincount(golds[right], minlength=size)
        wanted = np.bincount(golds, minlength=size)
        found = np.bincount(predicted, minlength=size)
        has = wanted > 0
        f1 = 2 * hits[has] / (found + wanted)[has]
        return {"accuracy": float(right.mean()), "macro F1": float(f1.mean())}

    def report(self) -> dict[str, dict[str, float]]:
        """Of the classes that are labelled or predicted."""
        classes = np.union1d(self._golds, self._predicted)
        return report_of(self._golds, self._predicted, self._labels, classes)


def report_of(
    golds: npt.NDArray[Any], predicted: npt.NDArray[Any], labels: list[str], shown: Indices
) -> dict[str, dict[str, float]]:
    """scikit-learn's classification report, of the labels whose indices are `shown`.

    Labels and predictions are indices `[rows]` or flags `[rows, labels]`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(golds, predicted, labels=shown, zero_division=0)
    names = ("precision", "recall", "f1", "support")
    return {
        labels[number]: dict(zip(names, map(float, line), strict=True))
        for number, *line in zip(shown, *columns, strict=True)
    }


class ClassificationScorer(AnyLabels):
    """Labels are names or indices of the model's labels.

    Raises:
        MissingPackage: scikit-learn is not installed.
    """

    pair: ClassVar[str | None] = None
    splits: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __init__(self, labels: list[str]) -> None:
        require("sklearn", "eval")
        self._labels = labels
        self._indices = {label: index for index, label in enumerate(labels)}

    def gold(self, value: Any) -> int:
        """The index of the label."""
        if isinstance(value, str):
            if value not in self._indices:
                raise UnknownLabel(value)
            return self._indices[value]
        if not isinstance(value, int) or isinstance(value, bool):
            raise not_a(value, "the name or the index of one")
        if not 0 <= value < len(self._labels):
            raise UnknownLabel(str(value))
        return value

    def tally(
        self, golds: Sequence[int], found: Sequence[Found], queries: Sequence[Hashable] = ()
    ) -> LabelTally:
        """The labels beside the likeliest ones."""
        predicted = [self._indices[self.answer(each)] for each in found]
        return LabelTally(golds, predicted, self._labels)

    def answer(self, found: Found) -> str:
        """The likeliest label."""
        return str(found[0]["label"])

    def change(self, gold: int, reference: Found, engine: Found) -> float:
        """Of the margin: the label's probability less that of the likeliest other one."""
        return self._margin(gold, engine) - self._margin(gold, reference)

    def _margin(self, gold: int, found: Found) -> float:
        scores = dict(found[0]["scores"])
        own = float(scores.pop(self._labels[gold]))
        return own - max(map(float, scores.values()), default=0.0)
