"""Items of a text task in batches, and the predictions that the runtime makes of their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import BadData, BadInput, TfcError
from tfc.manifest import Manifest
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.feeding import Feed, GraphRunner
from tfc.runtime.tasks import GENERATION_TASKS, TEXT_TASKS
from tfc.runtime.tasks.base import Item, Prediction, RowOutputs, Task, TextModel, check_outputs
from tfc.runtime.tokenization import INPUT_IDS, TextEncoder
from tfc.steps.cases import BATCH_ROWS

Outputs = dict[str, npt.NDArray[Any]]
# One text for each row, which no chance decides.
LIKELIEST = {"do_sample": False, "num_return_sequences": 1}


@dataclass(frozen=True)
class Batches:
    """Items, the rows of each as the task makes them, and those rows by length in batches.

    `order[b]` are the indices of batch b's rows, in the order of the items and their rows.
    """

    manifest: Manifest
    task: Task
    items: Sequence[Item]
    rows: Sequence[Sequence[Any]]
    order: Sequence[Sequence[int]]
    feeds: Sequence[Feed]

    def predictions(self, outputs: Sequence[Outputs]) -> list[Prediction]:
        """One per item, of the outputs of each batch."""
        record = self.manifest.task
        names = TEXT_TASKS[record.name].outputs(record)
        runner = GraphRunner(_Replay(iter(outputs)), self.manifest.signature, names)
        return self.read([runner.run(feed) for feed in self.feeds])

    def read(self, outputs: Sequence[Sequence[RowOutputs]]) -> list[Prediction]:
        """One per item, of the outputs of each row of each batch."""
        found: dict[int, RowOutputs] = {}
        for indices, rows in zip(self.order, outputs, strict=True):
            found.update(zip(indices, rows, strict=True))
        given = (found[index] for index in range(len(found)))
        return [
            self.task.read(item, rows, list(islice(given, len(rows))))
            for item, rows in zip(self.items, self.rows, strict=True)
        ]


@dataclass(frozen=True)
class _Replay:
    """A runner that gives what another one gave before."""

    outputs: Iterator[Outputs]

    def run(self, inputs: object) -> Outputs:
        """The outputs of the next batch."""
        return next(self.outputs)

    def close(self) -> None:
        """Give nothing back: it holds nothing."""


def batches_of(artifact: Artifact, items: Sequence[Item]) -> Batches:
    """The items as the artifact's task reads them, with the task's own options.

    A model that generates takes the likeliest tokens, whatever the checkpoint says of drawing them.

    Raises:
        BadData: the task cannot take an item.
        BadArtifact: the graph does not fit the task.
    """
    record = artifact.manifest.task
    options: dict[str, Any] = {}
    if record.name in GENERATION_TASKS:
        kind, options = GENERATION_TASKS[record.name], LIKELIEST
    else:
        kind = TEXT_TASKS[record.name]
        check_outputs(kind.outputs(record), record, artifact.manifest.signature)
    encoder = text_encoder_of(artifact, offsets=kind.offsets)
    task = kind(TextModel(record, encoder, encoder.preprocess.max_length), kind.options(**options))
    rows = _rows(task, items)
    flat = [row for own in rows for row in own]
    by_length = sorted(range(len(flat)), key=lambda index: len(flat[index]))
    order = [by_length[i : i + BATCH_ROWS] for i in range(0, len(by_length), BATCH_ROWS)]
    feeds = [_feed(encoder, [flat[index] for index in indices]) for indices in order]
    return Batches(artifact.manifest, task, items, rows, order, feeds)


def _rows(task: Task, items: Sequence[Item]) -> list[Sequence[Any]]:
    try:
        for item in items:
            task.check(item)
    except BadInput as error:
        raise BadData(error.what, where=error.where, fix=error.fix) from error
    found: list[Sequence[Any]] = []
    for item, rows in zip(items, task.rows(items), strict=True):
        if isinstance(rows, TfcError):
            raise BadData(rows.what, where=item.where, fix=rows.fix)
        found.append(rows)
    return found


def _feed(encoder: TextEncoder, rows: Sequence[Any]) -> Feed:
    arrays = encoder.pad(rows)
    width = int(arrays[INPUT_IDS].shape[1])
    return Feed(arrays, [encoder.place(len(row), width) for row in rows], width)


def is_finite(outputs: Sequence[Outputs]) -> bool:
    """Whether all values are finite numbers: of others nothing can be predicted."""
    return all(np.isfinite(array).all() for each in outputs for array in each.values())
