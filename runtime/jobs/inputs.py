"""The inputs of a batch job: files, globs, folders or standard input → rows, from any place on."""

from __future__ import annotations

import glob
import hashlib
import io
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfc.errors import BadData, UsageError
from tfc.runtime.formats import (
    CSV,
    JSONL,
    KNOWN,
    PARQUET,
    TSV,
    Format,
    format_from_name,
    format_from_path,
)
from tfc.runtime.formats.csv import rows_of_csv
from tfc.runtime.formats.jsonl import rows_of_lines
from tfc.runtime.formats.streams import Bytes, LineReader, StoppableInput, open_bytes
from tfc.runtime.rows import Columns, Row

STDIN = "-"
# What the identity of a file hashes at each of its ends. A change between them shows in the time
# of the last change; hashing all of a large input would take minutes at every start, and an input
# may be ten thousand files.
_HASHED_BYTES = 64 << 10
_HIDDEN = (".", "_")  # names that begin so are no data, as other readers of folders have it


@dataclass(frozen=True)
class Place:
    """A place between two rows: in file number `file`, after line `line` and byte `end`."""

    file: int = 0
    line: int = 0
    end: int = 0


@dataclass(frozen=True)
class InputFile:
    """One file; `path` is None for standard input."""

    path: Path | None
    format: Format

    @property
    def name(self) -> str:
        """What messages and the errors file call it."""
        return "standard input" if self.path is None else str(self.path)

    @property
    def size(self) -> int:
        """Bytes; 0 for what is no regular file."""
        return self.path.stat().st_size if self.path is not None and self.path.is_file() else 0

    @property
    def resumable(self) -> bool:
        """Whether it can be read again from the middle: pipes cannot."""
        return self.path is not None and self.path.is_file()

    def identity(self) -> dict[str, Any]:
        """What tells it from another file: name, size, time of change, a hash of both its ends."""
        assert self.path is not None
        stat = self.path.stat()
        digest = hashlib.sha256()
        with open_bytes(self.path, None) as source:
            digest.update(source.stream.read(_HASHED_BYTES))
            source.stream.seek(max(0, stat.st_size - _HASHED_BYTES))
            digest.update(source.stream.read(_HASHED_BYTES))
        return {
            "name": str(self.path.resolve()),
            "bytes": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256_of_ends": digest.hexdigest(),
        }


def files_from_inputs(inputs: Sequence[str | Path], format: str | None) -> list[InputFile]:
    """The files that `inputs` name, each a file, a glob, a folder or ``-``, in their order.

    A folder gives the files below it that have a format's suffix, by name. Names that begin with
    a dot or an underscore are left out.

    Raises:
        BadData: a glob or a folder has no file.
        UsageError: the files are of several formats, or standard input has no format.
    """
    given = None if format is None else format_from_name(format)
    files = [file for value in inputs for file in _files(str(value), given)]
    kinds = sorted({file.format.kind for file in files})
    if len(kinds) > 1:
        raise UsageError(
            f"the inputs are of several formats: {' and '.join(kinds)}",
            fix="Run a job for each format",
        )
    if len(files) > 1 and any(file.path is None for file in files):
        raise UsageError("standard input and files together", fix="Give '-' alone, or files")
    return files


def identities(files: Sequence[InputFile]) -> dict[str, dict[str, Any]]:
    """What tells the inputs of a job from others, by their number; of pipes it is the name only."""
    return {
        str(number): file.identity() if file.resumable else {"name": file.name}
        for number, file in enumerate(files)
    }


def rows_of_files(
    files: Sequence[InputFile], columns: Columns, after: Place, stopped: Callable[[], bool]
) -> Generator[tuple[int, Row], None, None]:
    """(number of the file, row) of every row after the place, to the end or until `stopped`.

    Raises:
        BadData: a file is missing or damaged, or lacks a column of its format.
    """
    for number in range(after.file, len(files)):
        file, start = files[number], after if number == after.file else Place(number)
        folder = file.path.parent if file.path is not None else Path()
        own = columns if columns.folder is None else replace(columns, folder=folder)
        for row in _rows(file, own, start, stopped):
            yield number, row


def _files(value: str, given: Format | None) -> Iterator[InputFile]:
    if value == STDIN:
        if given is None or given.kind == PARQUET or given.codec is not None:
            raise UsageError(
                "standard input has no name that tells its format"
                if given is None
                else "standard input is read as uncompressed lines",
                fix="Give its format: --format jsonl, csv or tsv",
            )
        yield InputFile(None, given)
        return
    path = Path(value)
    found = [path]
    if path.is_dir():
        found = [name for name in sorted(path.rglob("*")) if _is_data(name, path, given)]
    elif glob.has_magic(value) and not path.exists():
        found = [Path(name) for name in sorted(glob.glob(value, recursive=True))]
        found = [name for name in found if name.is_file()]
    if not found:
        raise BadData("there is no input file here", where=value, fix=f"Give files of {KNOWN}")
    for name in found:
        # A name that tells nothing is taken for JSON lines.
        yield InputFile(name, given or format_from_path(name) or Format(JSONL))


def _is_data(path: Path, folder: Path, given: Format | None) -> bool:
    if any(part.startswith(_HIDDEN) for part in path.relative_to(folder).parts):
        return False
    return path.is_file() and (given is not None or format_from_path(path) is not None)


def _rows(
    file: InputFile, columns: Columns, after: Place, stopped: Callable[[], bool]
) -> Iterator[Row]:
    if file.format.kind == PARQUET:
        from tfc.runtime.formats.parquet import rows_of_parquet

        assert file.path is not None
        yield from rows_of_parquet(file.path, columns, after.line)
        return
    with open_bytes(file.path, file.format.codec) as source:
        if file.path is None:
            source = Bytes(_standard_input(stopped))
        lines = LineReader(source, file.name)
        place = (after.line, after.end)
        if file.format.kind in (CSV, TSV):
            yield from rows_of_csv(lines, columns, file.format.kind, file.name, place)
            return
        lines.skip_to(*place)
        yield from rows_of_lines(lines, columns)


def _standard_input(stopped: Callable[[], bool]) -> Any:
    try:
        return io.BufferedReader(StoppableInput(sys.stdin.fileno(), stopped))
    except (OSError, ValueError):  # no real file, as under a test: it ends by itself
        return sys.stdin.buffer
