"""From a checkpoint to an ONNX graph that is known to say the same."""

from __future__ import annotations

from tfc.exporter.export import Exported, export_checkpoint

__all__ = ["Exported", "export_checkpoint"]
