"""Adapters that peft saved, merged into their base: the numbers are peft's own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from checkpoints import run_tfc, save_tiny_checkpoint
from matrix import save_generator

import tfc
from tfc.errors import BadCheckpoint, MissingPackage, UsageError
from tfc.runtime.engine import close_all, runners_from_engine

pytestmark = [
    pytest.mark.ort,
    # What peft and transformers say while a test makes its adapter.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TOLERANCE = 1e-5
TEXTS = ("Where is my order?", "ok", "Die Rechnung stimmt nicht.")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare BERT, as it is before it is fine-tuned."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("base") / "bert", head="")


def trained(
    base: Path,
    folder: Path,
    auto: str = "SequenceClassification",
    config: peft.PeftConfig | None = None,
    **options: Any,
) -> Any:
    """An adapter with random weights everywhere, saved; the model that peft trained."""
    loader = getattr(transformers, f"AutoModelFor{auto}" if auto else "AutoModel")
    model = loader.from_pretrained(base, **options)
    settings = config or peft.LoraConfig(
        task_type={"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}[auto],
        target_modules=["query", "value"],
        r=4,
    )
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    adapted.save_pretrained(folder)
    return adapted.eval()


def worst_difference(adapted: Any, artifact: tfc.Artifact, output: str = "logits") -> float:
    """Between peft's forward and the engine, as a share of the largest value."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(artifact.file("tokenizer/tokenizer.json")), pad_token="[PAD]"
    )
    encoded = tokenizer(list(TEXTS), padding=True, return_tensors="pt", return_token_type_ids=True)
    with torch.no_grad():
        expected = getattr(adapted(**encoded), output).numpy()
    engine = tfc.build_engine(artifact, backend="onnxruntime").engine
    feed = {s.name: encoded[s.name].numpy() for s in artifact.manifest.signature.inputs}
    runners = runners_from_engine(artifact, engine)
    got = runners["model"].run(feed)[output]
    close_all(runners)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_a_classifier_adapter(base: Path, tmp_path: Path) -> None:
    adapted = trained(base, tmp_path / "lora", num_labels=4)
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    manifest = artifact.manifest
    assert manifest.task.labels == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]
    assert manifest.checkpoint.architecture == "BertForSequenceClassification"
    assert manifest.checkpoint.base == str(base)
    assert worst_difference(adapted, artifact) < TOLERANCE
    assert tfc.verify(artifact).failed == []


def test_the_labels_of_a_base_with_as_many_are_kept(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "lora", num_labels=3)
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert artifact.manifest.task.labels == ["cancel", "refund", "other"]


def test_a_config_beside_the_adapter_names_the_labels(base: Path, tmp_path: Path) -> None:
    adapted = trained(base, tmp_path / "lora", num_labels=2)
    adapted.base_model.model.config.id2label = {0: "no", 1: "yes"}
    adapted.base_model.model.config.save_pretrained(tmp_path / "lora")
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert artifact.manifest.task.labels == ["no", "yes"]


def test_a_classifier_as_base_gets_the_adapters_head(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "c")
    adapted = trained(base, tmp_path / "lora", num_labels=5, ignore_mismatched_sizes=True)
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert len(artifact.manifest.task.labels) == 5
    assert worst_difference(adapted, artifact) < TOLERANCE


def test_a_head_of_two_layers(tmp_path: Path) -> None:
    """RoBERTa's head is a module with two linear layers; one of them follows the labels."""
    base = save_tiny_checkpoint(
        tmp_path / "roberta", "roberta", head="", max_position_embeddings=162
    )
    trained(base, tmp_path / "lora", num_labels=6)
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert len(artifact.manifest.task.labels) == 6


def test_token_classification(base: Path, tmp_path: Path) -> None:
    adapted = trained(base, tmp_path / "lora", "TokenClassification", num_labels=7)
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert artifact.manifest.task.name == "token-classification"
    assert worst_difference(adapted, artifact) < TOLERANCE


