"""`tfc verify` passes what is right and catches planted faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import tfc
from tfc.errors import BadCheckpoint, BadData, UsageError
from tfc.runtime.parity import failures, parity_of, tolerance_of

pytestmark = pytest.mark.ort

ENGINE = "onnxruntime-fp32"


def initializer(model: ir.Model, ending: str) -> ir.Value:
    return next(v for n, v in model.graph.initializers.items() if n.endswith(ending))


def replace_array(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(array, name=value.name)


def wrong_scale(model: ir.Model) -> None:
    node = next(n for n in model.graph if n.op_type == "Attention")
    node.attributes["scale"] = ir.AttrFloat32("scale", node.attributes["scale"].value * 1.1)


def dropped_bias(model: ir.Model) -> None:
    bias = initializer(model, "layer.1.intermediate.dense.bias")
    replace_array(bias, np.zeros_like(bias.const_value.numpy()))


def swapped_heads(model: ir.Model) -> None:
    attention = next(n for n in model.graph if n.op_type == "Attention")
    weight = attention.inputs[0].producer().inputs[0].producer().inputs[1]
    left, right = np.split(weight.const_value.numpy(), 2, axis=1)
    replace_array(weight, np.concatenate([right, left], axis=1))


def ignored_mask(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "Attention":
            node.resize_inputs(3)


def another_epsilon(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-2)


FAULTS = [wrong_scale, dropped_bias, swapped_heads, ignored_mask, another_epsilon]


def plant(folder: Path, fault: Callable[[ir.Model], None]) -> tfc.Artifact:
    """Change the engine's graph behind everybody's back, hash and all."""
    artifact = tfc.Artifact.open(folder)
    file = artifact.manifest.engines[ENGINE].files["model"]
    model = ir.load(artifact.file(file))
    fault(model)
    with artifact.change() as change:
        ir.save(model, change.path(file))
    return artifact


def test_a_right_engine_is_verified_and_the_verdict_is_kept(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    (found,) = tfc.verify(artifact).verdicts
    assert found.verdict == "verified"
    assert found.parity.argmax_agreement == 1.0
    assert 0 < found.parity.max_abs < found.tolerance.max_abs
    kept = tfc.Artifact.open(tiny_artifact).manifest.verdicts[ENGINE]
    assert kept.verdict == "verified"
    assert kept.outputs["logits"]["max_abs"] == found.parity.max_abs
    report = json.loads((tiny_artifact / "reports/verify.json").read_text())
    assert report["rows"] == 24
    assert report["engines"][ENGINE]["verdict"] == "verified"


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_a_planted_fault_is_caught(tiny_artifact: Path, fault: Callable[[ir.Model], None]) -> None:
    result = tfc.verify(plant(tiny_artifact, fault))
    assert result.failed == [ENGINE]
    assert tfc.Artifact.open(tiny_artifact).manifest.verdicts[ENGINE].verdict == "failed"


@pytest.mark.parametrize("fault", FAULTS[:-1], ids=[fault.__name__ for fault in FAULTS[:-1]])
def test_a_planted_fault_is_caught_under_the_tolerance_of_fp16(
    tiny_artifact: Path, fault: Callable[[ir.Model], None]
) -> None:
    """fp16 may be further off than fp32, but not as far as these faults.

    Another epsilon is not among them: on this model it moves the logits less than fp16 rounds.
    """
    artifact = tfc.Artifact.open(tiny_artifact)
    tfc.build_engine(artifact, precision="fp16", backend="onnxruntime")
    assert tfc.verify(artifact, engines=["onnxruntime-fp16"]).failed == []
    artifact = plant(tiny_artifact, fault)
    reference, engine, floor = logits(artifact)
    tolerance = tolerance_of(reference, floor, "fp16")
    assert failures(parity_of(reference, engine, tolerance), tolerance)


def logits(artifact: tfc.Artifact) -> tuple[list[np.ndarray], ...]:
    """Of fp32 PyTorch, of the engine, and of fp16 PyTorch, on the sample texts."""
    from tfc.steps.probes import probe_feeds
    from tfc.steps.reference import reference_from_artifact

    reference = reference_from_artifact(artifact)
    half = reference.in_precision("fp16")
    feeds = probe_feeds(artifact, "model")
    with tfc.Session.load(artifact.path, engine=ENGINE) as session:
        engine = [session.run(feed)["logits"] for feed in feeds]
    expected = [reference(feed)["logits"] for feed in feeds]
    return expected, engine, [half(feed)["logits"] for feed in feeds]


def test_an_engine_that_gives_nan_fails() -> None:
    expected = [np.ones((4, 3), np.float32)]
    broken = [np.full((4, 3), np.nan, np.float32)]
    tolerance = tolerance_of(expected, None, "fp32")
    assert failures(parity_of(expected, broken, tolerance), tolerance)


def test_a_flip_within_rounding_is_counted_and_allowed() -> None:
    expected = [np.array([[1.0, 1.0 + 1e-6], [0.0, 3.0]])]
    close = [np.array([[1.0 + 1e-6, 1.0], [0.0, 3.0]])]
    tolerance = tolerance_of(expected, None, "fp32")
    parity = parity_of(expected, close, tolerance)
    assert parity.argmax_agreement == 0.5
    assert failures(parity, tolerance) == []


def test_a_rebuilt_engine_is_not_verified_any_more(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    tfc.verify(artifact)
    tfc.build_engine(artifact, backend="onnxruntime", batch=(1, 4, 8))
    with tfc.Session.load(tiny_artifact) as session:
        assert session.verdict == "not run"


def test_user_data_and_its_faults(tiny_artifact: Path, tmp_path: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    data = tmp_path / "data.jsonl"
    data.write_text('{"body": "hello"}\n{"body": "Wo ist mein Paket?"}\n')
    assert tfc.verify(artifact, data=data, text_column="body").rows == 2
    with pytest.raises(BadData, match="no field 'text'"):
        tfc.verify(artifact, data=data)
    data.write_text("")
    with pytest.raises(BadData, match="the input file is empty"):
        tfc.verify(artifact, data=data)
    with pytest.raises(BadData, match="there is no such file"):
        tfc.verify(artifact, data=tmp_path / "none.jsonl")


def test_the_checkpoint_must_be_the_one_that_was_exported(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    artifact = tfc.export(checkpoint, tmp_path / "a").artifact
    tfc.build_engine(artifact, backend="onnxruntime")
    moved = checkpoint.rename(tmp_path / "moved")
    with pytest.raises(BadCheckpoint) as caught:
        tfc.verify(artifact)
    assert caught.value.fix == "Say where it is with --checkpoint"
    assert tfc.verify(artifact, checkpoint=str(moved)).failed == []
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    with pytest.raises(BadCheckpoint, match="its files differ"):
        tfc.verify(artifact, checkpoint=str(moved))


def test_an_artifact_without_engines(tiny_checkpoint: Path, tmp_path: Path) -> None:
    artifact = tfc.export(tiny_checkpoint, tmp_path / "a").artifact
    with pytest.raises(UsageError, match="this artifact has no engine to verify"):
        tfc.verify(artifact)
    tfc.build_engine(artifact, backend="onnxruntime")
    with pytest.raises(UsageError, match="has no engine 'x'"):
        tfc.verify(artifact, engines=["x"])
