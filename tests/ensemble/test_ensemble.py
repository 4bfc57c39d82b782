"""Ensembles from their checkpoints to predictions: what they say and share, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import run_tfc, save_tiny_checkpoint
from click.testing import CliRunner
from ensembles import SMALL, logits_by_label, with_another_head
from text_models import TEXTS
from tokenizers_made import byte_level

import tfc
from tfc.artifact import Artifact, graph_file
from tfc.cli import cli as commands
from tfc.runtime import Session
from tfc.runtime.tasks.scores import sigmoid, softmax

pytestmark = pytest.mark.ort
Made = Callable[..., Path]
LABELS = ["cancel", "refund", "other"]


def said(artifact: Path, texts: list[Any] = TEXTS, **options: Any) -> list[dict[str, Any]]:
    with Session.load(artifact) as session:
        return session.predict(texts, **options)


def probabilities(checkpoint: Path, function: Any = softmax, max_length: int = 128) -> np.ndarray:
    """`[texts, labels]`, in the order of LABELS."""
    by_label = logits_by_label(checkpoint, max_length)
    found: np.ndarray = function(np.stack([by_label[label] for label in LABELS], axis=-1))
    return found


@pytest.fixture(scope="session")
def weighted(tiny_checkpoint: Path, distilbert: Path, made_once: Made) -> Path:
    """BERT and DistilBERT, 3 to 1, and in `printed` what the command said. Copy, do not change."""

    def make(folder: Path) -> None:
        done = run_tfc(
            *("export", tiny_checkpoint, distilbert, "-o", folder / "artifact"),
            *("--ensemble", "weighted", "--weights", "3,1"),
            *("--normalize", "temperature", "--temperature", "1,1.5"),
        )
        assert done.returncode == 0, done.stderr
        (folder / "printed").write_text(done.stdout)
        tfc.build_engine(folder / "artifact", backend="onnxruntime")

    return made_once("ensemble-weighted", make) / "artifact"


def test_the_command_tells_what_was_made(
    weighted: Path, tiny_checkpoint: Path, distilbert: Path
) -> None:
    printed = weighted.with_name("printed").read_text().splitlines()
    lines = [" ".join(line.split()) for line in printed]
    assert "member 1 BertForSequenceClassification, 2.0 M parameters" in lines
    assert "member 2 DistilBertForSequenceClassification, 2.0 M parameters" in lines
    assert "ensemble weighted (0.75, 0.25) of 2 models, temperature (1, 1.5)" in lines
    assert "tokenizers 1, shared" in lines
    assert max(map(len, printed[1:])) <= 80
    shown = CliRunner().invoke(commands, ["inspect", str(weighted)]).stdout
    assert "Members: weighted (0.75, 0.25) of 2 models, temperature (1, 1.5)" in shown
    assert re.search(r"^2 .* distilbert +2.0 M", shown, re.MULTILINE)
    code, text = refused(
        *("export", tiny_checkpoint, distilbert, "-o", weighted, "--ensemble", "mean")
    )
    assert (code, "there is an artifact here already" in text) == (2, True)


def test_labels_are_aligned_by_name_and_probabilities_averaged(
    weighted: Path, tiny_checkpoint: Path, distilbert: Path
) -> None:
    cooler = probabilities(distilbert, lambda logits: softmax(logits / 1.5))
    expected = 0.75 * probabilities(tiny_checkpoint) + 0.25 * cooler
    predictions = said(weighted)
    for prediction, row in zip(predictions, expected, strict=True):
        assert list(prediction["scores"]) == LABELS
        np.testing.assert_allclose(list(prediction["scores"].values()), row, atol=1e-5)
        assert prediction["label"] == LABELS[int(row.argmax())]


def test_the_manifest_names_the_members(
    weighted: Path, tiny_checkpoint: Path, distilbert: Path
) -> None:
    manifest = Artifact.open(weighted).manifest
    assert manifest.ensemble is not None
    first, second = manifest.ensemble.members
    assert (manifest.ensemble.rule, manifest.ensemble.normalize) == ("weighted", "temperature")
    assert (first.weight, second.weight, second.temperature) == (0.75, 0.25, 1.5)
    assert (first.checkpoint.source, second.checkpoint.source) == (
        str(tiny_checkpoint),
        str(distilbert),
    )
    assert second.labels == ["other", "cancel", "refund"]
    assert manifest.task.labels == LABELS
    # One tokenizer: one set of inputs, of which DistilBERT reads two.
    assert manifest.ensemble.preprocess == []
    assert manifest.graphs["model"].input_names == first.inputs
    assert second.inputs == ["input_ids", "attention_mask"]
    assert manifest.graphs["model"].fusion_sites == {"attention": 3, "add_layernorm": 6}
    assert manifest.steps[0].result["parity"]["relative"] < 1e-5


def test_it_is_verified_against_the_same_ensemble_in_pytorch(
    weighted: Path, tiny_checkpoint: Path, distilbert: Path, tmp_path: Path
) -> None:
    artifact = Path(shutil.copytree(weighted, tmp_path / "artifact"))
    assert tfc.verify(artifact).failed == []
    places = [shutil.copytree(c, tmp_path / c.name) for c in (tiny_checkpoint, distilbert)]
    assert tfc.verify(artifact, checkpoint=list(map(str, places))).failed == []
    with pytest.raises(tfc.TfcError, match="made from 2 checkpoints, and 1 were given"):
        tfc.verify(artifact, checkpoint=str(places[0]))
    with pytest.raises(tfc.TfcError, match="not the checkpoint that the artifact was exported"):
        tfc.verify(artifact, checkpoint=list(map(str, reversed(places))))


def test_an_engine_in_fp16_is_one_plan_with_every_block_fused(
    weighted: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    artifact = Path(shutil.copytree(weighted, tmp_path / "artifact"))
    built = tfc.build_engine(artifact, backend="tensorrt-rtx", precision="fp16")
    engine = built.artifact.manifest.engines["tensorrt-rtx-fp16"]
    assert engine.audit["wanted"] == {"fused_attention": 3, "fused_add_layernorm": 6}
    assert engine.audit["fused_attention"] == 3


@pytest.fixture(scope="session")
def heads(tiny_checkpoint: Path, made_once: Made) -> Path:
    """The tiny checkpoint, twice, with another head each."""

    def make(folder: Path) -> None:
        for seed in (1, 2):
            with_another_head(tiny_checkpoint, folder / f"head{seed}", seed)

    return made_once("ensemble-heads", make)


def test_a_backbone_that_members_share_is_computed_once(heads: Path, tmp_path: Path) -> None:
    members = [heads / "head1", heads / "head2"]
    made = tfc.export(members, tmp_path / "a", ensemble="mean").artifact
    graph = onnx.load(made.file(graph_file("model"))).graph
    counted = [node.op_type for node in graph.node].count
    assert (counted("Attention"), counted("LayerNormalization")) == (2, 5)
    weights = sum(len(tensor.raw_data) for tensor in graph.initializer)
    single = (members[0] / "model.safetensors").stat().st_size
    assert weights < 1.01 * single
    # Two classifiers on one pooler, and what combines them.
    assert counted("Gemm") == 3
    assert made.manifest.graphs["model"].fusion_sites == {"attention": 2, "add_layernorm": 4}
    assert made.manifest.steps[0].result["shared"]["weight_bytes"] > 0.9 * single
    report = tfc.optimize(made, "tensorrt").report
    assert report["fusions"] == {
        "attention": {"found": 2, "expected": 2},
        "add_layernorm": {"found": 4, "expected": 4},
    }
    tfc.build_engine(made, backend="onnxruntime")
    expected = (probabilities(members[0]) + probabilities(members[1])) / 2
    found = [list(prediction["scores"].values()) for prediction in said(tmp_path / "a")]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_members_with_their_own_tokenizers_read_every_text_themselves(tmp_path: Path) -> None:
    """WordPiece and byte-level BPE, several labels a text, a vote; one is shorter-sighted."""
    several = {"problem_type": "multi_label_classification"}
    bert = save_tiny_checkpoint(tmp_path / "bert", **several, **SMALL)
    roberta = save_tiny_checkpoint(
        tmp_path / "roberta",
        "roberta",
        tokenizer=byte_level(),
        **several,
        **SMALL,
        max_position_embeddings=82,
    )
    made = tfc.export([bert, roberta], tmp_path / "a", ensemble="vote").artifact
    assert made.manifest.graphs["model"].input_names == [
        *("input_ids", "attention_mask", "token_type_ids"),
        *("input_ids_2", "attention_mask_2"),
    ]
    assert made.manifest.preprocess is not None
    assert made.manifest.preprocess.max_length == 80
    assert {"tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json"} <= set(made.manifest.files)
    tfc.build_engine(made, backend="onnxruntime")
    lowered = onnx.load(made.file("optimized/onnxruntime/model.onnx")).graph
    masks = {node.input[3] for node in lowered.node if node.op_type == "Attention"}
    assert len(masks) == 2
    casts = {node.input[0] for node in lowered.node if node.op_type == "Cast"}
    assert casts >= {"attention_mask", "attention_mask_2"}
    assert tfc.verify(made).failed == []
    p = [probabilities(folder, sigmoid, 80) for folder in (bert, roberta)]
    votes = sum((each >= 0.5).astype(float) for each in p) / 2
    expected = (votes + 1e-3 * (p[0] + p[1]) / 2) / 1.001
    predictions = said(tmp_path / "a", batch_size=2)
    for prediction, row in zip(predictions, expected, strict=True):
        np.testing.assert_allclose(list(prediction["scores"].values()), row, atol=1e-5)
        assert prediction["labels"] == [
            label for label, share in zip(LABELS, row, strict=True) if share >= 0.5
        ]
    # A text that is too long for either, and a pair.
    assert len(said(tmp_path / "a", ["word " * 500, ("one", "two")])) == 2
    cells = tfc.bench(made, batches=[2], lengths=[9], seconds=0.01).cells
    assert set(cells[0].timings) == {"pytorch", "onnxruntime-fp32"}


def refused(*arguments: object) -> tuple[int, str]:
    """The exit code and the message of a command in this process, on one line."""
    ended = CliRunner().invoke(commands, list(map(str, arguments)))
    return ended.exit_code, " ".join(ended.stderr.split())


def edited(checkpoint: Path, folder: Path, **config: Any) -> Path:
    """A copy with other values in its config."""
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_members_that_do_not_fit_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    a, out = tiny_checkpoint, tmp_path / "out"

    def ensemble(other: Path, *options: object) -> str:
        code, text = refused("export", a, other, "-o", out, *options)
        assert code == 2, text
        assert not out.exists()
        return text

    text = ensemble(a)
    assert "there are 2 checkpoints, and nothing says how they are combined" in text
    code, text = refused("export", a, "-o", out, "--ensemble", "mean")
    assert (code, "an ensemble has two members or more" in text) == (2, True)
    code, text = refused("export", a, "-o", out, "--weights", "1,2")
    assert (code, "--weights is read with --ensemble only" in text) == (2, True)
    assert "--base is about one checkpoint" in ensemble(a, "--ensemble", "mean", "--base", "b")
    assert "'a,b' is not a list of numbers" in ensemble(
        a, "--ensemble", "weighted", "--weights", "a,b"
    )

    names = {"id2label": {"0": "cancel", "1": "return", "2": "other"}}
    labels = edited(a, tmp_path / "labels", **names, label2id={})
    assert (
        f"the members of an ensemble have the same labels: {labels} lacks 'refund' and has "
        f"'return', which {a} lacks"
    ) in ensemble(labels, "--ensemble", "mean")
    twice = {"id2label": {"0": "cancel", "1": "cancel", "2": "other"}}
    doubled = edited(a, tmp_path / "doubled", **twice, label2id={})
    assert f"{doubled} has two called 'cancel'" in ensemble(doubled, "--ensemble", "mean")

    several = edited(a, tmp_path / "several", problem_type="multi_label_classification")
    assert f"{a} as single_label, and {several} as multi_label" in ensemble(
        several, "--ensemble", "mean"
    )
    tokens = edited(a, tmp_path / "tokens", architectures=["BertForTokenClassification"])
    assert (
        f"the members of an ensemble do one task: {a} does text-classification, and {tokens} "
        "token-classification"
    ) in ensemble(tokens, "--ensemble", "mean")
    masked = edited(a, tmp_path / "masked", architectures=["BertForMaskedLM"])
    code, text = refused("export", masked, masked, "-o", out, "--ensemble", "mean")
    assert (code, "models for fill-mask are not combined" in text) == (2, True)


def test_rules_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    number = save_tiny_checkpoint(tmp_path / "number", id2label={0: "score"}, **SMALL)
    for options, what in {
        ("vote",): "these models give numbers, and a vote needs labels",
        ("mean", "--normalize", "softmax"): "only logits of labels are normalised",
    }.items():
        code, text = refused("export", number, number, "-o", out, "--ensemble", *options)
        assert (code, what in text) == (2, True), text
    two = save_tiny_checkpoint(tmp_path / "two", id2label={0: "no", 1: "yes"}, **SMALL)
    code, text = refused(
        "export", two, two, "-o", out, "--ensemble", "mean", "--normalize", "zscore"
    )
    assert (code, "z-scores of 2 labels are the same for every text" in text) == (2, True)
    tokens = [
        save_tiny_checkpoint(tmp_path / name, family, "TokenClassification", made, **SMALL)
        for name, family, made in (("a", "bert", None), ("b", "roberta", byte_level()))
    ]
    code, text = refused("export", *tokens, "-o", out, "--ensemble", "mean")
    assert (code, "share a tokenizer" in text) == (2, True)
    assert not out.exists()
