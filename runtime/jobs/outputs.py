"""The outputs of a batch job: where its shards are kept, and how they become the output.

The shards of an output file, and the journal, stand in a hidden folder beside it
(``.<name>.tfc-job``). At the end they are joined, and the whole file is moved into its place. An
output folder gets its shards one by one, as ``part-00000.parquet``, and at the end ``_SUCCESS``,
which lists them; its journal is in ``.tfc-job`` inside. A lock in the hidden folder keeps a second
run away.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tfc.errors import BadData, UsageError
from tfc.files import sync
from tfc.runtime.formats import KNOWN, Format, format_from_name, format_from_path
from tfc.runtime.jobs.journal import RESTART, Shard
from tfc.runtime.jobs.writers import join

STDOUT = "-"
ERRORS_SUFFIX = ".errors.jsonl"
SUCCESS = "_SUCCESS"
_FOLDER_ERRORS = "_errors.jsonl"
_WORK = ".tfc-job"
_LOCK, _JOURNAL = "lock", "journal.jsonl"
_PARTIAL = ".partial"
_MODE = 0o644


@dataclass(frozen=True)
class Output:
    """Where a job writes.

    Attributes:
        path: the file or the folder; None for standard output.
        is_folder: whether it is a folder of parts.
        format: of its file, or of each part.
    """

    path: Path | None
    is_folder: bool
    format: Format

    @property
    def errors(self) -> Path | None:
        """Where bad rows go; None where they go to standard error."""
        if self.path is None:
            return None
        if self.is_folder:
            return self.path / _FOLDER_ERRORS
        return self.path.with_name(self.path.name + ERRORS_SUFFIX)

    @property
    def work(self) -> Path:
        """The hidden folder for what is not finished."""
        assert self.path is not None
        if self.is_folder:
            return self.path / _WORK
        return self.path.with_name(f".{self.path.name}{_WORK}")


def output_from_path(value: str | Path, format: str | None, otherwise: Format) -> Output:
    """Where to write: ``-``, a folder (it exists, or the name ends with ``/``), or a file.

    The format is `format`; left out the one that the file's name tells, or `otherwise` for a
    folder and for standard output.

    Raises:
        UsageError: the name tells no format, or Parquet is to be written to standard output.
    """
    text, given = str(value), None if format is None else format_from_name(format)
    if text == STDOUT:
        found = given or otherwise
        if found.kind == "parquet":
            raise UsageError(
                "standard output takes lines, not Parquet",
                fix="Write to a file, or give --output-format jsonl",
            )
        return Output(None, False, found)
    path = Path(value)
    if text.endswith("/") or path.is_dir():
        return Output(path, True, given or otherwise)
    own = given or format_from_path(path)
    if own is None:
        raise UsageError(
            "this name does not tell what to write",
            where=text,
            fix=f"End a file's name with {KNOWN}; end a folder's with /",
        )
    return Output(path, False, own)


class Workspace:
    """The files of one job while it runs, under its lock.

    Attributes:
        journal_path: where its journal is.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._work = output.work
        self.journal_path = self._work / _JOURNAL

    def part(self, number: int) -> Path:
        """The file of a shard."""
        assert self._output.path is not None
        folder = self._output.path if self._output.is_folder else self._work
        return folder / f"part-{number:05}{self._output.format.suffix}"

    def errors_part(self, number: int) -> Path:
        """The file of a shard's bad rows."""
        return self._work / f"errors-{number:05}.jsonl"

    def finished(self) -> dict[str, Any] | None:
        """What ``_SUCCESS`` says of the finished job in a folder; None where there is none.

        Raises:
            UsageError: the folder holds other files.
        """
        path = self._output.path
        if not self._output.is_folder or path is None:
            return None
        names = sorted(other.name for other in path.iterdir() if other.name != _WORK)
        if SUCCESS not in names:
            if names:
                raise UsageError(
                    f"this folder is not empty: it holds {names[0]}",
                    where=str(path),
                    fix="Choose another output folder",
                )
            return None
        try:
            done = json.loads((path / SUCCESS).read_text(encoding="utf-8"))
        except ValueError:  # of another program: it is empty there
            done = None
        return done if isinstance(done, dict) else {}

    def check_parts(self, shards: Sequence[Shard]) -> None:
        """Refuse to go on where a shard of the journal is not there any more.

        Raises:
            BadData: a file is missing, or has another size.
        """
        for number, shard in enumerate(shards):
            sizes = {self.part(number): shard.bytes, self.errors_part(number): shard.error_bytes}
            for path, size in sizes.items():
                if size and (not path.is_file() or path.stat().st_size != size):
                    raise BadData(
                        "a part of the unfinished job is missing or damaged",
                        where=str(path),
                        fix=RESTART,
                    )

    def clear(self) -> None:
        """Drop what an unfinished job left, and the parts of a finished one in a folder."""
        for path in self._work.iterdir():
            if path.name != _LOCK:
                path.unlink()
        if self._output.is_folder and self._output.path is not None:
            for pattern in ("part-[0-9]*", f".part-[0-9]*{_PARTIAL}"):
                for path in self._output.path.glob(pattern):
                    path.unlink()
            for name in (SUCCESS, _FOLDER_ERRORS):
                (self._output.path / name).unlink(missing_ok=True)

    def put_in_place(self, shards: Sequence[Shard], done: dict[str, Any]) -> None:
        """Make the output of these shards: its errors first, so that it never is without them.

        Doing it again gives the same. `done` stands in ``_SUCCESS`` of a folder, with the parts.
        """
        output = self._output
        assert output.path is not None
        assert output.errors is not None
        parts = {self.part(i): shard for i, shard in enumerate(shards) if shard.bytes}
        error_files = [self.errors_part(i) for i, shard in enumerate(shards) if shard.error_bytes]
        if error_files:
            _join_to(output.errors, error_files, Format("jsonl"))
        else:
            output.errors.unlink(missing_ok=True)
        if output.is_folder:
            listed = [
                {"name": path.name, "rows": shard.rows, "bytes": shard.bytes}
                for path, shard in parts.items()
            ]
            text = json.dumps({**done, "parts": listed}, indent=1)
            with writing(output.path / SUCCESS) as staged:
                staged.stream.write(text.encode() + b"\n")
        else:
            _join_to(output.path, list(parts), output.format)

    def remove(self) -> None:
        """Delete the hidden folder, the journal last: until then the job can be told finished."""
        for path in self._work.iterdir():
            if path.name not in (_LOCK, _JOURNAL):
                path.unlink()
        for name in (_JOURNAL, _LOCK):
            (self._work / name).unlink(missing_ok=True)
        with suppress(OSError):  # another run has just made its lock here
            self._work.rmdir()


