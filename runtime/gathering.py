"""The rows of a window's items, their outputs as batches bring them, and the items that are read.

An item is read in the thread that brings its last row, so that the outputs of a window (for
fill-mask 15 MB a row) are never all in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tfc.errors import CheckFailed, TfcError
from tfc.runtime.tasks.base import Item, Prediction, Row, RowOutputs, Task


@dataclass
class Ready:
    """An item that is done: its prediction or its error, and the tokens of its rows."""

    found: Prediction | TfcError
    tokens: int = 0
    padded: int = 0


class Gathered:
    """One window while it runs.

    Args:
        task: reads the items.
        items: the window's items.
        found: of each item its rows, or the error that it has none for.

    Attributes:
        rows: the rows of all items, which `add` names by their index.
    """

    def __init__(
        self, task: Task, items: Sequence[Item], found: Sequence[Sequence[Row] | TfcError]
    ) -> None:
        self._task = task
        self._items = items
        self.rows: list[Row] = []
        self._owners: list[tuple[int, int]] = []  # of each row: its item, its place among its rows
        self._rows: dict[int, Sequence[Row]] = {}
        self._outputs: dict[int, list[RowOutputs | None]] = {}
        self._ready: list[Ready] = []
        self._lock = threading.Lock()
        for place, rows in enumerate(found):
            self._take(place, rows)

    def add(self, index: int, outputs: RowOutputs, tokens: int, width: int) -> None:
        """Take the outputs of one row, and read its item if that was the last."""
        place, number = self._owners[index]
        waiting = self._outputs[place]
        with self._lock:
            waiting[number] = outputs
            ready = self._ready[place]
            ready.tokens += tokens
            ready.padded += width
            whole = [given for given in waiting if given is not None]
        if len(whole) == len(waiting):
            del self._outputs[place]
            ready.found = self._read(place, whole)

    def ready(self) -> Iterator[Ready]:
        """The items in their order, when every row was added."""
        return iter(self._ready)

    def _take(self, place: int, rows: Sequence[Row] | TfcError) -> None:
        if isinstance(rows, TfcError):
            self._ready.append(Ready(rows))
            return
        self._ready.append(Ready({}))
        self._owners += [(place, number) for number in range(len(rows))]
        self.rows += rows
        self._rows[place] = rows
        self._outputs[place] = [None] * len(rows)

    def _read(self, place: int, outputs: Sequence[RowOutputs]) -> Prediction | TfcError:
        item = self._items[place]
        if all(np.isfinite(array).all() for row in outputs for array in row.values()):
            return self._task.read(item, self._rows[place], outputs)
        return CheckFailed(
            "the engine gives values that are not finite numbers for this text",
            where=item.where,
            fix="Check the engine with: tfc verify; then build one in a higher precision",
        )
