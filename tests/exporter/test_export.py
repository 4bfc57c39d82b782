"""Exported graphs say what checkpoints say; what cannot be exported leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TOKENIZER_FOLDER, run_tfc, save_tiny_checkpoint

import tfc
from tfc.errors import BadCheckpoint, CheckFailed, UsageError
from tfc.files import sha256_of_file

pytestmark = pytest.mark.ort


def nothing_at(folder: Path) -> bool:
    """Neither the artifact nor a half-written one beside it."""
    return not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))


def test_the_artifact_is_self_contained(tiny_artifact: Path) -> None:
    manifest = tfc.Artifact.open(tiny_artifact).manifest
    assert [spec.name for spec in manifest.signature.inputs] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    assert manifest.signature.inputs[0].shape == ["batch", "sequence"]
    assert (manifest.signature.outputs[0].name, manifest.signature.outputs[0].shape) == (
        "logits",
        ["batch", 3],
    )
    assert manifest.preprocess is not None
    assert manifest.preprocess.max_length == 128
    assert manifest.graphs["model"].fusion_sites == {"attention": 2, "add_layernorm": 4}
    parity = manifest.steps[0].result["parity"]
    assert 0 < parity["relative"] < parity["tolerance"] == 1e-5
    assert set(manifest.files) >= {"model.onnx", "samples.jsonl", "tokenizer/tokenizer.json"}


def test_nodes_know_their_module(tiny_artifact: Path) -> None:
    import onnx

    model = onnx.load(tiny_artifact / "model.onnx")
    modules = {p.value for n in model.graph.node for p in n.metadata_props if p.key == "tfc.module"}
    assert "bert.encoder.layer.1.attention.self" in modules
    onnx.checker.check_model(model, full_check=True)


def test_the_same_export_gives_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = tfc.export(tiny_checkpoint, tmp_path / "a").artifact
    second = tfc.export(tiny_checkpoint, tmp_path / "b").artifact
    assert first.manifest.files == second.manifest.files


def test_a_second_export_is_skipped_until_something_changes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "artifact"
    assert not tfc.export(tiny_checkpoint, target).skipped
    assert tfc.export(tiny_checkpoint, target).skipped
    with pytest.raises(UsageError, match="there is an artifact here already"):
        tfc.export(tiny_checkpoint, target, max_length=64)
    changed = tfc.export(tiny_checkpoint, target, max_length=64, overwrite=True)
    assert not changed.skipped
    assert changed.artifact.manifest.preprocess.max_length == 64
    (target / "model.onnx").write_bytes(b"damaged")
    assert not tfc.export(tiny_checkpoint, target, max_length=64, overwrite=True).skipped


def test_a_folder_that_is_something_else_is_not_overwritten(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("dear")
    with pytest.raises(UsageError, match="exists already and is not an artifact"):
        tfc.export(tiny_checkpoint, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "dear"


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"problem_type": "multi_label_classification"}, "multi_label"),
        ({"problem_type": "regression"}, "regression"),
        ({"id2label": {0: "score"}}, "regression"),
        ({}, "single_label"),
    ],
)
def test_how_logits_are_read(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "c", **config)
    assert tfc.export(checkpoint, tmp_path / "a").artifact.manifest.task.problem == problem


def test_token_classification_gives_logits_for_every_token(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "c", head="TokenClassification")
    artifact = tfc.export(checkpoint, tmp_path / "a").artifact
    assert artifact.manifest.task.name == "token-classification"
    assert artifact.manifest.signature.outputs[0].shape == ["batch", "sequence", 3]


def test_a_base_model_gives_token_embeddings(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "c", head="")
    artifact = tfc.export(checkpoint, tmp_path / "a").artifact
    assert artifact.manifest.task.pooling == "none"
    output = artifact.manifest.signature.outputs[0]
    assert (output.name, output.shape) == ("last_hidden_state", ["batch", "sequence", 64])


def test_a_sentence_transformers_folder_gives_its_own_embeddings(tmp_path: Path) -> None:
    """The real MiniLM, against sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    artifact = tfc.export(TOKENIZER_FOLDER, tmp_path / "a").artifact
    task = artifact.manifest.task
    assert (task.name, task.pooling, task.normalize) == ("feature-extraction", "mean", True)
    assert artifact.manifest.preprocess.max_length == 256
    tfc.build_engine(artifact, backend="onnxruntime")
    texts = ["A man is eating food.", "", "Der Himmel über Berlin", "long " * 400]
    with tfc.Session.load(artifact.path) as session:
        got = np.array([p["embedding"] for p in session.predict(texts)])
    model = SentenceTransformer(str(TOKENIZER_FOLDER), device="cpu", local_files_only=True)
    expected = model.encode(texts)
    assert np.abs(got - expected).max() < 1e-6


