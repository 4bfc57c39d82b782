"""Batch jobs: JSON lines in, the same rows with their predictions out.

Each output line is the input row, its fields as they were, with `prediction` added; a field of
that name in the input is replaced, so that a job's output can be the input of the next one. Rows
keep their order. A row that cannot be used goes to ``<output>.errors.jsonl`` as
``{"line": n, "error": "…", "row": "its text"}``, and the job goes on; lines are counted from 1.
Lines of white space only are no rows.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tfc.errors import BadData, UsageError
from tfc.runtime.batching import padding_waste
from tfc.runtime.job_files import ErrorFile, input_lines, open_input, staged_outputs
from tfc.runtime.predictor import Outcome
from tfc.runtime.rows import Columns, Row, rows_of_lines

PREDICTION = "prediction"
ERRORS_SUFFIX = ".errors.jsonl"
# Seconds between two calls of `on_progress`: a bar that moves ten times a second looks alive, and
# the calls cost nothing beside the rows.
PROGRESS_INTERVAL_S = 0.1

Progress = Callable[[int, int], None]


class TextSession(Protocol):
    """What a job needs of a session."""

    @property
    def columns(self) -> Columns:
        """The fields that hold an item, where the caller names none."""

    def outcomes(self, items: Iterator[object], **options: Any) -> Iterator[Outcome]:
        """One outcome per item, in order."""


@dataclass(frozen=True)
class JobSummary:
    """What a job did.

    `rows` were predicted and `bad_rows` were not. `tokens` counts the texts' own tokens, and
    `padding_waste` is the share of padding in what ran. `errors` is None where no row was bad.
    """

    rows: int
    bad_rows: int
    seconds: float
    rows_per_second: float
    tokens: int
    tokens_per_second: float
    padding_waste: float
    output: Path
    errors: Path | None


def run_job(
    session: TextSession,
    input: Path,
    output: Path,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    on_progress: Progress | None = None,
    limit: int | None = None,
    **options: object,
) -> JobSummary:
    """Predict every row of the JSON lines in `input`; write `output` when all of them are done.

    Whatever was at `output` and at its errors file is replaced, or removed where no row was bad.
    On any failure neither is touched.

    Args:
        session: a loaded `Session`.
        input: the file to read, UTF-8.
        output: the file to write; its folder is made where it is missing.
        text_column: the field that holds the text; left out ``text``, or the task's own: for
            question-answering ``question``.
        pair_column: the field that holds the second text, for models that take pairs; left out
            none, or the task's own: for question-answering ``context``.
        on_progress: called with (bytes of the input done, bytes of it in all), a few times a
            second and at the end.
        limit: read this many rows at most.
        options: what the task lets a call choose, as in `Session.predict`.

    Raises:
        BadData: the input is missing, unreadable or empty, or not one of its rows can be used.
        UsageError: the output would overwrite the input, is a folder, `limit` is below 1,
            or an option is not the task's.
        NoSpace: the disk is full.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"a job of {limit} rows is not possible", fix="Give a limit of 1 or more")
    started = time.perf_counter()
    errors = output.with_name(output.name + ERRORS_SUFFIX)
    _check_paths(input, output, errors)
    with open_input(input) as source, staged_outputs(output, errors) as (good, bad):
        progress = _Throttled(on_progress, input.stat().st_size)
        own = session.columns
        folder = input.parent if own.folder is not None else None
        columns = Columns(text_column or own.text, pair_column or own.pair, folder)
        rows = rows_of_lines(input_lines(source, input, limit), columns)
        counts = _Counts()
        for row, outcome in _joined(session, rows, options):
            counts.add(outcome)
            _write(row, outcome, good.write, bad)
            progress.report(row.end)
        _check_any(counts, bad, input)
        progress.finish()
    return counts.summary(time.perf_counter() - started, output, errors)


