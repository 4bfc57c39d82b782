"""What a contestant of `tfc bench` costs before its first result, and in memory.

Each is opened in a process of its own: only there are imports, loading and peak memory its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfc.runtime.backends.cuda_calls import free_bytes
from tfc.runtime.batching import CPU
from tfc.runtime.padding import Feed
from tfc.steps.benchmark.contestants import Entry, hardware_of, opened
from tfc.steps.record import OnProgress

_STATUS = Path("/proc/self/status")
_MOST_SECONDS = 600  # `torch.compile` of a large model on two cores takes minutes


@dataclass(frozen=True)
class StartUp:
    """Of a fresh process: seconds to load, seconds of the first batch after that, peak memory.

    `load_seconds` counts the imports, not the start of Python. `peak_bytes` is the resident set at
    its highest; None where the system does not tell. `gpu_bytes` is by how much the free memory of
    the GPU fell from before loading to after the batch, whoever took it; None on a CPU, and where
    it was not measured.
    """

    load_seconds: float
    first_seconds: float
    peak_bytes: int | None
    gpu_bytes: int | None = None


@dataclass(frozen=True)
class Started:
    """What each contestant cost, and why some did not start, both by name."""

    found: dict[str, StartUp]
    failed: dict[str, str]


def start_ups(
    entries: Sequence[Entry], feed: Feed, threads: int, on_progress: OnProgress
) -> Started:
    """Open each contestant in a fresh process, and run one batch."""
    found: dict[str, StartUp] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder, "batch.npz")
        np.savez(batch, **feed)  # type: ignore[arg-type]  # numpy's stub takes its flags for names
        for number, entry in enumerate(entries):
            on_progress(f"starting {entry.name}", number, len(entries))
            one = _start_up(entry, batch, threads)
            if isinstance(one, StartUp):
                found[entry.name] = one
            else:
                failed[entry.name] = one
    return Started(found, failed)


def _start_up(entry: Entry, batch: Path, threads: int) -> StartUp | str:
    command = {"entry": entry.as_json(), "batch": str(batch), "threads": threads}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tfc.steps.benchmark.start", json.dumps(command)],
            capture_output=True,
            text=True,
            timeout=_MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its first result took longer than {_MOST_SECONDS} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"its process ended with {done.returncode}"
    return StartUp(**json.loads(done.stdout.splitlines()[-1]))


def _measured(command: dict[str, Any]) -> StartUp:
    entry = Entry.from_json(command["entry"])
    free = free_bytes() if hardware_of(entry) != CPU else None
    begun = time.perf_counter()
    contestant = opened(entry, command["threads"])
    loaded = time.perf_counter()
    with np.load(command["batch"]) as batch:
        feed = dict(batch)
    before = time.perf_counter()
    contestant.run(feed)
    first = time.perf_counter() - before
    taken = None
    if free is not None and (left := free_bytes()) is not None:
        taken = free - left
    return StartUp(loaded - begun, first, _peak_bytes(), taken)


def _peak_bytes() -> int | None:
    """The high-water mark of this process itself; `getrusage` would count its parent's, too."""
    if not _STATUS.is_file():
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    print(json.dumps(vars(_measured(json.loads(sys.argv[1])))))
