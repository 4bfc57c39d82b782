"""bf16 from end to end: an engine of TensorRT-RTX, and what ONNX Runtime's CPU says to it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import tfc
from tfc.cli import cli
from tfc.errors import BackendUnavailable
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.graph import constant
from tfc.runtime.backends import backend
from tfc.runtime.parity import failures, parity_of, tolerance_of
from tfc.steps.optimize import optimize
from tfc.steps.precision import convert
from tfc.steps.probes import probe_feeds
from tfc.steps.reference import reference_from_artifact

pytestmark = pytest.mark.ort


@pytest.mark.rtx
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)
def test_an_engine_in_bf16_has_fused_attention_and_bf16_products(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    built = tfc.build_engine(artifact, precision="bf16", backend="tensorrt-rtx")
    assert built.name == "tensorrt-rtx-bf16"
    assert built.engine.audit["fused_attention"] == 2
    compiled = built.engine.audit["precision"]["compiled"]
    assert {name: (part["gemms"], part["attentions"]) for name, part in compiled.items()} == {
        "bf16": (9, 2),
        "fp32": (2, 0),  # pooler and classifier
    }
    ended = CliRunner().invoke(cli, ["inspect", str(tiny_artifact), "--engine", built.name])
    assert "products   bf16 99.9 % of the FLOPs (9 GEMMs, 2 attentions), fp32" in ended.stdout
    step = artifact.manifest.step("precision:optimized/tensorrt.bf16/model.onnx")
    assert step.result["arithmetic"] == "bf16"
    assert step.result["overflows_in"] == []
    graph = ir.load(artifact.file("optimized/tensorrt.bf16/model.onnx")).graph
    assert [value.dtype for value in graph.inputs] == [ir.DataType.INT64] * len(graph.inputs)
    assert [value.dtype for value in graph.outputs] == [ir.DataType.FLOAT]


def test_the_graph_is_as_near_as_pytorch_in_bf16_and_a_dropped_bias_is_not(
    tiny_artifact: Path,
) -> None:
    """The tolerance of `tfc verify`, on the graph with its roundings written out."""
    artifact = tfc.Artifact.open(tiny_artifact)
    optimize(artifact, "tensorrt")
    name = convert(artifact, "tensorrt", "model", "bf16", weights_only=False)
    reference = reference_from_artifact(artifact)
    feeds = probe_feeds(artifact, "model", exact=False)
    expected = [reference(feed)["logits"] for feed in feeds]
    floor = [reference.in_precision("bf16")(feed)["logits"] for feed in feeds]
    tolerance = tolerance_of(expected, floor, "bf16")
    model = ir.load(artifact.file(name))
    assert failures(parity_of(expected, logits(model, feeds), tolerance), tolerance) == []
    bias = next(
        v for n, v in model.graph.initializers.items() if "layer.0.output.dense.bias" in str(n)
    )
    array = constant(bias)
    assert array is not None
    bias.const_value = ir.tensor(np.zeros_like(array), name=bias.name)
    assert failures(parity_of(expected, logits(model, feeds), tolerance), tolerance)


def logits(model: ir.Model, feeds: list) -> list[np.ndarray]:
    return [outputs["logits"] for outputs in outputs_of(model, feeds)]


def test_the_cpu_has_no_kernels_for_it(tiny_artifact: Path) -> None:
    if backend("onnxruntime").availability().hardware != "CPU":
        pytest.skip("ONNX Runtime uses a GPU here")
    artifact = tfc.Artifact.open(tiny_artifact)
    with pytest.raises(BackendUnavailable) as caught:
        tfc.build_engine(artifact, precision="bf16", backend="onnxruntime")
    assert caught.value.what == "onnxruntime has no bf16 kernels for the CPU"
    assert caught.value.fix == (
        "Build for a GPU ahead of time: --bf16 --backend tensorrt-rtx, or for the CPU in fp32"
    )
    assert caught.value.exit_code == 4


def test_one_precision_at_a_time(tiny_artifact: Path) -> None:
    ended = CliRunner().invoke(cli, ["build-engine", str(tiny_artifact), "--fp16", "--bf16"])
    assert ended.exit_code == 2
    assert "an engine has one precision, and 2 were asked for" in ended.stderr
