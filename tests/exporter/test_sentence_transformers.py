"""Folders that sentence-transformers saved give the numbers that it gives itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_tiny_checkpoint
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st

import tfc
from tfc.errors import BadCheckpoint

pytestmark = [
    pytest.mark.ort,
    # What sentence-transformers says while a test makes its model.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TOLERANCE = 1e-5
TEXTS = ["A man is eating food.", "ok", "Der Himmel über Berlin", "long " * 60]
PAIRS = [("Where is my order?", "It left on Monday."), ("refund", ""), ("a " * 50, "b " * 90)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("st") / "bert", head="")


def saved(folder: Path, encoder: Path, *after: Any, side: str = "right", **options: Any) -> Any:
    """A SentenceTransformer with these modules after its Transformer."""
    transformer = st.Transformer(str(encoder))
    transformer.tokenizer.padding_side = side
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[transformer, *after], device="cpu", **options)
    model.save(str(folder))
    return model.eval()


def embeddings(artifact: tfc.Artifact) -> Any:
    tfc.build_engine(artifact, backend="onnxruntime")
    with tfc.Session.load(artifact.path) as session:
        return np.array([p["embedding"] for p in session.predict(TEXTS)])


@pytest.mark.parametrize(
    "layers",
    [
        [st.Dense(64, 32)],
        [
            st.Dense(64, 48, activation_function=torch.nn.GELU()),
            st.Dense(48, 16, bias=False, activation_function=None),
            st.Normalize(),
        ],
        [st.Normalize(), st.Dense(64, 64, use_residual=True), st.Dense(64, 8, use_residual=True)],
    ],
    ids=["one", "two and normalize", "normalize first, residual"],
)
def test_dense_layers_are_in_the_graph(bert: Path, tmp_path: Path, layers: list[Any]) -> None:
    model = saved(tmp_path / "st", bert, st.Pooling(64, "mean"), *layers)
    artifact = tfc.export(tmp_path / "st", tmp_path / "a").artifact
    assert artifact.manifest.task.normalize == isinstance(layers[-1], st.Normalize)
    expected = model.encode(TEXTS)
    assert artifact.manifest.signature.outputs[0].shape == ["batch", expected.shape[1]]
    assert np.abs(embeddings(artifact) - expected).max() < TOLERANCE
    assert tfc.verify(artifact).failed == []


@pytest.mark.parametrize("side", ["right", "left"])
def test_last_token_pooling(tmp_path: Path, side: str) -> None:
    """A decoder as an embedding model, as the recent ones are."""
    encoder = save_tiny_checkpoint(
        tmp_path / "c", "qwen3", head="", num_key_value_heads=1, head_dim=32
    )
    model = saved(tmp_path / "st", encoder, st.Pooling(64, "lasttoken"), st.Normalize(), side=side)
    artifact = tfc.export(tmp_path / "st", tmp_path / "a").artifact
    assert artifact.manifest.preprocess is not None
    assert artifact.manifest.preprocess.padding_side == side
    assert np.abs(embeddings(artifact) - model.encode(TEXTS)).max() < TOLERANCE


def test_prompts_are_kept(bert: Path, tmp_path: Path) -> None:
    prompts = {"query": "query: ", "document": ""}
    saved(tmp_path / "st", bert, st.Pooling(64), prompts=prompts, default_prompt_name="query")
    preprocess = tfc.export(tmp_path / "st", tmp_path / "a").artifact.manifest.preprocess
    assert preprocess is not None
    assert (preprocess.prompts, preprocess.default_prompt) == (prompts, "query")


def test_lower_casing_is_kept(bert: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "st", bert, st.Pooling(64))
    cased(tmp_path / "st")
    edit(tmp_path / "st" / "sentence_bert_config.json", do_lower_case=True)
    artifact = tfc.export(tmp_path / "st", tmp_path / "a").artifact
    assert np.abs(embeddings(artifact) - model.encode(TEXTS)).max() < TOLERANCE


def cased(folder: Path) -> None:
    """Take the lower-casing out of the tokenizer."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(content))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: Path, **options: Any) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(folder, folder.parent / "refused", **options)
    assert caught.value.fix
    return caught.value


