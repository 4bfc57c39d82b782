"""ONNX graphs to and from files; weights beyond what one protobuf message holds go beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

# A protobuf message is limited to 2 GiB; the graph itself needs some of it.
EXTERNAL_FROM_BYTES = 3 << 29
DATA_SUFFIX = ".data"


def save_onnx(model: ir.Model, path: Path) -> None:
    """Write a graph; its weights go to `<path>.data` where they are too large for one file."""
    import onnx_ir as ir

    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if weights >= EXTERNAL_FROM_BYTES:
        ir.save(model, path, external_data=path.name + DATA_SUFFIX)
    else:
        ir.save(model, path)
