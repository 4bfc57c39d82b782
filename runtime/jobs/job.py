"""Batch jobs: rows in, the same rows with their predictions out.

Input and output are JSON lines, CSV or Parquet (`tfc.runtime.formats`), compressed or not; the
input is files, globs, folders or standard input, the output a file, a folder of parts or standard
output. Each row of the output is the input's, its fields as they were, with `prediction` added; a
field of that name in the input is replaced, so that a job's output can be the input of the next
one. Rows keep their order. CSV has a column ``prediction.<field>`` for each field of it.

A row that cannot be used goes to ``<output>.errors.jsonl`` (in an output folder
``_errors.jsonl``) as ``{"file": "…", "line": n, "error": "…", "row": "its text"}``, and the job
goes on. Lines are counted from 1; of Parquet it is the rows. Lines of white space only are no
rows.

The output comes in shards, each written and flushed before the journal notes it
(`tfc.runtime.jobs.journal`). A job that was killed goes on after its last shard when it is run
again with the same engine, inputs and options, and its output is the same to the byte: a shard
holds whole windows, so that the same texts run together.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tfc.errors import BadData, UsageError
from tfc.manifest import Signature
from tfc.manifest import Task as TaskRecord
from tfc.runtime.batching import padding_waste
from tfc.runtime.feeding import OnRows
from tfc.runtime.formats import JSONL, PARQUET, Format
from tfc.runtime.formats.jsonl import rows_of_lines
from tfc.runtime.formats.predictions import VECTOR, VECTORS, prediction_fields
from tfc.runtime.formats.streams import LineReader, open_bytes
from tfc.runtime.jobs.inputs import InputFile, files_from_inputs, identities
from tfc.runtime.jobs.journal import Shard
from tfc.runtime.jobs.outputs import Output, output_from_path
from tfc.runtime.jobs.progress import Clock, Progress
from tfc.runtime.jobs.rows import Plan, Watch
from tfc.runtime.jobs.shards import empty_input, stream_rows, write_shards
from tfc.runtime.jobs.writers import Style
from tfc.runtime.predictor import Outcome
from tfc.runtime.rows import Columns
from tfc.runtime.tokenization import Text, checked_text

# Windows in a part of an output folder: parts of 16384 rows on a CPU, 65536 on a GPU.
_WINDOWS_OF_A_PART = 4


class TextSession(Protocol):
    """What a job needs of a session."""

    task: TaskRecord
    signature: Signature

    @property
    def columns(self) -> Columns:
        """The fields that hold an item, where the caller names none."""

    @property
    def window(self) -> int:
        """How many items are sorted by length together."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its engine from another one."""

    def outcomes(self, items: Iterable[object], **options: Any) -> Iterator[Outcome]:
        """One outcome per item, in order."""


@dataclass(frozen=True)
class JobSummary:
    """What a job did.

    `rows` were predicted and `bad_rows` were not; `resumed_rows` of both were done by an earlier
    run. `seconds` and the speeds are of this run. `tokens` counts the texts' own tokens, and
    `padding_waste` is the share of padding in what ran. `output` is None for standard output,
    `errors` where no row was bad.
    """

    rows: int
    bad_rows: int
    resumed_rows: int
    seconds: float
    rows_per_second: float
    tokens: int
    tokens_per_second: float
    padding_waste: float
    output: Path | None
    errors: Path | None


def run_job(
    session: TextSession,
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    id_column: str | None = None,
    format: str | None = None,
    output_format: str | None = None,
    half_embeddings: bool = False,
    limit: int | None = None,
    window: int | None = None,
    shard_rows: int | None = None,
    restart: bool = False,
    on_progress: Progress | None = None,
    on_rows: OnRows | None = None,
    stopped: Callable[[], bool] = lambda: False,
    **options: object,
) -> JobSummary:
    """Predict every row of the inputs; the output is in its place when all of them are done.

    Whatever was at an output file and at its errors file is replaced, or removed where no row was
    bad. On any failure neither is touched; what is done is kept for the next run. A folder gets
    its parts one by one, and the file ``_SUCCESS`` at the end.

    Args:
        session: a loaded `Session`.
        input: files, globs, folders, or ``-`` for standard input.
        output: the file to write, a folder (it exists or the name ends with ``/``), or ``-``.
            Folders on the way are made where they are missing.
        text_column: the field that holds the text; left out ``text``, or the task's own: for
            question-answering ``question``.
        pair_column: the field that holds the second text, for models that take pairs; left out
            none, or the task's own: for question-answering ``context``.
        id_column: a field to repeat as ``id`` in the errors file.
        format: the inputs' format, where their names do not tell it.
        output_format: the output's; left out what the file's name tells, or the inputs' own.
        half_embeddings: store embeddings as float16; for Parquet.
        limit: read this many rows at most.
        window: how many rows are sorted by length together; left out the session's own.
        shard_rows: rows of a shard, made up to whole windows; left out one window, and for a
            folder several.
        restart: drop what an unfinished run left here, and the parts of a finished one.
        on_progress: called a few times a second and at the end.
        on_rows: called with each batch and the outputs of its rows, by the threads that run them.
        stopped: asked after each shard; when it is true, the job stops there.
        options: what the task lets a call choose, and `too_long`, as in `Session.predict`.

    Raises:
        BadData: an input is missing, unreadable or empty, or not one of its rows can be used;
            the journal is damaged.
        JobStopped: `stopped` was true.
        UsageError: the output would overwrite an input, is written by another run or holds
            another job; a number is below 1; an option is not the task's.
        NoSpace: the disk is full.
    """
    for name, number in (("limit", limit), ("window", window), ("shard_rows", shard_rows)):
        if number is not None and number < 1:
            raise UsageError(f"a {name} of {number} rows is not possible", fix="Give 1 or more")
    inputs = [input] if isinstance(input, str | Path) else list(input)
    files = files_from_inputs(inputs, format)
    # The name of a folder or a pipe does not tell: the inputs' format, uncompressed.
    target = output_from_path(output, output_format, Format(files[0].format.kind))
    check_paths(inputs, files, target)
    if files[0].format.kind == PARQUET and target.format.kind != JSONL:
        from tfc.runtime.formats.parquet import check_same_columns

        check_same_columns([file.path for file in files if file.path is not None])
    own, window = session.columns, window or session.window
    columns = Columns(text_column or own.text, pair_column or own.pair, own.folder)
    clock = Clock(on_progress, files, limit)
    plan = Plan(
        files=files,
        columns=columns,
        id_column=id_column,
        output=target,
        style=_style(session, target, half_embeddings),
        key={},
        shard_rows=_whole_windows(shard_rows, window, target),
        limit=limit,
        restart=restart,
        settings={
            "window": window,
            "on_batch": clock.ran,
            **({"on_rows": on_rows} if on_rows is not None else {}),
            **options,
        },
    )
    plan = replace(plan, key=_key(session, plan, {**options, "window": window}))
    watch = Watch(clock.written, stopped)
    if target.path is None:
        shards, before = stream_rows(session, plan, watch), 0
    else:
        shards, before = write_shards(session, plan, watch)
    clock.finish()
    return _summary(shards, before, clock.seconds, target)


