"""What a task is to the loop that runs it, and what the tasks on text share.

A task turns one item into the rows that the model runs on, and what came of those rows into one
prediction. Most tasks have one row per item; a long context is several windows, and zero-shot
classification has a row per candidate label. It is made for each call, with that call's options,
and changes nothing after that: several threads use it at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy.typing as npt

from tfc.errors import BadArtifact, BadInput, TfcError
from tfc.manifest import Signature
from tfc.manifest import Task as TaskRecord
from tfc.runtime.rows import Columns
from tfc.runtime.tokenization import Text, TextEncoder, checked_text

Prediction = dict[str, Any]
Array = npt.NDArray[Any]
# What the task's feeder makes a batch of: a `tokenizers.Encoding` where the model reads text.
Row = Any
# The graph's outputs for one row by name, without the batch axis and without padding.
RowOutputs = Mapping[str, Array]
OptionsT = TypeVar("OptionsT")

_EXPORT_AGAIN = "Export the checkpoint again with: tfc export --overwrite"


@dataclass(frozen=True)
class Item:
    """One thing to predict, as the caller gave it, and what errors call it: ``item 3``."""

    value: Any
    where: str


class Task(Protocol):
    """Items → rows, and the outputs of rows → predictions, of one model with one call's options."""

    def check(self, item: Item) -> None:
        """Refuse what the task cannot take, at little cost.

        Raises:
            BadInput: it is of another type.
        """

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        """The rows of each item that `check` let pass, one or more; or why it has none."""

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The prediction of an item, from the outputs of its rows, in their order."""


@dataclass(frozen=True)
class TextModel:
    """What a task on text knows of the model.

    `longest` is the most tokens that a row may have: the artifact's limit, or the engine's. With
    `refuse_long` a text that would be cut is refused instead.
    """

    task: TaskRecord
    encoder: TextEncoder
    longest: int
    refuse_long: bool = False


class TextTask(ABC, Generic[OptionsT]):
    """A task whose items are texts, or pairs of them, with one row each.

    Attributes:
        name: what the manifest calls it.
        options: a frozen dataclass of what a call may choose (`tfc.runtime.tasks.options`).
        columns: the fields of a job's rows, where the caller names none.
        offsets: whether its rows need places in the text; encoding is slower with them.
        pairs: whether an item may be two texts.
    """

    name: ClassVar[str]
    options: ClassVar[type]
    columns: ClassVar[Columns] = Columns("text")
    offsets: ClassVar[bool] = False
    pairs: ClassVar[bool] = False

    def __init__(self, model: TextModel, options: OptionsT) -> None:
        self._model = model
        self._options = options

    @classmethod
    def outputs(cls, record: TaskRecord) -> tuple[str, ...]:
        """The graph outputs that predictions are read from."""
        return ("logits",)

    def check(self, item: Item) -> None:
        """Refuse what is no text, and pairs where the task takes none."""
        text = checked_text(item.value, item.where)
        if isinstance(text, tuple) and not self.pairs:
            raise BadInput(
                f"{self.name} takes one text, not a pair",
                where=item.where,
                fix="Give the texts one by one",
            )

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        """One row per item, cut at the artifact's limit."""
        return self._encoded(items, [item.value for item in items])

    @abstractmethod
    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The prediction of one item."""

    def _encoded(
        self, items: Sequence[Item], texts: Sequence[Text]
    ) -> list[Sequence[Row] | TfcError]:
        """One row for the text of each item, cut at the artifact's limit, or refused there."""
        encoder = self._model.encoder
        return [
            too_long(item, encoder.preprocess.max_length)
            if self._model.refuse_long and row.overflowing
            else [row]
            for item, row in zip(items, encoder.encode(texts), strict=True)
        ]


def too_long(item: Item, longest: int) -> BadInput:
    """What is said of a text that would be cut, where that is not wanted."""
    return BadInput(
        f"the text is longer than the {longest} tokens that the model reads",
        where=item.where,
        fix="Give a shorter text, or let it be cut: too_long='truncate'",
    )


def check_outputs(names: Sequence[str], record: TaskRecord, signature: Signature) -> None:
    """Refuse a graph that lacks an output of the task, or whose logits do not fit the labels.

    Raises:
        BadArtifact: what is missing, or both numbers.
    """
    shapes = {spec.name: spec.shape for spec in signature.outputs}
    for name in names:
        if name not in shapes:
            raise BadArtifact(
                f"the graph has no output '{name}', which {record.name} needs", fix=_EXPORT_AGAIN
            )
        check_labels(shapes[name][-1], record.labels)


def check_labels(size: int | str, labels: Sequence[str]) -> None:
    """Refuse logits of another number than the labels; an axis without a size is let pass.

    Raises:
        BadArtifact: both numbers.
    """
    if labels and isinstance(size, int) and size != len(labels):
        raise BadArtifact(
            f"the graph gives {size} logits, and there are {len(labels)} labels",
            fix=_EXPORT_AGAIN,
        )