def test_question_answering(base: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="QUESTION_ANS", target_modules=["query"])
    adapted = trained(base, tmp_path / "lora", "QuestionAnswering", config, num_labels=2)
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert artifact.manifest.task.name == "question-answering"
    for output in ("start_logits", "end_logits"):
        assert worst_difference(adapted, artifact, output) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "auto", "task_type", "targets"),
    [
        ("gpt2", "CausalLM", "CAUSAL_LM", ["c_attn"]),
        ("bart", "Seq2SeqLM", "SEQ_2_SEQ_LM", ["q_proj", "v_proj"]),
    ],
)
def test_a_model_that_generates(
    tmp_path: Path, family: str, auto: str, task_type: str, targets: list[str]
) -> None:
    """The tokens are those of peft's own greedy search, and not those of the base alone."""
    save_generator(tmp_path / "base", family)
    config = peft.LoraConfig(task_type=task_type, target_modules=targets)
    adapted = trained(tmp_path / "base", tmp_path / "lora", auto, config)
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert artifact.manifest.checkpoint.base == str(tmp_path / "base")
    tfc.build_engine(artifact, backend="onnxruntime")
    assert tfc.verify(artifact).failed == []
    loader = getattr(transformers, f"AutoModelFor{auto}")
    before = said(loader.from_pretrained(tmp_path / "base"), tmp_path / "base")
    expected = said(adapted, tmp_path / "base")
    assert expected != before
    with tfc.Session.load(artifact.path) as session:
        found = session.predict(list(TEXTS), max_new_tokens=8)
    # WordPiece puts a space between the prompt and what follows it.
    assert [row["text"].lstrip() for row in found] == expected


def said(model: Any, folder: Path) -> list[str]:
    """What transformers' generate writes after each text alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            tokens = model.generate(**encoded, max_new_tokens=8, do_sample=False)[0]
        prompt = 0 if model.config.is_encoder_decoder else encoded["input_ids"].shape[1]
        found.append(tokenizer.decode(tokens[prompt:], skip_special_tokens=True))
    return found


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LoraConfig", {"use_dora": True, "r": 4, "target_modules": ["query", "dense"]}),
        ("LoraConfig", {"use_rslora": True, "bias": "lora_only", "target_modules": ["key"]}),
        ("IA3Config", {"target_modules": ["key", "value"], "feedforward_modules": []}),
        ("LoHaConfig", {"target_modules": ["query"]}),
    ],
)
def test_kinds_that_merge(base: Path, tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    config = getattr(peft, kind)(task_type="FEATURE_EXTRACTION", **options)
    adapted = trained(base, tmp_path / "adapter", "", config)
    artifact = tfc.export(tmp_path / "adapter", tmp_path / "a").artifact
    assert artifact.manifest.task.pooling == "none"
    assert worst_difference(adapted, artifact, "last_hidden_state") < TOLERANCE


def test_a_task_asked_for(base: Path, tmp_path: Path) -> None:
    """An adapter without a task type tells the class that it was trained on."""
    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    adapted = trained(base, tmp_path / "lora", "SequenceClassification", config, num_labels=4)
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert artifact.manifest.task.name == "text-classification"
    assert worst_difference(adapted, artifact) < TOLERANCE


def test_tokens_that_were_added(base: Path, tmp_path: Path) -> None:
    """The adapter brings its own embeddings and tokenizer, both larger than the base's."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<order>", "<parcel>"])
    model.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["query"],
        modules_to_save=["classifier", "word_embeddings"],
    )
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "lora")
    tokenizer.save_pretrained(tmp_path / "lora")
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert worst_difference(adapted, artifact) < TOLERANCE


def test_a_base_beside_the_adapter(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "lora", num_labels=2)
    edit(tmp_path / "lora", base_model_name_or_path="../base")
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a").artifact
    assert artifact.manifest.checkpoint.base == str(tmp_path / "lora" / "../base")


def test_a_base_that_moved(base: Path, tmp_path: Path) -> None:
    """The command line says where it is, at export and at verification."""
    shutil.copytree(base, tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "lora", num_labels=2)
    os.rename(tmp_path / "base", tmp_path / "moved")
    missing = run_tfc("export", tmp_path / "lora", "-o", tmp_path / "a")
    assert missing.returncode == 5
    assert f"the base model of this adapter, {tmp_path / 'base'}, cannot be used" in missing.stderr
    assert "Say where it is with --base" in missing.stderr
    tfc.export(tmp_path / "lora", tmp_path / "a", base=tmp_path / "moved")
    tfc.build_engine(tmp_path / "a", backend="onnxruntime")
    os.rename(tmp_path / "moved", tmp_path / "again")
    lost = run_tfc("verify", tmp_path / "a")
    assert lost.returncode == 5
    assert "and its base model with --base" in lost.stderr
    assert tfc.verify(tmp_path / "a", base=tmp_path / "again").failed == []


