"""What this machine can build and run, and what is missing for the rest.

Looking imports no compiler: versions come from the packages' metadata, and a backend says itself
what it can do here.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfc.matrix_check import Check

# What an extra of tfc is for. The packages of each are read from tfc's own metadata.
PURPOSES = {
    "compile": "export, optimize and verify checkpoints",
    "lora": "export adapters of peft",
    "tensorrt": "TensorRT engines, on a machine with an NVIDIA GPU",
    "rtx": "TensorRT-RTX engines; builds without a GPU",
    "openvino": "OpenVINO engines for CPUs",
    "images": "vision models, which read image files with Pillow",
    "ray": "batch jobs on a Ray cluster",
    "metrics": "batch jobs that Prometheus watches: tfc run --metrics-file",
    "report": "pages about artifacts: tfc report",
    "eval": "metrics on labelled rows: tfc verify --label-column",
}
_DEVELOPMENT = {"dev", "demo"}  # extras for work on tfc itself

# Flags of /proc/cpuinfo that decide which kernels a CPU backend picks, and their usual names.
_CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "asimddp": "dot product",
    "i8mm": "int8 matmul",
    "bf16": "bf16",
    "sve": "SVE",
}


@dataclass(frozen=True)
class Python:
    """The interpreter that runs tfc."""

    version: str
    executable: str


@dataclass(frozen=True)
class Cpu:
    """`cores` are physical; `threads` is how many threads may run here at once, after limits."""

    model: str
    cores: int
    threads: int
    features: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes; `total` is after the limit of a container, `available` before it."""

    total: int
    available: int


@dataclass(frozen=True)
class GpuFact:
    """One NVIDIA GPU; `cuda` is the newest CUDA version that its driver serves."""

    name: str
    compute_capability: str
    cuda: str


@dataclass(frozen=True)
class Package:
    """A package that tfc can use; `installed` is empty where it is not there."""

    name: str
    extra: str
    minimum: str
    installed: str

    @property
    def fits(self) -> bool:
        """Whether it is installed and not too old."""
        return bool(self.installed) and _release(self.installed) >= _release(self.minimum)


@dataclass(frozen=True)
class BackendFact:
    """What a backend can do here; the reasons are empty where the answer is yes."""

    name: str
    version: str
    can_build: bool
    can_run: bool
    why_not_build: str
    why_not_run: str
    hardware: str


