"""An ONNX graph of Mistral 7B with external data that takes no space: weights are holes in a file.

The module is made and exported on torch's meta device, so nobody ever holds its weights. Matrices
are stored as exporters store them, `[in, out]`; norms are ones, and the frequencies of the rotary
embedding are the real ones.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import transformers

# From this many bytes on a weight is in the file; smaller tensors are in the graph.
_LARGE = 1 << 20


class _Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return found.logits


def save_mistral(path: Path, layers: int = 32) -> int:
    """Write the graph, fp32, and its file of holes; returns the number of parameters."""
    config = transformers.MistralConfig(num_hidden_layers=layers, sliding_window=None)
    with torch.device("meta"):
        model = transformers.MistralForCausalLM(config).eval()
    ids = torch.ones((2, 7), dtype=torch.int64, device="meta")
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=4096)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Logits(model).eval(),
            (ids, ids.clone()),
            dynamo=True,
            opset_version=23,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(axes, axes),
            verbose=False,
            optimize=False,
        )
    assert program is not None
    _store(program.model, path)
    return sum(parameter.numel() for parameter in model.parameters())


def _store(model: ir.Model, path: Path) -> None:
    _turn(model)
    data, end = path.with_name(path.name + ".data"), 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        shape = [int(size) for size in tensor.shape.numpy()]
        if tensor.nbytes >= _LARGE:
            value.const_value = ir.ExternalTensor(
                data.name, end, tensor.nbytes, tensor.dtype,
                shape=ir.Shape(shape), name=str(value.name), base_dir=path.parent,
            )  # fmt: skip
            end += tensor.nbytes
        elif _is_meta(tensor):
            value.const_value = ir.tensor(_small(str(value.name), shape), name=value.name)
    with data.open("wb") as stream:
        stream.truncate(end)
    ir.save(model, path)


def _turn(model: ir.Model) -> None:
    """`Transpose(weight)` → a weight of the other shape, as exporters fold it."""
    for node in [n for n in model.graph if n.op_type == "Transpose"]:
        value = node.inputs[0]
        if value is None or value.const_value is None:
            continue
        shape = ir.Shape(value.const_value.shape.numpy()[::-1])
        value.const_value = ir.LazyTensor(
            lambda: ir.tensor([0.0]), value.const_value.dtype, shape, name=value.name
        )
        value.shape = shape
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        model.graph.remove(node, safe=True)


def _is_meta(tensor: Any) -> bool:
    return isinstance(getattr(tensor, "raw", None), torch.Tensor) and tensor.raw.is_meta


def _small(name: str, shape: list[int]) -> np.ndarray:
    if "inv_freq" in name:
        (half,) = shape
        return (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    return np.ones(shape, np.float32)
