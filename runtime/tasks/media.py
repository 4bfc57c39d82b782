"""Images and recordings: their arrays as rows. A job's rows name files, from its own folder on.

A prediction of image-classification holds what single-label text classification gives: ``label``,
``score``, ``scores``; one of image-feature-extraction ``embedding``; one of
automatic-speech-recognition ``text``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tfc.errors import BadData, BadInput, TfcError
from tfc.manifest import Task as TaskRecord
from tfc.runtime.feeding import MediaEncoder
from tfc.runtime.rows import Columns
from tfc.runtime.tasks.base import Item, Prediction, Row, RowOutputs
from tfc.runtime.tasks.classification import ClassificationOptions, LabelReader
from tfc.runtime.tasks.generation import TOKENS, SpeechOptions
from tfc.runtime.tokenization import TextEncoder


@dataclass(frozen=True)
class MediaModel:
    """What a task on images or recordings knows of the model; `text` decodes what it writes."""

    task: TaskRecord
    encoder: MediaEncoder
    text: TextEncoder | None = None


class MediaTask(ABC):
    """A task whose items are images or recordings, with one row each.

    Attributes:
        name: what the manifest calls it.
        options: a frozen dataclass of what a call may choose.
        columns: the fields of a job's rows, where the caller names none.
    """

    name: ClassVar[str]
    options: ClassVar[type]
    columns: ClassVar[Columns]

    def __init__(self, model: MediaModel, options: Any) -> None:
        self._model = model
        self._options = options

    @classmethod
    @abstractmethod
    def outputs(cls, record: TaskRecord) -> tuple[str, ...]:
        """The graph outputs that predictions are read from."""

    def check(self, item: Item) -> None:  # noqa: B027 - there is nothing that a task must check
        """Nothing at little cost: what an item is shows when it is read."""

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        """The array of each item, or why it has none."""
        return [self._row(item) for item in items]

    @abstractmethod
    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The prediction of one item."""

    def _row(self, item: Item) -> Sequence[Row] | TfcError:
        try:
            return [self._model.encoder.encode_one(item.value, item.where)]
        except (BadInput, BadData) as error:
            return error


class ImageClassification(MediaTask):
    """The logits are `[labels]`."""

    name = "image-classification"
    options = ClassificationOptions
    columns = Columns("image", folder=Path())

    def __init__(self, model: MediaModel, options: ClassificationOptions) -> None:
        super().__init__(model, options)
        self._reader = LabelReader(model.task, options)

    @classmethod
    def outputs(cls, record: TaskRecord) -> tuple[str, ...]:
        """Its logits."""
        return ("logits",)

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The labels of one image."""
        return self._reader.read(outputs[0]["logits"])


@dataclass(frozen=True)
class NoOptions:
    """There is nothing to choose."""


class ImageFeatureExtraction(MediaTask):
    """The output is `[hidden]`."""

    name = "image-feature-extraction"
    options = NoOptions
    columns = Columns("image", folder=Path())

    @classmethod
    def outputs(cls, record: TaskRecord) -> tuple[str, ...]:
        """Its embedding."""
        return ("embedding",)

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The vector of one image: an array of float32 of its own."""
        return {"embedding": outputs[0]["embedding"].astype(np.float32)}


class SpeechRecognition(MediaTask):
    """What the decoder writes of a recording."""

    name = "automatic-speech-recognition"
    options = SpeechOptions
    columns = Columns("audio", folder=Path())

    @classmethod
    def outputs(cls, record: TaskRecord) -> tuple[str, ...]:
        """The tokens that the decoding loop gives."""
        return (TOKENS,)

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The text of each sequence, without special tokens."""
        assert self._model.text is not None
        texts = [self._model.text.decode(ids) for ids in outputs[0][TOKENS].tolist()]
        return {"text": texts[0], **({"texts": texts} if len(texts) > 1 else {})}
