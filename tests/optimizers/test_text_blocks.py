"""Blocks in the node patterns of onnxruntime's scripts: every site is fused, in every form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from text_blocks import BART, KERAS, T5, bert, gpt2, model

from tfc.steps.optimize_file import optimize_file

pytestmark = pytest.mark.ort

_MASK = "Unsqueeze Unsqueeze Cast Sub Mul"
_BERT = (
    f"Sum LayerNormalization MatMul Add MatMul Add {_MASK} MatMul Add Shape Concat Expand "
    "Attention MatMul Sum LayerNormalization"
)
_GPT2 = (
    "Sum LayerNormalization MatMul Add Split Reshape Transpose Reshape Transpose Reshape "
    "Transpose Split Squeeze Squeeze Concat Concat Unsqueeze Unsqueeze Concat Shape Shape Sub "
    "Slice Slice Cast Unsqueeze Unsqueeze Sub Mul Where Add Attention Transpose Reshape Shape "
    "Concat Reshape Gemm Reshape Sum LayerNormalization"
)
# name → (the graph, sums with a norm, the operators for ONNX Runtime)
BLOCKS: dict[str, tuple[Callable[[], onnx.ModelProto], int, str]] = {
    "BERT": (bert, 2, _BERT),
    "BERT, sums reversed": (lambda: bert(reverse=True), 2, _BERT),
    "BERT with heads pruned": (lambda: bert(qk=8, v=8), 2, _BERT),
    "BERT, other width of the values": (lambda: bert(qk=8), 2, _BERT),
    "BERT with a mask of floats": (
        lambda: bert(float_mask=True), 2, _BERT.replace("Unsqueeze Cast", "Unsqueeze"),
    ),
    "Keras": (
        lambda: model(KERAS), 2,
        "Sum LayerNormalization Einsum Add Einsum Add Einsum Add Cast Unsqueeze Unsqueeze Sub Mul "
        "Mul Transpose Transpose Transpose Shape Concat Expand Attention Transpose Einsum "
        "Sum LayerNormalization",
    ),
    "GPT-2": (gpt2, 2, _GPT2),
    "GPT-2, sums reversed": (lambda: gpt2(reverse=True), 2, _GPT2),
    "BART": (
        lambda: model(BART), 1,
        "MatMul Add Mul MatMul MatMul Add Where Max Shape Concat Expand Attention MatMul "
        "Sum LayerNormalization",
    ),
    "T5": (
        lambda: model(T5), 0,
        "RMSNormalization MatMul MatMul MatMul Shape Gather Range Unsqueeze Unsqueeze Sub Max Min "
        "Sub Gather Transpose Unsqueeze Cast Unsqueeze Sub Mul Add Max Attention MatMul Add",
    ),
}  # fmt: skip
SIZES = {"batch": 3, "sequence": 4, "past": 5, "total": 9}


def feeds(path: Path) -> list[dict[str, np.ndarray]]:
    """Random inputs, their masks padded on the right, on the left and in holes."""
    rng = np.random.default_rng(5)
    feed: dict[str, Any] = {}
    for value in onnx.load(path).graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or SIZES[d.dim_param] for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feed[value.name] = rng.normal(size=shape).astype(dtype)
    name = next(n for n in feed if n in ("input_mask", "keep"))
    width = feed[name].shape[-1]
    places = np.arange(width)
    kept = (places < width - 1, places > width // 3, places % 2 == 0)
    rows = [np.broadcast_to(k, feed[name].shape).astype(feed[name].dtype) for k in kept]
    return [{**feed, name: np.ascontiguousarray(mask)} for mask in rows]


def outputs(path: Path, inputs: list[dict[str, np.ndarray]]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in inputs]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_site_of_the_block_is_fused(block: str, tmp_path: Path) -> None:
    make, norms, ops = BLOCKS[block]
    source, fused = tmp_path / "block.onnx", tmp_path / "fused.onnx"
    onnx.save(make(), source)
    report = optimize_file(source, fused, "onnxruntime")
    assert report.summary() == f"attention 1/1, add+LayerNorm {norms}/{norms}"
    assert report.reverted == []
    assert [node.op_type for node in onnx.load(fused).graph.node] == ops.split()
    inputs = feeds(source)
    for before, after in zip(outputs(source, inputs), outputs(fused, inputs), strict=True):
        for one, other in zip(before, after, strict=True):
            assert np.abs(one - other).max() < 1e-5