def test_the_identity_covers_adapter_and_base(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    trained(tmp_path / "base", tmp_path / "lora", num_labels=2)
    before = tfc.export(tmp_path / "lora", tmp_path / "a").artifact.manifest.checkpoint.sha256
    edit(tmp_path / "base", name="config.json", layer_norm_eps=1e-3)
    after = tfc.export(tmp_path / "lora", tmp_path / "b").artifact.manifest.checkpoint.sha256
    assert before != after
    artifact = tfc.Artifact.open(tmp_path / "a")
    tfc.build_engine(artifact, backend="onnxruntime")
    with pytest.raises(BadCheckpoint, match="not the checkpoint that the artifact was exported"):
        tfc.verify(artifact)


def test_a_pickled_adapter_needs_permission(base: Path, tmp_path: Path) -> None:
    adapted = trained(base, tmp_path / "lora", num_labels=2)
    shutil.rmtree(tmp_path / "lora")
    adapted.save_pretrained(tmp_path / "lora", safe_serialization=False)
    with pytest.raises(BadCheckpoint, match="the weights are a pickle"):
        tfc.export(tmp_path / "lora", tmp_path / "a")
    artifact = tfc.export(tmp_path / "lora", tmp_path / "a", allow_pickle=True).artifact
    assert worst_difference(adapted, artifact) < TOLERANCE


def edit(folder: Path, name: str = "adapter_config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: Path, **options: Any) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(folder, folder.parent / "refused", **options)
    assert not (folder.parent / "refused").exists()
    assert caught.value.fix
    return caught.value


def test_prompts_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "prefix")
    assert refusal(tmp_path / "prefix").what == (
        "an adapter of the kind PREFIX_TUNING cannot be merged into a model's weights"
    )


def test_an_unknown_kind(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "lora", num_labels=2)
    edit(tmp_path / "lora", peft_type="TELEPATHY")
    assert refusal(tmp_path / "lora").what.startswith("peft cannot read the adapter's config")


def test_the_base_of_another_adapter(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "lora", num_labels=2)
    shallow = save_tiny_checkpoint(tmp_path / "shallow", head="", num_hidden_layers=1)
    assert refusal(tmp_path / "lora", base=str(shallow)).what.startswith(
        "this adapter has weights for which its base model has no place: bert.encoder.layer.1."
    )
    deep = save_tiny_checkpoint(tmp_path / "deep", head="", num_hidden_layers=3)
    assert refusal(tmp_path / "lora", base=str(deep)).what.startswith(
        "this adapter lacks weights: bert.encoder.layer.2."
    )
    wide = save_tiny_checkpoint(tmp_path / "wide", head="", hidden_size=32)
    assert refusal(tmp_path / "lora", base=str(wide)).what.startswith(
        "peft cannot merge this adapter into its base model"
    )


def test_a_head_that_nobody_brings(base: Path, tmp_path: Path) -> None:
    """Token embeddings were trained; a classifier is asked for."""
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["query"])
    trained(base, tmp_path / "lora", "", config)
    assert refusal(tmp_path / "lora", task="text-classification").what == (
        "weights that text-classification needs are missing: classifier.bias, classifier.weight"
    )


def test_an_adapter_as_base(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "lora", num_labels=2)
    what = refusal(tmp_path / "lora", base=str(tmp_path / "lora")).what
    assert what.endswith("is an adapter itself")


def test_a_base_for_a_whole_model(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this checkpoint is a whole model"):
        tfc.export(base, tmp_path / "a", base=str(base))


def test_without_peft(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(base, tmp_path / "lora", num_labels=2)
    import tfc.errors

    monkeypatch.setattr(tfc.errors, "is_installed", lambda module: module != "peft")
    with pytest.raises(MissingPackage) as caught:
        tfc.export(tmp_path / "lora", tmp_path / "a")
    assert caught.value.fix == "Install it with: pip install 'tfc[lora]'"
