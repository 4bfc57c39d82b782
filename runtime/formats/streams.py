"""Bytes of files, compressed or not, and their lines; what cannot be read becomes `BadData`."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tfc.errors import BadData

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # editors on Windows write it at the start of UTF-8 files
# A line of more bytes is a bad row: a file without line ends must not fill the memory.
MOST_LINE_BYTES = 64 << 20
_KEPT_OF_LONG = 1000  # bytes of such a line that the errors file shows
_POLL_S = 0.2  # how long a read of standard input waits before it asks whether to stop


@dataclass(frozen=True)
class Line:
    """One line: its number from 1, its bytes with their end, and the place after it.

    `too_long` says that only its beginning is there.
    """

    number: int
    raw: bytes
    end: int
    too_long: bool = False


@dataclass(frozen=True)
class Bytes:
    """An open file: its bytes, uncompressed, and how many of the file's own were read."""

    stream: BinaryIO
    place: Callable[[], int] | None = None


@contextmanager
def open_bytes(path: Path | None, codec: str | None) -> Iterator[Bytes]:
    """The file at `path`, or standard input.

    Raises:
        BadData: it is missing or may not be read.
    """
    if path is None:
        yield Bytes(sys.stdin.buffer)
        return
    with _opened(path) as stream:
        if codec is None:
            yield Bytes(stream)
            return
        import pyarrow as pa

        with pa.PythonFile(stream, mode="r") as raw, pa.CompressedInputStream(raw, codec) as whole:
            yield Bytes(io.BufferedReader(whole), raw.tell)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = path.open("rb")
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise BadData(
            "there is no such file" if missing else f"it cannot be read: {error.strerror}",
            where=str(path),
            fix="Give a file of rows that you may read",
        ) from error
    with stream:
        yield stream


class LineReader:
    """The lines of a file, one after the other.

    Args:
        source: the open file.
        name: what errors call it.

    Raises:
        BadData: the file cannot be read on.
    """

    def __init__(self, source: Bytes, name: str) -> None:
        self._source = source
        self._name = name
        self._number = self._end = 0

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        raw = self._read()
        if not raw:
            raise StopIteration
        number = self._number
        too_long = len(raw) == MOST_LINE_BYTES and not raw.endswith(b"\n")
        if too_long:
            self._skip_rest()
            raw = raw[:_KEPT_OF_LONG]
        if number == 1:
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        return Line(number, raw, self._place(), too_long)

    def skip_to(self, line: int, end: int) -> None:
        """Go on after line number `line`, which ends at byte `end`."""
        if line <= self._number:
            return
        if self._source.place is None and self._source.stream.seekable():
            self._source.stream.seek(end)
            self._number, self._end = line, end
            return
        while self._number < line and next(self, None) is not None:
            pass

    def _place(self) -> int:
        return self._end if self._source.place is None else self._source.place()

    def _read(self) -> bytes:
        try:
            raw = self._source.stream.readline(MOST_LINE_BYTES)
        except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise BadData(
                f"reading it failed: {reason}",
                where=f"{self._name}, line {self._number + 1}",
                fix="Check that the file is whole, and copy it to a disk that works",
            ) from error
        self._number += 1 if raw else 0
        self._end += len(raw)
        return raw

    def _skip_rest(self) -> None:
        number = self._number
        while raw := self._read():
            if raw.endswith(b"\n"):
                break
        self._number = number


class StoppableInput(io.RawIOBase):
    """A file descriptor that is at its end as soon as `stopped` says so.

    Python repeats a read that a signal interrupts; a job that waits for standard input would not
    notice that it is to stop.
    """

    def __init__(self, descriptor: int, stopped: Callable[[], bool]) -> None:
        self._descriptor, self._stopped = descriptor, stopped

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there; 0 at the end."""
        while not self._stopped():
            if select.select([self._descriptor], [], [], _POLL_S)[0]:
                found = os.read(self._descriptor, len(buffer))
                buffer[: len(found)] = found
                return len(found)
        return 0
