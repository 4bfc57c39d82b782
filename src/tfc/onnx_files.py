"""ONNX graphs to files; weights beyond what one protobuf message holds go beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tfc.files import DATA_SUFFIX

if TYPE_CHECKING:
    import onnx_ir as ir

# A protobuf message is limited to 2 GiB, and is whole in memory, more than once, whenever it is
# written or read: BERT-large (1.3 GB) took 5.7 GB to export as one file.
EXTERNAL_FROM_BYTES = 1 << 29


def save_onnx(model: ir.Model, path: Path) -> None:
    """Write a graph; its weights go to `<path>.data` where they are too large for one file.

    Weights that are on disk already are copied piece by piece, not loaded.
    """
    import onnx_ir as ir

    weights = [value.const_value for value in model.graph.initializers.values()]
    total = sum(tensor.nbytes for tensor in weights if tensor is not None)
    if total >= EXTERNAL_FROM_BYTES:
        ir.save(model, path, external_data=path.name + DATA_SUFFIX)
        return
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in weights):
        model = ir.external_data.load_to_model(model)
    ir.save(model, path)
