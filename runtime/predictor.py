"""Items → outcomes: the loop over windows and batches that `Session` and the batch job share."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

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


# Called with the tokens of a batch that has run, without and with its padding.
OnBatch = Callable[[int, int], None]


@dataclass(frozen=True)
class _Run:
    """What one call of `Predictor.outcomes` runs with; `ended` says that nobody wants the rest."""

    task: Task
    runner: BatchRunner
    limits: Limits
    pool: ThreadPoolExecutor
    on_batch: OnBatch | None
    ended: threading.Event


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
        on_batch: OnBatch | None = None,
    ) -> Iterator[Outcome]:
        """One outcome per item, in order.

        Three things go on at once: the rows of a window are made, the window before it runs, and
        the caller has the outcomes of the one before that. Items are read by the caller's thread,
        one window ahead of the one whose outcomes it gets.
        """
        if self._feeder.most_rows < limits.rows:
            limits = replace(limits, rows=self._feeder.most_rows)
        source = windows(items, window)
        first = next(source, None)
        if first is None:
            return
        # Pools start no thread until they are used: a single short call starts none.
        with (
            ThreadPoolExecutor(1, "tfc-rows") as ahead,
            ThreadPoolExecutor(1, "tfc-window") as running,
            ThreadPoolExecutor(self._streams, "tfc-run") as pool,
        ):
            run = _Run(task, runner, limits, pool, on_batch, threading.Event())
            try:
                second = next(source, None)
                if second is None:
                    yield from self._ran(run, self._window(task, first, 0))
                    return
                current, index = self._started(run, ahead, running, first, 0), len(first)
                for chunk in itertools.chain([second], source):
                    following = self._started(run, ahead, running, chunk, index)
                    index += len(chunk)
                    yield from current.result()
                    current = following
                yield from current.result()
            finally:
                run.ended.set()

    def _started(
        self,
        run: _Run,
        ahead: ThreadPoolExecutor,
        running: ThreadPoolExecutor,
        chunk: Sequence[object],
        first: int,
    ) -> Future[Iterator[Outcome]]:
        """Begin to make the rows of a window; it runs when they are made, and its turn comes."""
        rows = ahead.submit(self._window, run.task, chunk, first)
        return running.submit(lambda: self._ran(run, rows.result()))

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
        work = functools.partial(self._ran_batch, run, gathered)
        several = self._streams > 1 and len(plan) > 1
        for _ in run.pool.map(work, plan) if several else map(work, plan):
            pass  # what a batch raises is raised here, and ends the call
        return (_outcome(ready) for ready in gathered.ready())

    def _ran_batch(self, run: _Run, gathered: Gathered, batch: Batch) -> None:
        if run.ended.is_set():
            return
        rows = [gathered.rows[i] for i in batch.indices]
        feed = self._feeder.feed(rows)
        tokens = 0
        for index, row, outputs in zip(batch.indices, rows, run.runner.run(feed), strict=True):
            length = self._feeder.length(row)
            gathered.add(index, outputs, length, feed.width)
            tokens += length
        if run.on_batch is not None:
            run.on_batch(tokens, feed.width * len(rows))


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
