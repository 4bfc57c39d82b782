"""Attentions of one head each, as tutorials write them, become one attention of all heads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from handwritten import HEADS, LAYERS, Encoder, export, outputs

import tfc
from tfc.optimizers.contract import expected_sites, fused_sites
from tfc.optimizers.passes import FusionPass
from tfc.optimizers.raising.attention import Attention
from tfc.optimizers.raising.single_heads import SingleHeads
from tfc.steps.kernels import kernels_of_engine
from tfc.steps.optimize_file import optimize_file

pytestmark = pytest.mark.ort

# Two heads of 4, `{…}` to be filled in; the second head's layers may read another tensor.
GRAPH = """g (float[batch,sequence,8] x, float[batch,sequence,8] other, bool[batch,1,sequence] keep,
  bool[batch,1,sequence] kept, float[8,4] q0, float[8,4] k0, float[8,4] v0, float[8,4] q1,
  float[8,4] k1, float[8,4] v1, float[4] b, float c, float d, float low)
  => (float[batch,sequence,width] y {output}) {{
  hq0 = MatMul(x, q0)   hk0 = MatMul(x, k0)   hv0 = MatMul(x, v0)
  kt0 = Transpose<perm=[0,2,1]>(hk0)   s0 = MatMul(hq0, kt0)   t0 = Mul(s0, c)
  z0 = Where(keep, t0, low)   p0 = Softmax<axis=-1>(z0)   y0 = MatMul(p0, hv0)
  hq1 = MatMul({x}, q1)   hk1 = MatMul({x}, k1)   n1 = MatMul({x}, v1)   hv1 = Add(n1, b)
  kt1 = Transpose<perm=[0,2,1]>(hk1)   s1 = MatMul(hq1, kt1)   t1 = Mul(s1, {scale})
  z1 = Where({mask}, t1, low)   p1 = Softmax<axis=-1>(z1)   y1 = MatMul(p1, hv1)
  y = Concat<axis={axis}>({parts})
}}"""
AS_IT_IS = {"x": "x", "scale": "c", "mask": "keep", "axis": "-1", "parts": "y0, y1", "output": ""}
NUMBERS = {"c": np.float32(0.25), "d": np.float32(0.5), "low": np.float32(-1e9)}


def graph(graphs, **changed: str) -> ir.Model:
    shapes = dict.fromkeys(("q0", "k0", "v0", "q1", "k1", "v1"), (8, 4))
    return graphs.model(GRAPH.format(**{**AS_IT_IS, **changed}), **shapes, b=(4,), **NUMBERS)


@pytest.mark.parametrize("parts", ["y0, y1", "y1, y0"])
def test_it_fires(graphs, parts: str) -> None:
    """Heads keep their order; the bias that one layer has is zero for the other head."""
    model = graph(graphs, parts=parts)
    fused, _ = graphs.fuse(model, SingleHeads())
    assert expected_sites(fused, {})["attention"] == fused_sites(fused)["attention"] == 1
    assert sorted(graphs.ops(fused)) == sorted(
        3 * ["MatMul", "Reshape", "Transpose"]
        + ["Add", "Where", "Unsqueeze", "Attention", "Transpose", "Reshape"]
    )


REFUSED = {
    "another input": (
        {"x": "other"}, "q of part 1 is projected from another tensor than part 0's"),
    "another scale": ({"scale": "d"}, "part 1 has scale 0.5, part 0 0.25"),
    "another mask": ({"mask": "kept"}, "part 1 has another mask than part 0"),
    "a part that is no head": ({"parts": "y0, y1, x"}, "part 2: it is not an attention"),
    "a head that is an output": (
        {"output": ", float[batch,sequence,4] y1"}, "part 1 is read elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_heads_that_differ_are_so_many_blocks(graphs, what: str) -> None:
    changed, reason = REFUSED[what]
    model = graph(graphs, **changed)
    assert graphs.refusal(model, SingleHeads()) == reason
    assert expected_sites(model, {})["attention"] == 2
    FusionPass(Attention()).apply(model)
    assert fused_sites(model)["attention"] == 2


def test_a_concatenation_over_the_sequence_is_no_site(graphs) -> None:
    assert graphs.is_no_site(graph(graphs, axis="1"), SingleHeads())


def test_a_module_for_each_head(tmp_path: Path) -> None:
    """One block for each layer, whatever the padding; each head has a causal mask of its own."""
    source = export(
        Encoder(style="causal single heads"), tmp_path / "model.onnx", "torchscript", 14
    )
    ops = [node.op_type for node in onnx.load(source).graph.node]
    assert ops.count("Softmax") == LAYERS * HEADS
    expected = outputs(source)
    for target in ("onnxruntime", "tensorrt"):
        fused = tmp_path / f"{target}.onnx"
        report = optimize_file(source, fused, target)
        assert report.summary() == "attention 2/2, add+LayerNorm 4/4"
        assert report.reverted == []
        for before, after in zip(expected, outputs(fused), strict=True):
            assert np.abs(before - after).max() < 1e-5
        if target == "tensorrt":
            ops = [node.op_type for node in onnx.load(fused).graph.node]
            # QKV, two products of the attention, its projection, two of the feed-forward layer;
            # and the head of the model.
            assert ops.count("MatMul") == LAYERS * 6 + 1


@pytest.mark.rtx
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)
def test_one_fused_kernel_for_each_block(tmp_path: Path) -> None:
    module = Encoder(style="single heads", heads=2)
    module.blocks = module.blocks[:1]
    ids = torch.arange(14).view(2, 7)
    artifact = tfc.export(module, (ids, torch.ones_like(ids)), tmp_path / "a").artifact
    tfc.build_engine(artifact, backend="tensorrt-rtx", precision="fp16")
    opened = tfc.Artifact.open(artifact.path)
    fusions = opened.manifest.step("optimize:tensorrt").result["fusions"]
    assert fusions["attention"] == {"found": 1, "expected": 1}
    records = kernels_of_engine(opened, "tensorrt-rtx-fp16").graphs["model"]
    assert [record.kind for record in records].count("attention") == 1
