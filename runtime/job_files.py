"""The files of a batch job: lines read one at a time, outputs that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tfc.errors import BadData, UsageError, disk_errors
from tfc.files import sync

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # editors on Windows write it at the start of UTF-8 files
_MODE = 0o644  # mkstemp makes files that only their owner reads


@contextmanager
def open_input(path: Path) -> Iterator[BinaryIO]:
    """The input, open to read bytes.

    Raises:
        BadData: it is missing or may not be read.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise BadData(
            "there is no such file" if missing else f"it cannot be read: {error.strerror}",
            where=str(path),
            fix="Give a file of JSON lines that you may read",
        ) from error
    with stream:
        yield stream


def input_lines(
    stream: BinaryIO, path: Path, limit: int | None
) -> Iterator[tuple[int, bytes, int]]:
    """(line number, the line without its end, the place after it) of lines that are not blank.

    Raises:
        BadData: the file cannot be read on.
    """
    place = rows = 0
    number = 0
    while rows != limit:
        try:
            line = stream.readline()
        except OSError as error:
            raise BadData(
                f"reading it failed: {error.strerror}",
                where=f"{path}, line {number + 1}",
                fix="Copy the file to a disk that works",
            ) from error
        if not line:
            return
        number += 1
        place += len(line)
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.strip():
            rows += 1
            yield number, line.rstrip(b"\r\n"), place


@dataclass
class ErrorFile:
    """Where the rows go that cannot be used; `first` is (line, problem) of the first of them."""

    stream: BinaryIO
    first: tuple[int, str] | None = None

    def add(self, line: int, problem: str, raw: bytes) -> None:
        """Write one row; bytes that are no UTF-8 are written as `\\xNN`."""
        if self.first is None:
            self.first = (line, problem)
        row = raw.decode(errors="backslashreplace")
        record = {"line": line, "error": problem, "row": row}
        self.stream.write(json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n")


@contextmanager
def staged_outputs(output: Path, errors: Path) -> Iterator[tuple[BinaryIO, ErrorFile]]:
    """Two temporary files that become `output` and `errors` when the block ends well.

    The errors come first, so that an output is never there without them. Where no row was bad,
    an errors file of an earlier run is removed. When the block raises, neither path is touched.

    Raises:
        NoSpace, EnvironmentProblem: the disk is full, or writing is not permitted.
        UsageError: the output's folder cannot be a folder.
    """
    with disk_errors(output), ExitStack() as cleanup:
        _make_folder(output.parent)
        good_path, good = _temporary(output, cleanup)
        bad_path, bad = _temporary(errors, cleanup)
        error_file = ErrorFile(bad)
        yield good, error_file
        _commit_one(bad, bad_path, errors, keep=error_file.first is not None)
        _commit_one(good, good_path, output, keep=True)
        sync(output.parent)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            "a file is where the output's folder would be",
            where=str(folder),
            fix="Choose another output file",
        ) from error


def _temporary(target: Path, cleanup: ExitStack) -> tuple[Path, BinaryIO]:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    path = Path(name)
    cleanup.callback(path.unlink, missing_ok=True)
    stream = cleanup.enter_context(os.fdopen(handle, "wb"))
    return path, stream


def _commit_one(stream: BinaryIO, temporary: Path, target: Path, *, keep: bool) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    if not keep:
        target.unlink(missing_ok=True)
        return
    os.chmod(temporary, _MODE)
    os.replace(temporary, target)
