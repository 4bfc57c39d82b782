"""The loop of a batch job: rows are joined with their outcomes, and written shard by shard."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, BinaryIO, Protocol

from tfc.errors import BadData, JobStopped, TfcError, UsageError, disk_errors
from tfc.runtime.job_inputs import InputFile, Place, rows_of_files
from tfc.runtime.job_outputs import Output, Workspace, workspace, writing
from tfc.runtime.job_writers import Style, Writer, compressed, writer_of
from tfc.runtime.journal import RESTART, Journal, Shard
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
class _Found:
    """A row, the number of its file, and what came of it."""

    file: int
    row: Row
    outcome: Outcome


def write_shards(session: Predicts, plan: Plan, watch: Watch) -> tuple[list[Shard], int]:
    """Run a job into a file or a folder; its shards, and how many of them an earlier run did.

    Raises:
        BadData, JobStopped, UsageError, NoSpace: as `run_job` says.
    """
    path = plan.output.path
    assert path is not None
    with disk_errors(path), workspace(plan.output) as work:
        journal = _journal_of(work, plan)
        before = len(journal.shards)
        if journal.finished:
            work.remove()
            return journal.shards, before
        watch.written(journal.place, 0, 0)
        with _kept(journal, work, plan), disk_errors(path):
            with closing(_found(session, plan, journal, watch)) as found:
                _write_rest(found, work, plan, journal, watch)
            _check_any(journal.shards, plan)
            work.put_in_place(journal.shards, _done(plan, journal))
            journal.finish()
        work.remove()
        return journal.shards, before


def stream_rows(session: Predicts, plan: Plan, watch: Watch) -> list[Shard]:
    """Run a job into standard output, and its bad rows into standard error.

    Raises:
        BadData, JobStopped, UsageError: as `run_job` says.
    """
    out, err = sys.stdout.buffer, sys.stderr.buffer
    shards: list[Shard] = []
    with compressed(out, plan.style.format.codec) as sink:
        writer = writer_of(sink, plan.style, None, header=True)
        with closing(_found(session, plan, None, watch)) as found:
            while (first := next(found, None)) is not None:
                tally = _Tally(writer, err, plan, watch)
                tally.take(chain([first], islice(found, plan.shard_rows - 1)))
                shards.append(tally.shard(0, 0))
                writer.close()
                err.flush()
    if watch.stopped():
        raise JobStopped("stopped, as asked; what was read until then is written")
    _check_any(shards, plan)
    return shards


def _write_rest(
    found: Iterator[_Found], work: Workspace, plan: Plan, journal: Journal, watch: Watch
) -> None:
    while (first := next(found, None)) is not None:
        journal.begin()
        rows = chain([first], islice(found, plan.shard_rows - 1))
        journal.add(_shard_written(rows, work, plan, journal, watch))
        if watch.stopped():
            raise JobStopped("stopped, as asked", where=str(plan.output.path))


def _shard_written(
    rows: Iterator[_Found], work: Workspace, plan: Plan, journal: Journal, watch: Watch
) -> Shard:
    number, format = len(journal.shards), plan.style.format
    # A single file has one header; each part of a folder is a file of its own.
    header = plan.output.is_folder or not any(shard.bytes for shard in journal.shards)
    with writing(work.part(number)) as good, writing(work.errors_part(number)) as bad:
        with compressed(good.stream, format.codec) as sink:
            writer = writer_of(sink, plan.style, journal.columns, header=header)
            tally = _Tally(writer, bad.stream, plan, watch)
            tally.take(rows)
            writer.close()
        good.keep, bad.keep = bool(tally.rows), bool(tally.bad_rows)
        sizes = [staged.stream.tell() if staged.keep else 0 for staged in (good, bad)]
    return tally.shard(*sizes)


def _found(
    session: Predicts, plan: Plan, journal: Journal | None, watch: Watch
) -> Generator[_Found, None, None]:
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
            yield _Found(*waiting.popleft(), outcome)
    finally:
        if hasattr(outcomes, "close"):
            outcomes.close()


class _Tally:
    """Writes rows, and counts them."""

    def __init__(self, writer: Writer, errors: BinaryIO, plan: Plan, watch: Watch) -> None:
        self._writer, self._errors, self._plan, self._watch = writer, errors, plan, watch
        self.rows = self.bad_rows = self._tokens = self._padded = 0
        self._place = Place()
        self._first_bad: tuple[str, int, str] | None = None

    def take(self, found: Iterator[_Found]) -> None:
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

    def _take(self, chunk: list[_Found]) -> None:
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

    def _refuse(self, each: _Found, error: TfcError) -> None:
        file, line = self._plan.files[each.file].name, each.row.line
        record: dict[str, Any] = {"file": file, "line": line, "error": error.what}
        if self._plan.id_column is not None:
            record["id"] = each.row.content.as_dict().get(self._plan.id_column)
        self._errors.write(json_bytes({**record, "row": each.row.content.as_text()}))
        self.bad_rows += 1
        self._first_bad = self._first_bad or (file, line, error.what)


def _journal_of(work: Workspace, plan: Plan) -> Journal:
    """The journal to go on with; a new one where there is nothing to go on with."""
    if plan.restart:
        work.clear()
    journal = Journal.read(work.journal_path)
    path = plan.output.path
    assert path is not None
    if journal is not None and journal.finished and (journal.key != plan.key or not path.exists()):
        journal = None  # its output is in its place, or was taken away: it needs nothing more
        work.clear()
    if journal is not None and not plan.resumable:
        journal = None  # no run can go on with it
        work.clear()
    if journal is None:
        return _new_journal(work, plan)
    journal.check_same(plan.key)
    if not journal.finished:
        work.check_parts(journal.shards)
    return journal


def _new_journal(work: Workspace, plan: Plan) -> Journal:
    """A journal of nothing; of everything where this very job is finished in the output folder."""
    journal = Journal(work.journal_path, plan.key)
    done = work.finished()
    if done is None:
        work.clear()
        return journal
    if done.get("job") != plan.key or not plan.resumable:
        raise UsageError(
            "another finished job is in this folder",
            where=str(plan.output.path),
            fix=f"Choose another folder. {RESTART}",
        )
    journal.shards.append(Shard(**done["sums"], place=Place(), bytes=0, error_bytes=0))
    journal.finished = True
    return journal


@contextmanager
def _kept(journal: Journal, work: Workspace, plan: Plan) -> Iterator[None]:
    """Say, where the job fails, that what is done is kept; drop it where there is nothing."""
    try:
        yield
    except BaseException as error:
        if not journal.shards:
            work.clear()
            raise
        if not plan.resumable:
            work.clear()
            kept = "Standard input and pipes cannot be read again, so nothing is kept"
        else:
            kept = f"The first {journal.rows} rows are kept: run the same command to go on"
        if isinstance(error, TfcError):
            error.fix = f"{error.fix}. {kept}" if error.fix else kept
        raise


def _check_any(shards: list[Shard], plan: Plan) -> None:
    """Refuse to make an output without a row."""
    if any(shard.rows for shard in shards):
        return
    bad_rows = sum(shard.bad_rows for shard in shards)
    first = next((shard.first_bad for shard in shards if shard.first_bad is not None), None)
    shards.clear()
    if first is None:
        raise empty_input(plan.files[0].name)
    file, line, problem = first
    raise BadData(
        f"not one of its {bad_rows} rows can be used; the first: {problem}",
        where=f"{file}, line {line}",
        fix="Give rows with a text each, and name the field that holds it (--text-column)",
    )


def empty_input(name: str) -> BadData:
    """What is said of an input without a row."""
    return BadData("the input file is empty", where=name, fix="Give a file with one row per line")


def _done(plan: Plan, journal: Journal) -> dict[str, Any]:
    shards = journal.shards
    names = ("rows", "bad_rows", "tokens", "padded")
    sums = {name: sum(getattr(shard, name) for shard in shards) for name in names}
    return {"job": plan.key, "sums": sums}
