"""The journal of a batch job: what is done, so that a job that was killed goes on from there.

A file of JSON lines. The first says which job it is: engine, inputs, options. Each later one says
that a shard is on the disk, and where in the input the next one begins; a shard counts from the
moment that its line is there. Every line carries a hash of itself. A last line without its end was
being written when the job died, and does not count; any other damage is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfc.errors import BadData, UsageError
from tfc.files import write_atomically
from tfc.runtime.jobs.inputs import Place
from tfc.runtime.jobs.writers import OutputColumns

_VERSION = 1
_HASH_DIGITS = 16  # 64 bits: damage goes unseen once in 10^19 times
RESTART = "Give --restart (restart=True) to drop what is done and begin anew"


@dataclass(frozen=True)
class Shard:
    """One shard of a job that is done.

    Attributes:
        rows, bad_rows: how many were predicted, and how many not.
        tokens, padded: of what ran: the texts' own tokens, and those with padding.
        place: where in the input it ends.
        bytes, error_bytes: the sizes of its file and of its errors; 0 where there is none.
        columns: the output's columns, as far as they are known.
        first_bad: file, line and problem of its first bad row.
    """

    rows: int
    bad_rows: int
    tokens: int
    padded: int
    place: Place
    bytes: int
    error_bytes: int
    columns: OutputColumns = None
    first_bad: tuple[str, int, str] | None = None


class Journal:
    """The journal at `path` of the job that `key` describes, read or to be begun.

    Attributes:
        key: which job it is.
        shards: what is done.
        finished: whether the output is in its place.
    """

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path = path
        self.key = key
        self.shards: list[Shard] = []
        self.finished = False

    @property
    def rows(self) -> int:
        """How many rows of the input are done, bad ones among them."""
        return sum(shard.rows + shard.bad_rows for shard in self.shards)

    @property
    def place(self) -> Place:
        """Where in the input to go on."""
        return self.shards[-1].place if self.shards else Place()

    @property
    def columns(self) -> OutputColumns:
        """The output's columns, as far as they are known."""
        return self.shards[-1].columns if self.shards else None

    def begin(self) -> None:
        """Put it on the disk, if it is not there yet."""
        if not self.path.exists():
            write_atomically(self.path, _line({"version": _VERSION, "key": self.key}))

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """The journal at `path`; None where there is none.

        Raises:
            BadData: it is damaged, or written by another version.
        """
        if not path.exists():
            return None
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        entries = [_entry(line, path, i) for i, line in enumerate(whole.split(b"\n"), 1)]
        if entries[0].get("version") != _VERSION:
            raise _damaged(path, 1)
        journal = cls(path, entries[0]["key"])
        for entry in entries[1:]:
            journal._take(entry)
        if torn:
            os.truncate(path, len(whole) + 1)
        return journal

    def add(self, shard: Shard) -> None:
        """Note that a shard is on the disk."""
        self._append({"shard": asdict(shard)})
        self.shards.append(shard)

    def finish(self) -> None:
        """Note that the output is in its place."""
        self._append({"finished": True})
        self.finished = True

    def check_same(self, key: dict[str, Any]) -> None:
        """Refuse to go on with another job.

        Raises:
            UsageError: what is different.
        """
        key = json.loads(json.dumps(key))  # as it was written: tuples are lists
        if key == self.key:
            return
        parts = [name for name in key if key[name] != self.key.get(name)]
        raise UsageError(
            f"an unfinished job is here, with other {' and '.join(parts)}:"
            f" {_differences(self.key, key, parts)}",
            where=str(self.path.parent),
            fix=f"Run the command of that job to finish it. {RESTART}",
        )

    def _take(self, entry: dict[str, Any]) -> None:
        if "finished" in entry:
            self.finished = True
            return
        fields = entry["shard"]
        first = fields["first_bad"]
        self.shards.append(
            Shard(
                **{
                    **fields,
                    "place": Place(**fields["place"]),
                    "first_bad": None if first is None else (first[0], first[1], first[2]),
                }
            )
        )

    def _append(self, entry: dict[str, Any]) -> None:
        """Add a line and flush it to the disk; where that fails, the line is taken back."""
        before = self.path.stat().st_size
        with self.path.open("ab", buffering=0) as stream:
            try:
                line = _line(entry)
                while line:
                    line = line[stream.write(line) :]
                os.fsync(stream.fileno())
            except OSError:
                os.truncate(self.path, before)
                raise


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=True)
    return f"{_hash(text.encode())} {text}\n".encode()


def _entry(line: bytes, path: Path, number: int) -> dict[str, Any]:
    digits, _, text = line.partition(b" ")
    if digits.decode(errors="replace") != _hash(text):
        raise _damaged(path, number)
    entry: dict[str, Any] = json.loads(text)
    return entry


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_HASH_DIGITS]


def _damaged(path: Path, number: int) -> BadData:
    return BadData(
        "the journal of the unfinished job is damaged", where=f"{path}, line {number}", fix=RESTART
    )


def _differences(old: dict[str, Any], new: dict[str, Any], parts: list[str]) -> str:
    """`threads was 2, is 4`, of the values that differ; of long ones the name only."""
    found = []
    for part in parts:
        before, now = old.get(part), new[part]
        if not isinstance(before, dict) or not isinstance(now, dict):
            found.append(_difference(part, before, now))
            continue
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        found += [_difference(name, before.get(name), now.get(name)) for name in names]
    return "; ".join(found)


def _difference(name: str, before: object, now: object) -> str:
    if isinstance(before, list | dict) or isinstance(now, list | dict):
        return f"{name} changed"
    return f"{name} was {json.dumps(before)}, is {json.dumps(now)}"