def test_a_prompt_that_is_not_pooled(bert: Path, tmp_path: Path) -> None:
    pooling = st.Pooling(64, "mean", include_prompt=False)
    saved(tmp_path / "st", bert, pooling, prompts={"query": "Find what answers: "})
    assert refusal(tmp_path / "st").what.startswith(
        "this model leaves its prompt out of the pooling (include_prompt is false)"
    )
    edit(tmp_path / "st" / "config_sentence_transformers.json", prompts={})
    assert tfc.export(tmp_path / "st", tmp_path / "a").artifact.manifest.task.pooling == "mean"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"activation_function": "os.system"}, "the activation os.system is not supported"),
        ({"activation_function": "torch.load"}, "the activation torch.load is not supported"),
        ({"module_input_name": "token_embeddings"}, "the module 'Dense' works on tokens"),
        ({"out_features": 31}, "the weights of a Dense module cannot be loaded"),
        ({"out_features": None}, "the config of a Dense module lacks its sizes"),
    ],
)
def test_dense_layers_that_are_refused(
    bert: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    saved(tmp_path / "st", bert, st.Pooling(64), st.Dense(64, 32))
    edit(tmp_path / "st" / "2_Dense" / "config.json", **changes)
    assert refusal(tmp_path / "st").what.startswith(sentence)


def test_a_pickled_dense_layer_needs_permission(bert: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "st", bert, st.Pooling(64), st.Dense(64, 32))
    dense = tmp_path / "st" / "2_Dense"
    (dense / "model.safetensors").unlink()
    torch.save(model[2].state_dict(), dense / "pytorch_model.bin")
    caught = refusal(tmp_path / "st")
    assert caught.what == "the weights are a pickle, which can run code when it is read"
    assert caught.where == str(dense)
    artifact = tfc.export(tmp_path / "st", tmp_path / "a", allow_pickle=True).artifact
    assert np.abs(embeddings(artifact) - model.encode(TEXTS)).max() < TOLERANCE


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    return save_tiny_checkpoint(folder / "c", id2label={0: "LABEL_0"})


def scores(artifact: tfc.Artifact) -> Any:
    tfc.build_engine(artifact, backend="onnxruntime")
    with tfc.Session.load(artifact.path) as session:
        return np.array([p["score"] for p in session.predict(PAIRS)])


@pytest.mark.parametrize("activation", [None, torch.nn.Identity(), torch.nn.Tanh()])
def test_a_cross_encoder_gives_its_scores(reranker: Path, tmp_path: Path, activation: Any) -> None:
    """The default activation of a single score is a sigmoid."""
    model = CrossEncoder(str(reranker), device="cpu", activation_fn=activation)
    model.save(str(tmp_path / "ce"))
    artifact = tfc.export(tmp_path / "ce", tmp_path / "a").artifact
    task = artifact.manifest.task
    assert (task.name, task.problem) == ("text-classification", "regression")
    assert np.abs(scores(artifact) - model.predict(PAIRS)).max() < TOLERANCE
    assert tfc.verify(artifact).failed == []


@pytest.mark.parametrize(
    "declared",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sentence_transformers": {"version": "4.1.0"}},
    ],
    ids=["4.x", "before 4.0", "4.x without activation"],
)
def test_older_cross_encoders(reranker: Path, tmp_path: Path, declared: dict[str, Any]) -> None:
    """Folders without modules.json, which say it in the Transformer's config."""
    shutil.copytree(reranker, tmp_path / "ce")
    edit(tmp_path / "ce" / "config.json", **declared)
    artifact = tfc.export(tmp_path / "ce", tmp_path / "a").artifact
    expected = CrossEncoder(str(tmp_path / "ce"), device="cpu").predict(PAIRS)
    assert np.abs(scores(artifact) - expected).max() < TOLERANCE


def test_a_plain_regression_is_left_alone(reranker: Path, tmp_path: Path) -> None:
    artifact = tfc.export(reranker, tmp_path / "a").artifact
    plain = CrossEncoder(str(reranker), device="cpu", activation_fn=torch.nn.Identity())
    assert np.abs(scores(artifact) - plain.predict(PAIRS)).max() < TOLERANCE
