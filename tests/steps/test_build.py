"""`tfc build-engine`: what is built, skipped, recorded and refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tfc
from tfc.cli import cli
from tfc.errors import ContractNotReached
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.precision.half import half_from_fp32
from tfc.runtime.backends import backend
from tfc.runtime.backends.base import Built
from tfc.steps.probes import probe_feeds

pytestmark = pytest.mark.ort
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)


def test_a_second_build_is_skipped_until_something_changes(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    assert tfc.build_engine(artifact, backend="onnxruntime").skipped
    assert not tfc.build_engine(artifact, backend="onnxruntime", batch=(1, 2, 4)).skipped
    (tiny_artifact / "engines/onnxruntime-fp32/model.onnx").unlink()
    fresh = tfc.Artifact.open(tiny_artifact)
    assert not tfc.build_engine(fresh, backend="onnxruntime", batch=(1, 2, 4)).skipped


def test_fp16_on_the_cpu_halves_the_file_and_says_what_it_is(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    built = tfc.build_engine(artifact, precision="fp16", backend="onnxruntime")
    files = artifact.manifest.files
    half, full = (files[f"engines/onnxruntime-{p}/model.onnx"].bytes for p in ("fp16", "fp32"))
    assert half < 0.6 * full
    assert built.notes == (
        "the CPU has no half-precision kernels here: weights are stored in fp16, "
        "arithmetic stays in fp32",
    )


@needs_openvino
def test_openvino_from_build_to_predictions(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    assert tfc.build_engine(artifact, backend="openvino").engine.state == "runnable"
    verdicts = {v.engine: v.verdict for v in tfc.verify(artifact).verdicts}
    assert verdicts == {"onnxruntime-fp32": "verified", "openvino-fp32": "verified"}
    texts = ["where is my order", "refund", "please cancel it " * 9]
    answers = []
    for engine in verdicts:
        with tfc.Session.load(tiny_artifact, engine) as session:
            assert session.engine_name == engine
            answers.append(session.predict(texts))
    assert [p["label"] for p in answers[0]] == [p["label"] for p in answers[1]]
    scores = [[p["score"] for p in answer] for answer in answers]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)


@needs_rtx
@pytest.mark.rtx
def test_an_engine_that_cannot_be_run_here_is_recorded_as_just_that(tiny_artifact: Path) -> None:
    if backend("tensorrt-rtx").availability().can_run:
        pytest.skip("there is a GPU here")
    artifact = tfc.Artifact.open(tiny_artifact)
    engine = tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx").engine
    assert engine.state == "built, not run"
    assert "no NVIDIA driver is installed here" in engine.state_reason
    assert artifact.sha256(engine.files["model"])
    verdicts = {v.engine: v.verdict for v in tfc.verify(artifact).verdicts}
    assert verdicts == {"onnxruntime-fp32": "verified", "tensorrt-rtx-fp16": "not run"}
    with tfc.Session.load(tiny_artifact) as session:
        assert session.engine_name == "onnxruntime-fp32"


@needs_rtx
@pytest.mark.rtx
def test_kernels_that_are_not_fused_break_the_contract(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Take one fused-attention kernel out of what the builder reports."""
    rtx = backend("tensorrt-rtx")
    original = rtx.build

    def worse(*arguments: object) -> Built:
        built = original(*arguments)
        attention = next(k for k in built.kernels if "mha" in k.name)
        kept = tuple(k for k in built.kernels if k is not attention)
        return dataclasses.replace(built, kernels=kept)

    monkeypatch.setattr(rtx, "build", worse)
    artifact = tfc.Artifact.open(tiny_artifact)
    with pytest.raises(ContractNotReached) as caught:
        tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx")
    assert caught.value.what == (
        "the compiled engine is not fused as the graph is: fused attention kernels 1/2"
    )
    assert "tensorrt-rtx-fp16" not in tfc.Artifact.open(tiny_artifact).manifest.engines
    assert not list(tiny_artifact.glob(".partial-*"))
    kept = tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx", allow_missed=True)
    assert kept.notes == ("fused attention kernels 1/2",)


@needs_rtx
@pytest.mark.rtx
def test_in_fp32_attention_is_compiled_as_its_products(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    built = tfc.build_engine(artifact, precision="fp32", backend="tensorrt-rtx")
    assert built.notes == (
        "fused attention kernels 0/2",
        "TensorRT fuses attention in fp16 and bf16 only; in fp32 it is compiled as its products",
    )
    assert built.engine.audit["precision"]["compiled"]["fp32"]["attentions"] == 2


@needs_rtx
@pytest.mark.rtx
def test_what_overflows_in_fp16_is_kept_in_fp32(tmp_path: Path) -> None:
    """Activations beyond 65504 in one layer: converting them all gives infinities."""
    import onnx_ir as ir
    import torch
    import transformers
    from checkpoints import save_tiny_checkpoint

    checkpoint = save_tiny_checkpoint(tmp_path / "c")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight *= 3e4
    model.save_pretrained(checkpoint)
    artifact = tfc.export(checkpoint, tmp_path / "a").artifact
    built = tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx")
    step = artifact.manifest.step("precision:optimized/tensorrt.fp16/model.onnx")
    assert step.result["overflows_in"] == [
        "bert.encoder.layer.0.intermediate.dense",
        "bert.encoder.layer.0.intermediate.intermediate_act_fn",
        "bert.encoder.layer.0.output.LayerNorm",
        "bert.encoder.layer.0.output.dense",
    ]
    assert built.notes[0].startswith("kept in fp32 because fp16 overflows: ")
    assert step.result["gate"]["error"] <= step.result["gate"]["allowed"]
    assert step.result["pins"] == []
    assert 0 < step.result["fp32_share"] < 0.5
    naive, _ = half_from_fp32(ir.load(artifact.file("optimized/tensorrt/model.onnx")))
    outputs = outputs_of(naive, probe_feeds(artifact, "model"))
    assert not all(np.isfinite(found["logits"]).all() for found in outputs)


@pytest.mark.rtx
@needs_rtx
def test_a_plan_for_chosen_gpus(tiny_artifact: Path) -> None:
    """It is for them alone and is built anew for others; a CPU has none to choose."""
    runner = CliRunner()
    asked = ["build-engine", str(tiny_artifact), "--fp16", "--backend", "tensorrt-rtx", "--json"]

    def built(*more: str) -> dict[str, Any]:
        done = runner.invoke(cli, [*asked, *more])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    chosen = built("--sm", "89,12.0")
    assert chosen["engine"] == "tensorrt-rtx-fp16"
    assert chosen["hardware"] == "compute capability 8.9, 12.0"
    assert not chosen["skipped"]
    assert built("--sm", "8.9,120")["skipped"]
    anywhere = built()
    assert not anywhere["skipped"]
    assert anywhere["hardware"].startswith("compute capability 8.0, 8.6, 8.9, 12.0 and later")
    wrong = runner.invoke(cli, [*asked, "--sm", "9.0"])
    assert wrong.exit_code == 2
    assert "TensorRT-RTX cannot build for compute capability 9.0" in wrong.output
    unread = runner.invoke(cli, [*asked, "--sm", "ada"])
    assert "'ada' is not a compute capability, e.g. 8.9 or 89" in unread.output
    cpu = ["build-engine", str(tiny_artifact), "--backend", "onnxruntime", "--sm", "89"]
    refused = runner.invoke(cli, cpu)
    assert refused.exit_code == 2
    assert (
        "for the backend tensorrt-rtx only: ONNX Runtime runs the graph as it is" in refused.output
    )
