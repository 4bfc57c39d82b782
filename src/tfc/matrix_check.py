"""Whether a long build can end well on this machine: asked before it, not found out after.

Versions of TensorRT, CUDA and the driver, the GPU's architecture, the graph's opset, memory and
disk. Each answer that stops a build has a fix.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfc.errors import BackendUnavailable
from tfc.runtime.backends.tensorrt_flavors import FLAVORS, Flavor, numbers_of_version
from tfc.runtime.gpu import Gpu

OK, WARNING, REFUSED, NOT_NEEDED = "ok", "warning", "refused", "not needed"
# The plan, and the same once more in the user's cache where that is on another disk or has no hard
# links; half as much again for the code of kernels.
_DISK_FACTOR = 2.5
# TensorRT-RTX 1.7.1 took 150 MB and 3.3 times the graph's bytes, for MiniLM in fp16 and in fp32
# (45 and 90 MB): the parser's copy of the weights, the builder's, and the plan.
_MEMORY_FACTOR, _MEMORY_BYTES = 3.5, 150_000_000
# On the GPU are the weights, and a plan's copy of them. Not measured here: what activations need
# depends on the sizes, and the builder says it where it lacks it.
_GPU_FACTOR = 2


@dataclass(frozen=True)
class Check:
    """One question about a build with one backend.

    `state` is `ok`, `warning`, `refused` or `not needed`; `fix` is there for the middle two.
    """

    backend: str
    what: str
    found: str
    needed: str
    state: str
    fix: str = ""

    @property
    def sentence(self) -> str:
        """What is wrong."""
        return f"{self.backend} needs {self.needed}, and {self.found}"


@dataclass(frozen=True)
class Machine:
    """What a build has to do with.

    Attributes:
        gpus: that this process may use.
        memory: bytes of host memory that are available.
        disk: bytes free where the engine is written.
        gpu_memory: bytes free on the first GPU; None where that cannot be told.
    """

    gpus: Sequence[Gpu]
    memory: int
    disk: int
    gpu_memory: int | None = None


@dataclass(frozen=True)
class Wanted:
    """What is to be built: the opset of the graph, and the bytes of its weights."""

    opset: int
    weights: int


def machine_of(folder: Path) -> Machine:
    """This machine, for an engine in `folder`."""
    from tfc.doctor import memory_here
    from tfc.runtime.gpu import free_memory, gpus

    found = gpus()
    free = free_memory(0) if found else None
    return Machine(found, memory_here().available, shutil.disk_usage(folder).free, free)


def cuda_of_flavor(flavor: Flavor) -> int | None:
    """The CUDA version that the installed package is for; None where its name does not tell."""
    for distribution in flavor.distributions:
        match = re.search(r"-cu(\d+)$", distribution)
        if match and _installed(distribution):
            return int(match[1])
    return None


def matrix(flavor: Flavor, machine: Machine, wanted: Wanted | None = None) -> list[Check]:
    """Every question about a build with one of the TensorRT family.

    Args:
        flavor: which one.
        machine: where.
        wanted: what is to be built; without it the machine alone is asked.
    """
    checks = [_version(flavor), *_gpu(flavor, machine.gpus)]
    if wanted is not None:
        checks += [_opset(flavor, wanted.opset), *_room(flavor, machine, wanted)]
    return checks


def check_before_build(name: str, machine: Machine, wanted: Wanted) -> tuple[str, ...]:
    """Notes about what may go wrong.

    Raises:
        BackendUnavailable: the first thing that will, with its fix.
    """
    checks = matrix(FLAVORS[name], machine, wanted)
    for check in checks:
        if check.state == REFUSED:
            raise BackendUnavailable(check.sentence, fix=check.fix)
    return tuple(f"{c.sentence}. {c.fix}" for c in checks if c.state == WARNING)


def _version(flavor: Flavor) -> Check:
    oldest = ".".join(map(str, flavor.oldest))
    needed = f"{flavor.label} {oldest} or later"
    problem = flavor.missing()
    version = flavor.version()
    found = f"{version} is installed" if version else "it is not installed"
    state = OK if problem is None else REFUSED
    return Check(flavor.label, "version", found, needed, state, problem.fix if problem else "")


def _gpu(flavor: Flavor, gpus: Sequence[Gpu]) -> list[Check]:
    cuda = cuda_of_flavor(flavor)
    if not gpus:
        state = NOT_NEEDED if flavor.builds_without_gpu else REFUSED
        fix = "" if flavor.builds_without_gpu else "Build on a machine with the GPU to run on"
        return [Check(flavor.label, "GPU", "there is none", "a GPU", state, fix)]
    checks = []
    if cuda is not None:
        served = gpus[0].driver_version
        enough = numbers_of_version(served)[0] >= cuda
        checks.append(
            Check(
                flavor.label,
                "CUDA",
                f"the driver serves CUDA {served}",
                f"a driver for CUDA {cuda}",
                OK if enough else REFUSED,
                "" if enough else _older_cuda(flavor, cuda),
            )
        )
    return [*checks, _capability(flavor, gpus[0])]


def _older_cuda(flavor: Flavor, cuda: int) -> str:
    older = [d for d in flavor.distributions if re.search(rf"-cu{cuda - 1}$", d)]
    other = f", or install the package for CUDA {cuda - 1}: pip install {older[0]}" if older else ""
    return f"Update the NVIDIA driver{other}"


def _capability(flavor: Flavor, gpu: Gpu) -> Check:
    oldest = flavor.oldest_capability
    enough = float(gpu.compute_capability) >= float(oldest)
    return Check(
        flavor.label,
        "architecture",
        f"{gpu.name} has {gpu.compute_capability}",
        f"compute capability {oldest} or later",
        OK if enough else REFUSED,
        "" if enough else "Use the backend onnxruntime, which runs on older GPUs and on CPUs",
    )


def _opset(flavor: Flavor, opset: int) -> Check:
    most = _newest_opset(flavor.opsets, numbers_of_version(flavor.version()))
    known = most is not None
    fits = not known or opset <= (most or 0)
    return Check(
        flavor.label,
        "opset",
        f"this graph has opset {opset}",
        f"ONNX opset 9 to {most}" if known else "an opset that its release notes name",
        OK if fits else WARNING,
        "" if fits else "If it refuses an operator, update it",
    )


def _newest_opset(opsets: Mapping[tuple[int, int], int], version: tuple[int, int]) -> int | None:
    """Of the newest version in the table that is not newer than this one."""
    known = [since for since in opsets if since <= version]
    return opsets[max(known)] if known else None


def _room(flavor: Flavor, machine: Machine, wanted: Wanted) -> list[Check]:
    asked = [
        (
            "disk",
            machine.disk,
            wanted.weights * _DISK_FACTOR,
            "Free some, or move the artifact to another disk",
        ),
        (
            "memory",
            machine.memory,
            wanted.weights * _MEMORY_FACTOR + _MEMORY_BYTES,
            "End other programs, or use a larger machine",
        ),
    ]
    if machine.gpu_memory is not None:
        fix = "End other programs on the GPU: nvidia-smi lists them"
        asked.append(("GPU memory", machine.gpu_memory, wanted.weights * _GPU_FACTOR, fix))
    return [
        Check(
            flavor.label,
            what,
            f"{_rounded(free)} are free",
            f"some {_rounded(needed)} of {what}",
            OK if free >= needed else REFUSED,
            "" if free >= needed else fix,
        )
        for what, free, needed, fix in asked
    ]


def _rounded(size: float) -> str:
    """Three digits at most: nobody can tell more before a build."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