def texts_from_jsonl(
    path: Path,
    text_column: str = "text",
    limit: int | None = None,
    pair_column: str | None = None,
) -> list[Text]:
    """The texts, or the pairs of texts, of the first `limit` rows of the JSON lines in `path`.

    Raises:
        BadData: the file is missing, unreadable or empty, or one of these rows cannot be used.
    """
    texts: list[Text] = []
    with open_bytes(path, None) as source:
        rows = rows_of_lines(LineReader(source, str(path)), Columns(text_column, pair_column))
        for row in islice(rows, limit):
            if isinstance(row.item, BadData):
                raise BadData(
                    row.item.what,
                    where=f"{path}, line {row.line}",
                    fix=f"Give one JSON object per line, with the text under '{text_column}'",
                )
            texts.append(checked_text(row.item, f"{path}, line {row.line}"))
    if not texts:
        raise empty_input(str(path))
    return texts


def check_paths(inputs: Sequence[str | Path], files: Sequence[InputFile], output: Output) -> None:
    """Refuse an output that is among the inputs, or in their folder.

    Raises:
        UsageError: it is.
    """
    if output.path is None:
        return
    target = output.path.resolve()
    written = {target} if output.errors is None else {target, output.errors.resolve()}
    for file in files:
        if file.path is not None and file.path.resolve() in written:
            raise UsageError(
                "the job would overwrite its own input",
                where=file.name,
                fix="Choose another output",
            )
    for folder in (Path(value).resolve() for value in inputs if Path(value).is_dir()):
        if folder == target or folder in target.parents:
            raise UsageError(
                "the output lies in the folder of the inputs, and would be read by the next run",
                where=str(output.path),
                fix="Choose another place for the output",
            )


def _style(session: TextSession, output: Output, half: bool) -> Style:
    if half and output.format.kind != PARQUET:
        raise UsageError(
            "only Parquet stores embeddings as float16",
            fix="Write Parquet, or leave the half embeddings out",
        )
    if output.format.kind == JSONL:
        return Style(output.format)
    fields = prediction_fields(session.task, session.signature)
    if half and not any(field.kind in (VECTOR, VECTORS) for field in fields):
        raise UsageError(
            f"the predictions of {session.task.name} are no embeddings",
            fix="Leave the half embeddings out",
        )
    return Style(output.format, fields, half)


def _whole_windows(shard_rows: int | None, window: int, output: Output) -> int:
    """The rows of a shard: whole windows, so that a job that goes on sorts the same rows."""
    if shard_rows is None:
        return window * (_WINDOWS_OF_A_PART if output.is_folder else 1)
    return -(-shard_rows // window) * window


def _key(session: TextSession, plan: Plan, options: dict[str, object]) -> dict[str, Any]:
    """What a run must have in common with the one that it goes on with."""
    key = {
        "engine": session.identity,
        "inputs": identities(plan.files),
        "options": {
            **options,
            "text_column": plan.columns.text,
            "pair_column": plan.columns.pair,
            "id_column": plan.id_column,
            "format": plan.files[0].format.kind,
            "output_format": plan.style.format.suffix,
            "half_embeddings": plan.style.half,
            "shard_rows": plan.shard_rows,
            "limit": plan.limit,
        },
        "tfc": {"version": importlib.metadata.version("tfc")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(key, default=str))  # tuples are lists there
    return plain


def _summary(shards: Sequence[Shard], before: int, seconds: float, output: Output) -> JobSummary:
    bad_rows = sum(shard.bad_rows for shard in shards)
    tokens = sum(shard.tokens for shard in shards)
    own = shards[before:]
    return JobSummary(
        rows=sum(shard.rows for shard in shards),
        bad_rows=bad_rows,
        resumed_rows=sum(shard.rows + shard.bad_rows for shard in shards[:before]),
        seconds=seconds,
        rows_per_second=sum(shard.rows for shard in own) / seconds,
        tokens=tokens,
        tokens_per_second=sum(shard.tokens for shard in own) / seconds,
        padding_waste=padding_waste(tokens, sum(shard.padded for shard in shards)),
        output=output.path,
        errors=output.errors if bad_rows else None,
    )