@contextmanager
def workspace(output: Output) -> Iterator[Workspace]:
    """The hidden folder of an output, made where it is missing, and locked.

    Raises:
        UsageError: another run holds it, or the output's folder cannot be one.
    """
    folder = output.work
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    stream = _locked(folder)
    try:
        yield Workspace(output)
    finally:
        _remove_unused(folder, missing)
        stream.close()


@dataclass
class Staged:
    """A file that is being written; without `keep` it is dropped instead of put in its place."""

    stream: BinaryIO
    keep: bool = True


@contextmanager
def writing(path: Path) -> Iterator[Staged]:
    """A file beside `path` that is flushed and takes its place when the block ends well."""
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        with partial.open("wb") as stream:
            staged = Staged(stream)
            yield staged
            stream.flush()
            if staged.keep:
                os.fsync(stream.fileno())
        if not staged.keep:
            partial.unlink()
            return
        os.chmod(partial, _MODE)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _join_to(path: Path, parts: Sequence[Path], format: Format) -> None:
    with writing(path) as staged:
        join(parts, staged.stream, format)


def _locked(folder: Path) -> BinaryIO:
    """The lock file in `folder`, which is made where it is missing; closing it unlocks."""
    path = folder / _LOCK
    while True:
        _make_folder(folder)
        with suppress(FileNotFoundError):  # another run has just removed the folder
            stream = path.open("ab")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.close()
                raise UsageError(
                    "another run is writing this output",
                    where=str(folder),
                    fix="Wait for it to end, or choose another output",
                ) from error
            if path.exists() and os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                return stream
            stream.close()  # the run that held it has just finished and removed it


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            "a file is where the output's folder would be",
            where=str(folder.parent),
            fix="Choose another output",
        ) from error


def _remove_unused(folder: Path, missing: Sequence[Path]) -> None:
    """Where the job kept nothing, take away the lock and the folders that were missing before."""
    if folder.exists() and {path.name for path in folder.iterdir()} <= {_LOCK}:
        (folder / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
    if not folder.exists():
        for path in missing[1:]:
            with suppress(OSError):  # it holds the output
                path.rmdir()
