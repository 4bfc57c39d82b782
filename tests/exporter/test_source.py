"""What is no checkpoint is refused before anything is loaded, with a sentence that tells why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tfc.errors import BadCheckpoint, UsageError
from tfc.exporter.source import Source, source_from_checkpoint
from tfc.exporter.tasks import task_names, task_of


def locate(checkpoint: object, **allowed: bool) -> Source:
    permissions = {"allow_pickle": False, "trust_remote_code": False, **allowed}
    return source_from_checkpoint(str(checkpoint), revision=None, **permissions)


def folder_with(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


def refusal(checkpoint: object, **allowed: bool) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        locate(checkpoint, **allowed)
    assert caught.value.exit_code == 5
    assert caught.value.fix
    return caught.value.what


def test_a_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == "there is no such folder"


def test_a_name_that_is_neither_a_folder_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    what = refusal("no-such-organisation/no-such-model")
    assert what.startswith("there is no folder of this name, and the hub did not give such a model")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    what = refusal(tmp_path / "model.safetensors")
    assert what == "this is a file, and a checkpoint is a folder"


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "this folder is no checkpoint: it has no config.json"


def test_an_artifact(tmp_path: Path) -> None:
    what = refusal(folder_with(tmp_path, tfc__json="{}"))
    assert what == "this is an artifact, which tfc made from a checkpoint"


def test_an_adapter_without_weights(tmp_path: Path) -> None:
    what = refusal(folder_with(tmp_path, adapter_config__json="{}"))
    assert what == "this folder has an adapter_config.json and no weights"


def test_an_adapter_without_a_base(tmp_path: Path) -> None:
    files = {"adapter_config__json": "{}", "adapter_model__safetensors": "x"}
    what = refusal(folder_with(tmp_path, **files))
    assert what == "this adapter's config does not name its base model"


@pytest.mark.parametrize("text", ["{", "\xff", "[]"])
def test_a_config_that_is_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert "JSON" in refusal(tmp_path) or "object" in refusal(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    what = refusal(folder_with(tmp_path, config__json="{}"))
    assert what == "this folder has a config.json and no weights"


def test_pickled_weights_need_permission(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, config__json="{}", pytorch_model__bin="pickle")
    assert refusal(folder) == "the weights are a pickle, which can run code when it is read"
    assert locate(folder, allow_pickle=True).folder == folder


def test_remote_code_needs_permission(tmp_path: Path) -> None:
    config = json.dumps({"auto_map": {"AutoModel": "modeling.Model"}})
    folder = folder_with(tmp_path, config__json=config, model__safetensors="x")
    assert refusal(folder).startswith("this checkpoint brings its own Python code")
    assert locate(folder, trust_remote_code=True).folder == folder


def test_the_identity_covers_weights_and_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path, config__json="{}", model__safetensors="weights", tokenizer__json="{}"
    )
    identity = locate(folder).sha256
    (folder / "trainer_state.json").write_text("{}")
    (folder / "README.md").write_text("a model")
    assert locate(folder).sha256 == identity
    (folder / "tokenizer.json").write_text('{"other": 1}')
    assert locate(folder).sha256 != identity


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("RobertaForTokenClassification", "token-classification"),
        ("MPNetModel", "feature-extraction"),
    ],
)
def test_the_task_is_told_by_the_architecture(tmp_path: Path, architecture: str, task: str) -> None:
    config = json.dumps({"architectures": [architecture]})
    folder = folder_with(tmp_path, config__json=config, model__safetensors="x")
    assert task_of(locate(folder), None).name == task


def test_an_unsupported_task_names_the_supported_ones(tmp_path: Path) -> None:
    config = json.dumps({"architectures": ["BertForPreTraining"]})
    source = locate(folder_with(tmp_path, config__json=config, model__safetensors="x"))
    with pytest.raises(BadCheckpoint) as caught:
        task_of(source, None)
    assert str(caught.value) == (
        f"{tmp_path}: this checkpoint's task is not supported: BertForPreTraining. "
        f"tfc exports {', '.join(task_names())}; choose one of them with --task if it applies"
    )
    assert task_of(source, "feature-extraction").name == "feature-extraction"
    with pytest.raises(UsageError, match="there is no task 'poetry'"):
        task_of(source, "poetry")


def test_the_help_of_export_names_the_tasks_and_the_opset() -> None:
    from tfc.cli.export import OPSET, TASKS
    from tfc.exporter.to_onnx import OPSET as EXPORTED

    assert sorted(TASKS) == sorted(task_names())
    assert OPSET == EXPORTED
