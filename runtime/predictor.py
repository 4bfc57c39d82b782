"""Items → outcomes: the loop over windows and batches that `Session` and the batch job share."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tfc.errors import BadInput, TfcError
from tfc.runtime.batching import Batch, Limits, batches, windows
from tfc.runtime.feeding import BatchRunner, Feeder
from tfc.runtime.gathering import Gathered, Ready
from tfc.runtime.tasks.base import Item, Prediction, Row, Task


@dataclass(frozen=True)
class Outcome:
    """What came of one item: a prediction, or the error that says why there is none.

    `tokens` counts the tokens of the item's own rows, `padded` the width of the rows that they ran
    in; both are 0 for what did not run.
    """

    prediction: Prediction = field(default_factory=dict)
    error: TfcError | None = None
    tokens: int = 0
    padded: int = 0


@dataclass(frozen=True)
class _Window:
    """A window of items, each with its rows or the error that it has none for."""

    items: Sequence[Item]
    found: Sequence[Sequence[Row] | TfcError]


@dataclass(frozen=True)
class _Run:
    """What one call of `Predictor.outcomes` runs with."""

    task: Task
    runner: BatchRunner
    limits: Limits
    pool: ThreadPoolExecutor


class Predictor:
    """Everything between items and predictions, except the task and the engine.

    Args:
        feeder: makes batches of rows.
        streams: how many batches to work on at once.
    """

    def __init__(self, feeder: Feeder, streams: int = 1) -> None:
        self._feeder = feeder
        self._streams = streams

    def outcomes(
        self,
        task: Task,
        runner: BatchRunner,
        items: Iterable[object],
        window: int,
        limits: Limits,
    ) -> Iterator[Outcome]:
        """One outcome per item, in order. While one window runs, the rows of the next are made."""
        if self._feeder.most_rows < limits.rows:
            limits = Limits(self._feeder.most_rows, limits.tokens)
        source = windows(items, window)
        first = next(source, None)
        if first is None:
            return
        # Pools start no thread until they are used: a single short call starts none.
        with (
            ThreadPoolExecutor(1, "tfc-rows") as ahead,
            ThreadPoolExecutor(self._streams, "tfc-run") as pool,
        ):
            run = _Run(task, runner, limits, pool)
            current, index = self._window(task, first, 0), len(first)
            for chunk in source:
                following = ahead.submit(self._window, task, chunk, index)
                index += len(chunk)
                yield from self._ran(run, current)
                current = following.result()
            yield from self._ran(run, current)

    def _window(self, task: Task, values: Sequence[object], first: int) -> _Window:
        items = [Item(value, f"item {first + place}") for place, value in enumerate(values)]
        refused = [_refusal(task, item) for item in items]
        good = [place for place, error in enumerate(refused) if error is None]
        found: list[Sequence[Row] | TfcError] = [error or () for error in refused]
        for place, rows in zip(good, task.rows([items[i] for i in good]), strict=True):
            found[place] = rows if isinstance(rows, TfcError) else self._fitting(items[place], rows)
        return _Window(items, found)

    def _fitting(self, item: Item, rows: Sequence[Row]) -> Sequence[Row] | BadInput:
        length = max(self._feeder.length(row) for row in rows)
        if length <= self._feeder.longest:
            return rows
        return BadInput(
            f"the text has {length} tokens, and the engine was built for up to"
            f" {self._feeder.longest}",
            where=item.where,
            fix="Build an engine with a larger sequence profile: tfc build-engine",
        )

    def _ran(self, run: _Run, window: _Window) -> Iterator[Outcome]:
        gathered = Gathered(run.task, window.items, window.found)
        plan = batches([self._feeder.length(row) for row in gathered.rows], run.limits)
        work = functools.partial(self._ran_batch, run.runner, gathered)
        several = self._streams > 1 and len(plan) > 1
        for _ in run.pool.map(work, plan) if several else map(work, plan):
            pass  # what a batch raises is raised here, and ends the call
        return (_outcome(ready) for ready in gathered.ready())

    def _ran_batch(self, runner: BatchRunner, gathered: Gathered, batch: Batch) -> None:
        rows = [gathered.rows[i] for i in batch.indices]
        feed = self._feeder.feed(rows)
        for index, row, outputs in zip(batch.indices, rows, runner.run(feed), strict=True):
            gathered.add(index, outputs, self._feeder.length(row), feed.width)


def _refusal(task: Task, item: Item) -> TfcError | None:
    """Why the item cannot be used; None if it can. An error is its own."""
    if isinstance(item.value, TfcError):
        return item.value
    try:
        task.check(item)
    except BadInput as error:
        return error
    return None


def _outcome(ready: Ready) -> Outcome:
    if isinstance(ready.found, TfcError):
        return Outcome({}, ready.found, ready.tokens, ready.padded)
    return Outcome(ready.found, None, ready.tokens, ready.padded)
