"""How many CPU cores this process may use."""

from __future__ import annotations

import os
import time
from pathlib import Path


def usable_cores() -> int:
    """The cores that this process may use, which containers and `taskset` can make fewer."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_STAT = Path("/proc/stat")


def busy_share(seconds: float = 0.3) -> float | None:
    """The share of all cores that is in use while this process sleeps for `seconds`.

    None where the system does not tell (it is read from Linux's /proc/stat).
    """
    if not _STAT.is_file():
        return None
    before = _jiffies()
    time.sleep(seconds)
    total, idle = (now - then for now, then in zip(_jiffies(), before, strict=True))
    return 1.0 - idle / total if total else None


def _jiffies() -> tuple[int, int]:
    """(all, idle) clock ticks of all cores since the start: columns 1-8 and 4-5 of /proc/stat."""
    fields = [int(field) for field in _STAT.read_text().splitlines()[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]
