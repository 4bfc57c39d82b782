"""What a metric of a task is to the step that compares an engine with PyTorch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from tfc.errors import BadData
from tfc.runtime.rows import json_type

Indices = npt.NDArray[np.intp]
# What the runtime predicts for one row of labelled data: one prediction, or that of each text.
Found = Sequence[Mapping[str, Any]]


class UnknownLabel(Exception):
    """A row's label is not one of the model's; `args[0]` is the label as a person reads it."""


class Tally(Protocol):
    """What was right and wrong in the predictions of all rows."""

    def values(self, rows: Indices) -> dict[str, float]:
        """The metrics of these rows, some of them perhaps more than once: by name, 0 to 1.

        The first is the main one. Correlations are -1 to 1, and NaN where all values are equal.
        """

    @property
    def units(self) -> Sequence[Indices] | None:
        """Rows that belong together, which a draw takes whole; None where each stands alone."""

    def report(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and support by class; empty where the task has no classes."""


class Scorer(Protocol):
    """Reads labels, and compares predictions with them.

    Attributes:
        pair: the field with the second text where the caller names none.
        splits: whether the two texts of a row are predicted one by one.
        decides: whether a prediction is a decision, which flips or does not.
    """

    pair: ClassVar[str | None]
    splits: ClassVar[bool]
    decides: ClassVar[bool]

    def gold(self, value: Any) -> Any:
        """The label of a row in the scorer's own form.

        Raises:
            UnknownLabel: the model has no such label.
            BadData: it is no label at all.
        """

    def check(self, golds: Sequence[Any], where: str) -> None:
        """Refuse labels, one at least, of which no metric can be made; `where` is their file.

        Raises:
            BadData: all of them are equal, and a correlation is asked for.
        """

    def tally(
        self, golds: Sequence[Any], found: Sequence[Found], queries: Sequence[Hashable] = ()
    ) -> Tally:
        """The predictions of all rows beside their labels.

        `queries` holds the first text of each row of two: what the second one was found for.
        """

    def answer(self, found: Found) -> Any:
        """The decision in a prediction, as a JSON value."""

    def change(self, gold: Any, reference: Found, engine: Found) -> float:
        """How much nearer to the label the engine is than the reference; below 0 it is worse."""


class LoneRows:
    """A tally in which each row stands alone."""

    units = None


class AnyLabels:
    """A scorer that takes any labels together."""

    def check(self, golds: Sequence[Any], where: str) -> None:
        """Take them."""


def not_a(value: object, wanted: str) -> BadData:
    """What is said of a label of another type."""
    return BadData(f"the label is {json_type(value)}, not {wanted}")


def precision_recall_f1(right: float, found: float, wanted: float) -> tuple[float, float, float]:
    """Of counts; 0 where there is nothing to divide by, as scikit-learn has it."""
    precision = right / found if found else 0.0
    recall = right / wanted if wanted else 0.0
    return precision, recall, 2 * right / (found + wanted) if found + wanted else 0.0


def report_line(right: float, found: float, wanted: float) -> dict[str, float]:
    """One class of a classification report."""
    precision, recall, f1 = precision_recall_f1(right, found, wanted)
    return {"precision": precision, "recall": recall, "f1": f1, "support": float(wanted)}
