"""How far a batch job is: what is counted while it runs, and who is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tfc.runtime.jobs.inputs import InputFile, Place

# Seconds between two calls of `on_progress`: a bar that moves ten times a second looks alive, and
# the calls cost nothing beside the rows.
PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True)
class JobProgress:
    """How far a job is.

    `bytes` of `total_bytes` of the input are done, those of an earlier run among them;
    `total_bytes` is 0 where nobody knows: of a pipe, or with a limit. The other numbers are of
    this run.
    """

    bytes: int
    total_bytes: int
    rows: int
    bad_rows: int
    tokens: int
    padded: int
    seconds: float


Progress = Callable[[JobProgress], None]


class Clock:
    """Counts what this run does, and calls `on_progress` once in `PROGRESS_INTERVAL_S` at most.

    Rows are counted when they are written, tokens and padding when their batch has run.
    """

    def __init__(
        self, on_progress: Progress | None, files: Sequence[InputFile], limit: int | None
    ) -> None:
        self._call = on_progress
        sizes = [file.size for file in files]
        self._before = [sum(sizes[:number]) for number in range(len(files))]
        self._total = sum(sizes) if limit is None else 0
        self._started = time.perf_counter()
        self._bytes = self._next = 0.0
        self._lock = threading.Lock()
        self.rows = self._bad_rows = self.tokens = self._padded = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def ran(self, tokens: int, padded: int) -> None:
        """A batch has run; called from several threads."""
        with self._lock:
            self.tokens += tokens
            self._padded += padded
            self._tell()

    def written(self, place: Place, rows: int, bad_rows: int) -> None:
        """Rows up to a place are written."""
        with self._lock:
            self.rows += rows
            self._bad_rows += bad_rows
            self._bytes = self._before[place.file] + place.end
            self._tell()

    def finish(self) -> None:
        """The job is done."""
        self._bytes, self._next = max(self._bytes, self._total), 0.0
        self._tell()

    def _tell(self) -> None:
        now = time.perf_counter()
        if self._call is None or now < self._next:
            return
        self._next = now + PROGRESS_INTERVAL_S
        self._call(
            JobProgress(
                int(self._bytes),
                self._total,
                self.rows,
                self._bad_rows,
                self.tokens,
                self._padded,
                now - self._started,
            )
        )
