"""From a checkpoint to an ONNX graph that is known to say the same."""

from __future__ import annotations

from tfc.exporter.export import export_checkpoint
from tfc.exporter.exported import Exported

__all__ = ["Exported", "export_checkpoint"]
