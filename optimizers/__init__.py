"""ONNX → ONNX: fuse what the graph means, lower it for its target, choose its precision."""

from __future__ import annotations

from tfc.optimizers.pipeline import TARGETS, Report, optimize

__all__ = ["TARGETS", "Report", "optimize"]
