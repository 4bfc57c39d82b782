"""What transformers' Trainer leaves on the disk is taken as it is, and its pickles are not read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import save_tiny_checkpoint

import tfc
from tfc.errors import BadCheckpoint

pytestmark = [
    pytest.mark.ort,
    # What transformers and accelerate say while a test trains.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Trap:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of a training of two steps, with a checkpoint for each."""
    folder = tmp_path_factory.mktemp("trainer")
    checkpoint = save_tiny_checkpoint(folder / "start")
    row = {"input_ids": [101, 2000, 102], "attention_mask": [1, 1, 1], "labels": 1}
    trainer = transformers.Trainer(
        transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint),
        transformers.TrainingArguments(
            str(folder / "out"),
            max_steps=2,
            save_steps=1,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[row] * 8,
        processing_class=transformers.AutoTokenizer.from_pretrained(checkpoint),
    )
    trainer.train()
    return folder / "out"


def test_a_checkpoint_of_a_training(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained / "checkpoint-2", tmp_path / "checkpoint-2"))
    assert {"optimizer.pt", "training_args.bin", "trainer_state.json"} <= set(os.listdir(folder))
    before = tfc.export(folder, tmp_path / "a").artifact.manifest
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "trace")))
    after = tfc.export(folder, tmp_path / "b", allow_pickle=True).artifact.manifest
    assert not (tmp_path / "trace").exists()
    assert before.checkpoint == after.checkpoint
    assert before.task.labels == ["cancel", "refund", "other"]


def test_an_output_folder_with_a_model(trained: Path, tmp_path: Path) -> None:
    """The checkpoints inside are not part of the model that lies beside them."""
    folder = Path(shutil.copytree(trained / "checkpoint-2", tmp_path / "out"))
    alone = tfc.export(folder, tmp_path / "a").artifact.manifest.checkpoint.sha256
    shutil.copytree(trained / "checkpoint-1", folder / "checkpoint-1")
    assert tfc.export(folder, tmp_path / "b").artifact.manifest.checkpoint.sha256 == alone


def refusal(folder: Path) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        tfc.export(folder, folder.parent / "refused")
    return caught.value


def test_an_output_folder_with_checkpoints_only(trained: Path, tmp_path: Path) -> None:
    """By their numbers, not their names: 10 comes after 9."""
    for step in (9, 10):
        shutil.copytree(trained / "checkpoint-1", tmp_path / "out" / f"checkpoint-{step}")
    (tmp_path / "out" / "runs").mkdir()
    caught = refusal(tmp_path / "out")
    assert caught.what == "this folder holds the checkpoints of a training and no model of its own"
    assert caught.fix == f"Export the latest one: {tmp_path / 'out' / 'checkpoint-10'}"


def test_training_arguments_are_no_weights(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained / "checkpoint-2", tmp_path / "c"))
    (folder / "model.safetensors").unlink()
    assert refusal(folder).what == "this folder has a config.json and no weights"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = save_tiny_checkpoint(tmp_path / "whole")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    shutil.copytree(folder, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4MB")
    return tmp_path / "sharded"


def test_sharded_weights(sharded: Path, tmp_path: Path) -> None:
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    artifact = tfc.export(sharded, tmp_path / "a").artifact
    whole = tfc.export(tmp_path / "whole", tmp_path / "b").artifact
    assert artifact.manifest.files["model.onnx"] == whole.manifest.files["model.onnx"]


def test_a_missing_shard(sharded: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[-1].unlink()
    caught = refusal(sharded)
    assert caught.what == (
        f"the weights are in {len(shards)} files, and {shards[-1].name} is missing"
    )
    assert caught.fix.startswith("Copy the whole folder")


@pytest.mark.parametrize("index", ["{", "[]"])
def test_a_broken_index(sharded: Path, index: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    assert "JSON" in refusal(sharded).what or "no object" in refusal(sharded).what


def test_a_training_of_an_adapter(tmp_path: Path) -> None:
    """Trainer saves an adapter's folder with the tokenizer and its own pickle."""
    import peft

    base = save_tiny_checkpoint(tmp_path / "base", head="")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "checkpoint-7")
    torch.save({}, tmp_path / "checkpoint-7" / "optimizer.pt")
    (tmp_path / "checkpoint-7" / "training_args.bin").write_bytes(
        pickle.dumps(Trap(tmp_path / "trace"))
    )
    index = json.loads((tmp_path / "checkpoint-7" / "adapter_config.json").read_text())
    assert index["base_model_name_or_path"] == str(base)
    tfc.export(tmp_path / "checkpoint-7", tmp_path / "a")
    assert not (tmp_path / "trace").exists()
