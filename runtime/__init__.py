"""The runtime: engines, sessions and batch jobs. What a program embeds to run an artifact.

Importing this package loads none of torch, transformers, onnx, ONNX Runtime or TensorRT; a
backend's library is imported when an engine of that backend is looked for or loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfc.runtime.session import Session

__all__ = ["Session"]


def __getattr__(name: str) -> Any:
    if name == "Session":
        from tfc.runtime.session import Session

        return Session
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
