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
# Beside a graph, weights below this size are within it: readers expect constants there.
_SMALL = 1 << 12


def save_onnx(model: ir.Model, path: Path, *, stay_in: Path | None = None) -> None:
    """Write a graph; its weights go to `<path>.data` where they are too large for one file.

    Weights that are on disk already are copied piece by piece, not loaded.

    Args:
        model: the graph.
        path: the file to write.
        stay_in: a folder, into which `path` will be moved: weights in its files are not copied,
            and the graph goes on reading them there.
    """
    import onnx_ir as ir

    if stay_in is not None:
        _save_beside(model, path, stay_in)
        return
    weights = [value.const_value for value in model.graph.initializers.values()]
    total = sum(tensor.nbytes for tensor in weights if tensor is not None)
    if total >= EXTERNAL_FROM_BYTES:
        ir.save(model, path, external_data=path.name + DATA_SUFFIX)
        return
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in weights):
        model = ir.external_data.load_to_model(model)
    ir.save(model, path)


def _save_beside(model: ir.Model, path: Path, folder: Path) -> None:
    """Write the graph, and to `<path>.data` those large weights that no file of `folder` holds."""
    import onnx_ir as ir

    new = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.nbytes >= _SMALL
        and not _is_in(value.const_value, folder)
    ]
    moved = ir.external_data.convert_tensors_to_external(
        [value.const_value for value in new if value.const_value is not None],
        path.parent,
        path.name + DATA_SUFFIX,
    )
    for value, tensor in zip(new, moved, strict=True):
        value.const_value = tensor
    ir.save(model, path)


def _is_in(tensor: ir.TensorProtocol, folder: Path) -> bool:
    import onnx_ir as ir

    return (
        isinstance(tensor, ir.ExternalTensor)
        and Path(tensor.base_dir).resolve() == folder.resolve()
    )


def opset_of_onnx(path: Path) -> int:
    """The version of the standard operators that a graph is written in; 0 where it has none."""
    import onnx_ir as ir

    return ir.load(path).opset_imports.get("", 0)
