"""The whole spine on a tiny random model. If this fails, look here first."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import tfc

TEXTS = ["Where is my order?", "I want my money back!", "ok", "", "¿Dónde está mi paquete?"]


@pytest.mark.ort
def test_from_checkpoint_to_predictions(tiny_checkpoint: Path, tmp_path: Path) -> None:
    artifact = tfc.export(tiny_checkpoint, tmp_path / "artifact").artifact
    assert artifact.manifest.task.name == "text-classification"
    assert artifact.manifest.task.labels == ["cancel", "refund", "other"]

    built = tfc.build_engine(artifact, precision="fp16", backend="onnxruntime")
    assert built.engine.state == "runnable"
    fusions = tfc.optimize(artifact, "onnxruntime").report["fusions"]
    assert fusions == {
        "attention": {"found": 2, "expected": 2},
        "add_layernorm": {"found": 4, "expected": 4},
    }

    (verdict,) = tfc.verify(artifact).verdicts
    assert verdict.verdict == "verified"
    result = tfc.bench(artifact, batches=(1, 2), lengths=(8,), seconds=0.05, start=False)
    assert [cell.workload.rows for cell in result.cells] == [1, 2]
    assert set(result.cells[0].ratios) == {"pytorch", "onnxruntime-fp16"}

    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": t, "id": i}) + "\n" for i, t in enumerate(TEXTS)))
    with tfc.Session.load(artifact.path) as session:
        assert session.verdict == "verified"
        summary = tfc.run_job(session, source, output)
        direct = session.predict(TEXTS)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert summary.rows == len(TEXTS)
    assert [row["id"] for row in rows] == list(range(len(TEXTS)))
    assert [row["prediction"]["label"] for row in rows] == [p["label"] for p in direct]
    assert [row["prediction"]["label"] for row in rows] == pytorch_labels(tiny_checkpoint)


@pytest.mark.rtx
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)
def test_a_tensorrt_rtx_engine_is_built_ahead_of_time(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    engine = tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx").engine
    audit = engine.audit
    assert audit["fused_attention"] == 2
    assert audit["fused_add_layernorm"] + audit["split_add_layernorm"] == 4
    assert audit["wanted"] == {"fused_attention": 2, "fused_add_layernorm": 4}
    assert artifact.manifest.engines["tensorrt-rtx-fp16"] == engine


def pytorch_labels(checkpoint: Path) -> list[str]:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits.numpy() for text in TEXTS]
    return [model.config.id2label[int(np.argmax(row))] for row in logits]
