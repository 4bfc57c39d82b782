"""What the machine has: interpreter, packages, GPU, driver, CUDA libraries, what tfc can do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from results import Skip, Stage

_SECONDS = 60  # for a command that only asks something


def environment(stage: Stage) -> None:
    """Ask everything; each answer is an item of its own."""
    stage.item("python", python)
    stage.item("packages", lambda: {"versions": packages()})
    stage.item("nvidia-smi", lambda: {"text": output_of("nvidia-smi")})
    stage.item("cuda-libraries", lambda: {"folders": list(map(str, cuda_folders()))})
    stage.item("gpus", graphics)
    stage.item("torch", torch_sees)
    stage.item("onnxruntime", onnxruntime_sees)
    stage.item("backends", backends)
    stage.item("doctor", lambda: json.loads(output_of(sys.executable, "-m", "tfc", *DOCTOR)))


DOCTOR = ("doctor", "--json")


def cuda_folders() -> list[Path]:
    """Folders of CUDA libraries that pip installed (`nvidia/*/lib`), wherever Python looks.

    ONNX Runtime's CUDA provider finds them by itself only in the folder that it is installed in.
    """
    places = dict.fromkeys(Path(entry or ".").resolve() for entry in sys.path)
    return [lib for place in places for lib in sorted(place.glob("nvidia/*/lib"))]


def with_cuda_folders(environment: dict[str, str]) -> dict[str, str] | None:
    """The environment in which the CUDA libraries are found; None where it is already so."""
    known = [part for part in environment.get("LD_LIBRARY_PATH", "").split(":") if part]
    new = [str(folder) for folder in cuda_folders() if str(folder) not in known]
    return {**environment, "LD_LIBRARY_PATH": ":".join([*new, *known])} if new else None


def python() -> dict[str, Any]:
    return {
        "version": sys.version,
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "path": sys.path,
    }


def packages() -> dict[str, str]:
    """Every installed package; of two of one name the one that is imported."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        found.setdefault(distribution.metadata["Name"].lower(), distribution.version)
    return dict(sorted(found.items()))


def output_of(*command: str) -> str:
    """What a command prints; Skip where there is no such command."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except FileNotFoundError as error:
        raise Skip(f"there is no {command[0]} here") from error
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def graphics() -> dict[str, Any]:
    from tfc.runtime.gpu import gpus, why_no_gpu

    if reason := why_no_gpu():
        raise Skip(reason)
    return {"gpus": [vars(gpu) for gpu in gpus()]}


def torch_sees() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "available": torch.cuda.is_available(),
    }
    if torch.cuda.is_available():
        found["cudnn"] = torch.backends.cudnn.version()
        found["memory"] = torch.cuda.mem_get_info()
        found["properties"] = str(torch.cuda.get_device_properties(0))
    return found


def onnxruntime_sees() -> dict[str, Any]:
    import onnxruntime

    from tfc.runtime.backends.onnxruntime_provider import best_provider

    return {
        "version": onnxruntime.__version__,
        "file": onnxruntime.__file__,
        "providers": onnxruntime.get_available_providers(),
        "build": onnxruntime.get_build_info(),
        "used": vars(best_provider()),
    }


def backends() -> dict[str, Any]:
    from tfc.runtime.backends import backends as every

    return {name: vars(backend.availability()) for name, backend in every().items()}
