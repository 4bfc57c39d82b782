"""What the steps share: versions, the options of a step, the inputs that passes are judged on."""

from __future__ import annotations

import importlib.metadata

from tfc.runtime.backends.base import OnProgress, no_progress

__all__ = ["OnProgress", "no_progress", "onnxruntime_version", "versions_of"]


def versions_of(*packages: str) -> dict[str, str]:
    """The installed versions of these packages, and of tfc."""
    found = {}
    for package in ("tfc", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def onnxruntime_version() -> dict[str, str]:
    """The version of ONNX Runtime under whichever name it is installed."""
    found = versions_of("onnxruntime-gpu", "onnxruntime")
    return {name: version for name, version in found.items() if name != "tfc"}