def test_a_hub_id_is_found_in_the_cache(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Offline, as on a machine that downloaded the model before."""
    commit = "a" * 40
    model = tmp_path / "hub" / "models--acme--tiny-intents"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_checkpoint, model / "snapshots" / commit)
    done = run_tfc(
        "export", "acme/tiny-intents", "-o", tmp_path / "a", HF_HUB_CACHE=str(tmp_path / "hub")
    )
    assert done.returncode == 0, done.stderr
    checkpoint = tfc.Artifact.open(tmp_path / "a").manifest.checkpoint
    assert checkpoint.source == "acme/tiny-intents"


def test_a_base_checkpoint_is_no_classifier(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "c", head="")
    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(checkpoint, tmp_path / "a", task="text-classification")
    assert caught.value.what == (
        "weights that text-classification needs are missing: classifier.bias, classifier.weight"
    )
    assert nothing_at(tmp_path / "a")


def changed_checkpoint(source: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "bertolucci"}, "does not know the model type 'bertolucci'"),
        ({"intermediate_size": 64}, "bert.encoder.layer.0.intermediate.dense.bias"),
        ({"num_hidden_layers": 3}, "weights that text-classification needs are missing"),
    ],
)
def test_weights_and_config_must_belong_together(
    tiny_checkpoint: Path, tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    checkpoint = changed_checkpoint(tiny_checkpoint, tmp_path / "c", **config)
    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(checkpoint, tmp_path / "a")
    assert sentence in str(caught.value)
    assert nothing_at(tmp_path / "a")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without("tokenizer.json"), "this folder has no tokenizer"),
        (truncated, "transformers cannot load the checkpoint"),
    ],
    ids=["no tokenizer", "weights cut short"],
)
def test_a_damaged_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    checkpoint = changed_checkpoint(tiny_checkpoint, tmp_path / "c")
    damage(checkpoint)
    (checkpoint / "vocab.txt").unlink(missing_ok=True)
    with pytest.raises(BadCheckpoint, match=sentence):
        tfc.export(checkpoint, tmp_path / "a")
    assert nothing_at(tmp_path / "a")


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "c", vocab_size=1000)
    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(checkpoint, tmp_path / "a")
    assert caught.value.what == (
        "the tokenizer gives ids up to 30521, and the model has 1000 embeddings"
    )


def test_a_wrong_graph_fails_the_export(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter swaps two weights of the graph: parity must notice, and nothing is kept."""
    import onnx_ir as ir

    import tfc.exporter.text as module

    original = module.onnx_from_module

    def sabotaged(*arguments: Any) -> ir.Model:
        model = original(*arguments)
        first = model.graph.initializers["bert.encoder.layer.0.output.dense.bias"]
        second = model.graph.initializers["bert.encoder.layer.1.output.dense.bias"]
        first.const_value, second.const_value = second.const_value, first.const_value
        return model

    monkeypatch.setattr(module, "onnx_from_module", sabotaged)
    with pytest.raises(CheckFailed, match="the exported graph differs from the checkpoint by"):
        tfc.export(tiny_checkpoint, tmp_path / "a")
    assert nothing_at(tmp_path / "a")


def test_samples_hold_what_breaks_tokenizers(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    texts = [
        json.loads(line)["text"] for line in artifact.file("samples.jsonl").read_text().splitlines()
    ]
    assert "" in texts
    assert max(len(text) for text in texts) > 400
    assert sum(not text.isascii() for text in texts) >= 8
    assert sha256_of_file(tiny_artifact / "samples.jsonl") == artifact.sha256("samples.jsonl")


def test_without_a_tokenizer_the_model_takes_tensors(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """The folder has none; ids come from elsewhere, and PyTorch's answers are kept for verify."""
    folder = save_tiny_checkpoint(tmp_path / "c")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    done = cli("export", folder, "-o", tmp_path / "a")
    assert done.returncode == 5
    assert "or export the model for tensors with --no-tokenizer" in " ".join(done.stderr.split())
    done = cli("export", folder, "-o", tmp_path / "a", "--no-tokenizer")
    assert done.returncode == 0, done.stderr
    artifact = tfc.Artifact.open(tmp_path / "a")
    assert artifact.manifest.preprocess is None
    assert artifact.manifest.task.labels == ["cancel", "refund", "other"]
    assert artifact.manifest.graphs["model"].fusion_sites == {"attention": 2, "add_layernorm": 4}
    tfc.build_engine(artifact, backend="onnxruntime")
    tfc.build_engine(artifact, backend="onnxruntime", precision="fp16")
    assert tfc.verify(artifact).failed == []
    with tfc.Session.load(tmp_path / "a", engine="onnxruntime-fp32") as session:
        ids = np.array([[101, 2073, 2003, 102]])
        feed = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
        assert session.run(feed)["logits"].shape == (1, 3)
        with pytest.raises(UsageError, match="takes tensors, not text"):
            session.predict(["hello"])


def test_a_task_that_the_model_type_does_not_have(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(tiny_checkpoint, tmp_path / "a", task="translation")
    assert caught.value.what == (
        "transformers has no model for text2text-generation of the type 'bert'"
    )
    assert caught.value.fix == "Choose another --task, or leave it out: the architecture tells it"
    assert nothing_at(tmp_path / "a")
