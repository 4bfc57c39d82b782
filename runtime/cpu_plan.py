"""The plan of a job on the CPU: how many batches at once, on how many threads, how large.

A rule gives one for any machine. Measuring an engine (`tfc.runtime.plan_measure`) may give a
better one, which is kept in the user's cache, by the hash of the engine and by the machine: an
artifact may be read-only, and may be run on several machines.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tfc.errors import TfcError
from tfc.files import sha256_of_json, write_atomically
from tfc.runtime.batching import CPU_PLAN, Limits
from tfc.runtime.cores import usable_cores

_FORMAT = 1  # changes when a plan that was measured earlier would not be chosen any more
_CPUINFO = Path("/proc/cpuinfo")
RULE = "not measured"


@dataclass(frozen=True)
class CpuPlan:
    """How batches run.

    Attributes:
        streams: batches at once.
        threads: CPU threads of all of them together.
        tokens: the most tokens of a batch, padding included.
        chosen: where it is from: `RULE`, or what was measured.
    """

    streams: int
    threads: int
    tokens: int
    chosen: str = RULE

    @property
    def is_measured(self) -> bool:
        """Whether it was measured, and not given by the rule."""
        return self.chosen != RULE

    @property
    def limits(self) -> Limits:
        """How large a batch may be."""
        rows = CPU_PLAN.limits.rows
        return Limits(max(rows, rows * self.tokens // rule_tokens()), self.tokens)

    def text(self) -> str:
        """`2 streams of 1 thread, 512 tokens a batch (not measured)`."""
        each = self.threads // self.streams
        return (
            f"{self.streams} stream{'s' * (self.streams != 1)} of {each} thread{'s' * (each != 1)},"
            f" {self.tokens} tokens a batch ({self.chosen})"
        )


def rule_tokens() -> int:
    """The tokens of a batch where nothing was measured."""
    tokens = CPU_PLAN.limits.tokens
    assert tokens is not None
    return tokens


def plan_by_rule(threads: int | None = None) -> CpuPlan:
    """A stream for each thread: no kernel then waits for its slowest thread."""
    threads = threads or usable_cores()
    return CpuPlan(threads, threads, rule_tokens())


@dataclass(frozen=True)
class PlanKey:
    """What a measured plan holds for.

    Attributes:
        engine: the hash of the engine.
        runtime: the backend and its version.
        threads: the threads that may be used.
        machine: the processor.
    """

    engine: str
    runtime: str
    threads: int
    machine: str

    def file(self, folder: Path) -> Path:
        """Where the plan is kept."""
        return folder / f"{sha256_of_json([_FORMAT, dataclasses.asdict(self)])[:32]}.json"


def machine_name(cpuinfo: Path = _CPUINFO) -> str:
    """The processor, as Linux's /proc/cpuinfo tells it, and the cores that may be used."""
    model = platform.processor()
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = " ".join(
            next((line for line in lines if line.startswith(start)), "")
            for start in ("model name", "flags")
        )
    return f"{platform.machine()} {usable_cores()} {model}"


def plans_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where plans are kept: in `plans/` of `TFC_CACHE_DIR`, or of `~/.cache/tfc`."""
    base = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(environment.get("TFC_CACHE_DIR") or base / "tfc").expanduser() / "plans"


def kept_plan(key: PlanKey, folder: Path) -> CpuPlan | None:
    """The plan that was measured earlier; None where none was, or its file cannot be used."""
    try:
        found = json.loads(key.file(folder).read_text(encoding="utf-8"))
        plan = CpuPlan(**found)
    except (OSError, ValueError, TypeError):
        return None
    numbers = (plan.streams, plan.threads, plan.tokens)
    return plan if all(isinstance(n, int) and n >= 1 for n in numbers) else None


def keep_plan(key: PlanKey, folder: Path, plan: CpuPlan) -> bool:
    """Keep a measured plan; whether that was possible. A job runs without it too."""
    data = json.dumps(dataclasses.asdict(plan), indent=2).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(key.file(folder), data)
    except (OSError, TfcError):
        return False
    return True
