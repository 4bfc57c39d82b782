"""Which GPUs multiply matrices in fp8 (E4M3), and what is built for them."""

from __future__ import annotations

import dataclasses
import re

from tfc.errors import UsageError
from tfc.runtime.backends.base import Availability, BuildOptions

FP8 = "fp8"
OLDEST = (8, 9)  # compute capability: Ada; Hopper (9.0) and Blackwell have it too
# What an ahead-of-time build is for: a portable plan names GPUs without fp8 too. TensorRT-RTX has
# no name for Hopper.
DEFAULT_GPUS = ("8.9", "12.0")
_AHEAD_OF_TIME = "tensorrt-rtx"
_FAMILY = ("tensorrt", _AHEAD_OF_TIME)


def why_no_fp8(found: Availability) -> str:
    """Why a backend has no fp8 products here; empty where it has.

    Without a GPU TensorRT-RTX builds ahead of time.
    """
    if found.name not in _FAMILY:
        return f"{found.name} has no fp8 products"
    present = re.findall(r"\((\d+\.\d+)\)", found.hardware)
    if not present or any(_has_fp8(capability) for capability in present):
        return ""
    return f"fp8 needs {_needed()}, and this machine has {found.hardware}"


def options_for_fp8(backend: str, options: BuildOptions) -> BuildOptions:
    """The options of a build, for GPUs that have fp8.

    Raises:
        UsageError: one that is asked for has not.
    """
    asked = options.compute_capabilities
    if without := [capability for capability in asked if not _has_fp8(capability)]:
        raise UsageError(
            f"fp8 needs {_needed()}, and {', '.join(without)} is asked for",
            fix=f"Leave --sm out to build for {' and '.join(DEFAULT_GPUS)}, or build with --int8",
        )
    if asked or backend != _AHEAD_OF_TIME:
        return options
    return dataclasses.replace(options, compute_capabilities=DEFAULT_GPUS)


def _has_fp8(capability: str) -> bool:
    major, _, minor = capability.partition(".")
    return (int(major), int(minor)) >= OLDEST


def _needed() -> str:
    return f"compute capability {OLDEST[0]}.{OLDEST[1]} or later"