def texts_from_jsonl(path: Path, text_column: str = "text", limit: int | None = None) -> list[str]:
    """The texts of the first `limit` rows of the JSON lines in `path`.

    Raises:
        BadData: the file is missing, unreadable or empty, or one of these rows cannot be used.
    """
    texts: list[str] = []
    with open_input(path) as source:
        for row in rows_of_lines(input_lines(source, path, limit), Columns(text_column)):
            if isinstance(row.item, BadData):
                raise BadData(
                    row.item.what,
                    where=f"{path}, line {row.line}",
                    fix=f"Give one JSON object per line, with the text under '{text_column}'",
                )
            texts.append(str(row.item))
    if not texts:
        raise _empty(path)
    return texts


def _check_paths(input: Path, output: Path, errors: Path) -> None:
    if input.is_dir() or output.is_dir():
        raise UsageError(
            "this is a folder, not a file",
            where=str(input if input.is_dir() else output),
            fix="Name a file of JSON lines",
        )
    if input.resolve() in (output.resolve(), errors.resolve()):
        raise UsageError(
            "the job would overwrite its own input",
            where=str(input),
            fix="Choose another output file",
        )


def _joined(
    session: TextSession, rows: Iterator[Row], options: Mapping[str, object]
) -> Iterator[tuple[Row, Outcome]]:
    """Each row with its outcome; `waiting` holds no more rows than the session reads ahead."""
    waiting: deque[Row] = deque()

    def items() -> Iterator[object]:
        for row in rows:
            waiting.append(row)
            yield row.item

    for outcome in session.outcomes(items(), **options):
        yield waiting.popleft(), outcome


def _write(row: Row, outcome: Outcome, write: Callable[[bytes], object], bad: ErrorFile) -> None:
    if outcome.error is not None:
        bad.add(row.line, outcome.error.what, row.raw)
        return
    write(_json_line({**row.fields, PREDICTION: outcome.prediction}))


def _json_line(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character in a field passed through: only \\u can say it
        return json.dumps(value).encode() + b"\n"


def _check_any(counts: _Counts, bad: ErrorFile, input: Path) -> None:
    if counts.rows:
        return
    if bad.first is None:
        raise _empty(input)
    line, problem = bad.first
    raise BadData(
        f"not one of its {counts.bad_rows} rows can be used; the first: {problem}",
        where=f"{input}, line {line}",
        fix="Give one JSON object per line, and name the field with the text (--text-column)",
    )


def _empty(input: Path) -> BadData:
    return BadData(
        "the input file is empty", where=str(input), fix="Give a file with one row per line"
    )


class _Counts:
    """Rows and tokens so far."""

    def __init__(self) -> None:
        self.rows = self.bad_rows = self.tokens = self.padded = 0

    def add(self, outcome: Outcome) -> None:
        self.tokens += outcome.tokens
        self.padded += outcome.padded
        if outcome.error is None:
            self.rows += 1
        else:
            self.bad_rows += 1

    def summary(self, seconds: float, output: Path, errors: Path) -> JobSummary:
        return JobSummary(
            rows=self.rows,
            bad_rows=self.bad_rows,
            seconds=seconds,
            rows_per_second=self.rows / seconds,
            tokens=self.tokens,
            tokens_per_second=self.tokens / seconds,
            padding_waste=padding_waste(self.tokens, self.padded),
            output=output,
            errors=errors if self.bad_rows else None,
        )


class _Throttled:
    """Calls `on_progress` at most once in `PROGRESS_INTERVAL_S`, and at the end."""

    def __init__(self, on_progress: Progress | None, total: int) -> None:
        self._call = on_progress
        self._total = total
        self._done = 0
        self._next = 0.0

    def report(self, done: int) -> None:
        self._done = done
        now = time.perf_counter()
        if self._call is not None and now >= self._next:
            self._next = now + PROGRESS_INTERVAL_S
            self._call(done, self._total)

    def finish(self) -> None:
        if self._call is not None:
            self._call(self._done, self._total)
