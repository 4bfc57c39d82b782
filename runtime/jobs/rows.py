"""The rows of a batch job: read, joined with their outcomes, written, counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, Protocol

from tfc.errors import TfcError
from tfc.runtime.jobs.inputs import InputFile, Place, rows_of_files
from tfc.runtime.jobs.journal import Journal, Shard
from tfc.runtime.jobs.outputs import Output
from tfc.runtime.jobs.writers import Style, Writer
from tfc.runtime.predictor import Outcome
from tfc.runtime.rows import Columns, Row, json_bytes

# Rows that are turned into bytes at once.
_CHUNK = 4096


@dataclass(frozen=True)
class Plan:
    """What a job is to do: `limit` rows of `files` at most, in shards of `shard_rows`.

    `key` tells it from other jobs; `restart` drops what one of them left. `settings` go to the
    session with the items.
    """

    files: list[InputFile]
    columns: Columns
    id_column: str | None
    output: Output
    style: Style
    key: dict[str, Any]
    shard_rows: int
    limit: int | None
    restart: bool
    settings: Mapping[str, Any]

    @property
    def resumable(self) -> bool:
        """Whether the inputs can be read again from the middle."""
        return all(file.resumable for file in self.files)


class Predicts(Protocol):
    """What the loop needs of a session."""

    def outcomes(self, items: Iterable[object], **options: Any) -> Iterator[Outcome]:
        """One outcome per item, in order."""


@dataclass(frozen=True)
class Watch:
    """Who is told of every chunk that is written, and who is asked whether to stop."""

    written: Callable[[Place, int, int], None]
    stopped: Callable[[], bool]


@dataclass(frozen=True)
class Found:
    """A row, the number of its file, and what came of it."""

    file: int
    row: Row
    outcome: Outcome


def found_rows(
    session: Predicts, plan: Plan, journal: Journal | None, watch: Watch
) -> Generator[Found, None, None]:
    """The rows after those of the journal, each with its outcome.

    `waiting` holds no more rows than the session reads ahead.
    """
    waiting: deque[tuple[int, Row]] = deque()
    place, done = (Place(), 0) if journal is None else (journal.place, journal.rows)
    rest = None if plan.limit is None else max(0, plan.limit - done)
    # What cannot be read again is read to the place where the job stops; a job that can go on
    # stops after a shard.
    ends = journal is None or not plan.resumable

    def items() -> Iterator[object]:
        rows = rows_of_files(plan.files, plan.columns, place, watch.stopped)
        with closing(rows):
            for each in islice(rows, rest):
                waiting.append(each)
                yield each[1].item
                if ends and watch.stopped():
                    return

    outcomes = session.outcomes(items(), **plan.settings)
    try:
        for outcome in outcomes:
            yield Found(*waiting.popleft(), outcome)
    finally:
        if hasattr(outcomes, "close"):
            outcomes.close()


class Tally:
    """Writes rows, and counts them."""

    def __init__(self, writer: Writer, errors: BinaryIO, plan: Plan, watch: Watch) -> None:
        self._writer, self._errors, self._plan, self._watch = writer, errors, plan, watch
        self.rows = self.bad_rows = self._tokens = self._padded = 0
        self._place = Place()
        self._first_bad: tuple[str, int, str] | None = None

    def take(self, found: Iterator[Found]) -> None:
        """Write all of them."""
        while chunk := list(islice(found, _CHUNK)):
            before = self.rows, self.bad_rows
            self._take(chunk)
            rows, bad_rows = self.rows - before[0], self.bad_rows - before[1]
            self._watch.written(self._place, rows, bad_rows)

    def shard(self, bytes: int, error_bytes: int) -> Shard:
        """What was taken, in files of these sizes."""
        return Shard(
            rows=self.rows,
            bad_rows=self.bad_rows,
            tokens=self._tokens,
            padded=self._padded,
            place=self._place,
            bytes=bytes,
            error_bytes=error_bytes,
            columns=self._writer.columns,
            first_bad=self._first_bad,
        )

    def _take(self, chunk: list[Found]) -> None:
        usable = [each.row.content for each in chunk if each.outcome.error is None]
        problems = iter(self._writer.problems(usable))
        good = []
        for each in chunk:
            error = each.outcome.error or next(problems)
            if error is None:
                good.append((each.row.content, each.outcome.prediction))
            else:
                self._refuse(each, error)
            self._tokens += each.outcome.tokens
            self._padded += each.outcome.padded
        self._writer.write(good)
        self.rows += len(good)
        last = chunk[-1]
        self._place = Place(last.file, last.row.line, last.row.end)

    def _refuse(self, each: Found, error: TfcError) -> None:
        file, line = self._plan.files[each.file].name, each.row.line
        record: dict[str, Any] = {"file": file, "line": line, "error": error.what}
        if self._plan.id_column is not None:
            record["id"] = each.row.content.as_dict().get(self._plan.id_column)
        self._errors.write(json_bytes({**record, "row": each.row.content.as_text()}))
        self.bad_rows += 1
        self._first_bad = self._first_bad or (file, line, error.what)
