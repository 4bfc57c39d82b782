"""ONNX → ONNX: fuse what the graph means, lower it for its target, choose its precision."""

from __future__ import annotations

from tfc.optimizers.pipeline import Report, optimize
from tfc.optimizers.stages import TARGETS

__all__ = ["TARGETS", "Report", "optimize"]