@dataclass(frozen=True)
class Advice:
    """A command that installs what is missing, and what that gives."""

    command: str
    purpose: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `tfc doctor` found."""

    tfc: str
    python: Python
    platform: str
    cpu: Cpu
    memory: Memory
    gpus: tuple[GpuFact, ...]
    why_no_gpu: str
    packages: tuple[Package, ...]
    backends: tuple[BackendFact, ...]
    advice: tuple[Advice, ...]
    matrix: tuple[Check, ...] = ()

    @property
    def can_run(self) -> bool:
        """Whether at least one backend can run engines here."""
        return any(backend.can_run for backend in self.backends)


def diagnose() -> Diagnosis:
    """Look at this machine."""
    from tfc.runtime.gpu import gpus, why_no_gpu

    packages = _packages(importlib.metadata.requires("tfc") or [])
    return Diagnosis(
        tfc=importlib.metadata.version("tfc"),
        python=Python(platform.python_version(), sys.executable),
        platform=" ".join(
            part for part in (platform.system(), platform.machine(), *platform.libc_ver()) if part
        ),
        cpu=_cpu(),
        memory=memory_here(),
        gpus=tuple(GpuFact(g.name, g.compute_capability, g.driver_version) for g in gpus()),
        why_no_gpu=why_no_gpu(),
        packages=packages,
        backends=_backends(),
        advice=_advice(packages),
        matrix=_matrix(),
    )


def _matrix() -> tuple[Check, ...]:
    """What the TensorRT backends that are installed need of this machine, and have."""
    from tfc.matrix_check import machine_of, matrix
    from tfc.runtime.backends.tensorrt_flavors import FLAVORS

    machine = machine_of(Path.cwd())
    there = [flavor for flavor in FLAVORS.values() if flavor.version()]
    return tuple(check for flavor in there for check in matrix(flavor, machine))


def _backends() -> tuple[BackendFact, ...]:
    from tfc.runtime.backends import backends

    found = [backend.availability() for backend in backends().values()]
    return tuple(
        BackendFact(
            name=a.name,
            version=a.version,
            can_build=a.can_build,
            can_run=a.can_run,
            why_not_build=a.why_not_build,
            why_not_run=a.why_not_run,
            hardware=a.hardware,
        )
        for a in found
    )


def _packages(requirements: list[str]) -> tuple[Package, ...]:
    """The packages in `requirements` (lines as in the metadata), without development ones."""
    found = []
    for line in requirements:
        requirement, _, marker = line.partition(";")
        extra = _first(r"extra == ['\"]([\w-]+)['\"]", marker)
        if extra in _DEVELOPMENT:
            continue
        name = _first(r"^([\w.-]+)", requirement)
        installed = _installed(name)
        if not installed and "platform" in marker:
            continue  # one of several builds of a package, each for its own platforms
        found.append(Package(name, extra, _first(r">=\s*([\w.]+)", requirement), installed))
    return tuple(found)


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _advice(packages: tuple[Package, ...]) -> tuple[Advice, ...]:
    """One command for the base packages that do not fit, and one for each such extra."""
    wanting = [package for package in packages if not package.fits]
    base = [f"'{p.name}>={p.minimum}'" if p.minimum else p.name for p in wanting if not p.extra]
    extras = dict.fromkeys(p.extra for p in wanting if p.extra)
    advice = [Advice(f"pip install {' '.join(base)}", "what every batch job needs")] if base else []
    advice += [Advice(f"pip install 'tfc[{name}]'", PURPOSES.get(name, "")) for name in extras]
    return tuple(advice)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without zeros at the end: `2.10.0+cpu` → (2, 10)."""
    numbers = [int(n) for n in _first(r"^(\d+(?:\.\d+)*)", version).split(".") if n]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _cpu() -> Cpu:
    """From /proc/cpuinfo where there is one, else what Python knows."""
    blocks = [_fields(block) for block in _read("/proc/cpuinfo").split("\n\n") if block.strip()]
    first = blocks[0] if blocks else {}
    flags = (first.get("flags") or first.get("Features") or "").split()
    physical = {(b.get("physical id"), b.get("core id")) for b in blocks if "core id" in b}
    threads = _threads()
    return Cpu(
        model=first.get("model name") or platform.processor() or platform.machine(),
        cores=len(physical) or os.cpu_count() or threads,
        threads=threads,
        features=tuple(name for flag, name in _CPU_FEATURES.items() if flag in flags),
    )


def _threads() -> int:
    """How many threads may run at once: the affinity mask and the container's quota."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    quota = _read("/sys/fs/cgroup/cpu.max").split()  # microseconds, of each period; or "max"
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, max(1, int(quota[0]) // int(quota[1])))
    return allowed


def memory_here() -> Memory:
    """The memory of this machine, or of the container."""
    fields = _fields(_read("/proc/meminfo"))
    total = _kibibytes(fields, "MemTotal") or (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    limit = _read("/sys/fs/cgroup/memory.max").strip()  # bytes, or "max"
    if limit.isdigit():
        total = min(total, int(limit))
    return Memory(total, min(total, _kibibytes(fields, "MemAvailable") or total))


def _kibibytes(fields: Mapping[str, str], name: str) -> int:
    return int(_first(r"(\d+) kB", fields.get(name, "")) or 0) * 1024


def _fields(text: str) -> dict[str, str]:
    """`name : value` lines as a dictionary."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _read(path: str) -> str:
    """The text of a file of the kernel; empty where this system has no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else ""
