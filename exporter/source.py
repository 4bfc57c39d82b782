"""Find a checkpoint and say what it is, before anything is loaded.

A checkpoint is a local folder or the id of a model on the Hugging Face hub. Weights must be
safetensors unless the caller allows pickles, and code that comes with a checkpoint is never run
unless the caller allows it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.artifact import MANIFEST
from tfc.errors import BadCheckpoint, first_line
from tfc.files import sha256_of_tree

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_DOWNLOADED = [
    *("*.json", "*.txt", "*.model", "*.spm", "*.safetensors"),
    *("*/config.json", "*/*.safetensors"),
]
_PICKLES = ["*.bin", "*/*.bin"]
_SUFFIXES = {".json", ".txt", ".model", ".spm", ".safetensors"}
# Written by trainers beside the model; they do not change what the model computes.
_NOT_MODEL = {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk.

    `given` is what the caller typed, `folder` where its files are, `config` its `config.json`,
    `modules` the list in `modules.json` where it is a sentence-transformers folder.
    """

    given: str
    folder: Path
    revision: str | None
    config: dict[str, Any]
    modules: tuple[dict[str, Any], ...]
    sha256: str

    @property
    def model_type(self) -> str:
        """The `model_type` of the config, empty where it has none."""
        return str(self.config.get("model_type", ""))

    @property
    def architecture(self) -> str:
        """The class that the checkpoint was saved from, e.g. BertForSequenceClassification."""
        names = self.config.get("architectures") or [""]
        return str(names[0])


def source_from_checkpoint(
    checkpoint: str, *, revision: str | None, allow_pickle: bool, trust_remote_code: bool
) -> Source:
    """Locate a checkpoint and check that it can be loaded under the given permissions.

    Raises:
        BadCheckpoint: it is not there, is not a checkpoint, or needs a permission.
    """
    folder = _folder_of(checkpoint, revision, allow_pickle)
    config = _config_of(folder)
    if "auto_map" in config and not trust_remote_code:
        raise BadCheckpoint(
            "this checkpoint brings its own Python code, which tfc does not run by default",
            where=checkpoint,
            fix="Read that code, then allow it with --trust-remote-code",
        )
    modules = _modules_of(folder)
    _check_weights(folder, checkpoint, allow_pickle)
    names = _files_of(folder, modules, allow_pickle)
    return Source(checkpoint, folder, revision, config, modules, sha256_of_tree(folder, names))


def _folder_of(checkpoint: str, revision: str | None, allow_pickle: bool) -> Path:
    folder = Path(checkpoint)
    if folder.is_file():
        raise BadCheckpoint(
            "this is a file, and a checkpoint is a folder",
            where=checkpoint,
            fix="Give the folder that holds config.json and the weights",
        )
    if folder.is_dir():
        return folder
    looks_local = checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1
    if looks_local or not _HUB_ID.match(checkpoint):
        raise BadCheckpoint(
            "there is no such folder",
            where=checkpoint,
            fix="Give the folder of a checkpoint, or the id of a model on the hub",
        )
    return _folder_from_hub(checkpoint, revision, allow_pickle)


def _folder_from_hub(checkpoint: str, revision: str | None, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = _DOWNLOADED + (_PICKLES if allow_pickle else [])
    try:
        return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = first_line(error)
        raise BadCheckpoint(
            f"there is no folder of this name, and the hub did not give such a model ({reason})",
            where=checkpoint,
            fix="Check the spelling, the network and HF_HUB_OFFLINE, or log in with: hf auth login",
        ) from error


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if (folder / MANIFEST).is_file():
        raise BadCheckpoint(
            "this is an artifact, which tfc made from a checkpoint",
            where=str(folder),
            fix="Give the checkpoint itself; 'tfc inspect' tells where it was",
        )
    if (folder / "adapter_config.json").is_file() and not path.is_file():
        raise BadCheckpoint(
            "this is a LoRA adapter without its base model",
            where=str(folder),
            fix="Merge it first: peft's merge_and_unload(), then save_pretrained()",
        )
    if not path.is_file():
        raise BadCheckpoint(
            "this folder is no checkpoint: it has no config.json",
            where=str(folder),
            fix="Give the folder that save_pretrained() wrote",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadCheckpoint(
            f"the file is not valid JSON ({error})",
            where=str(path),
            fix="Save the checkpoint again with save_pretrained()",
        ) from error
    if not isinstance(config, dict):
        raise BadCheckpoint("config.json holds no object", where=str(path), fix="Save it again")
    return config


def _modules_of(folder: Path) -> tuple[dict[str, Any], ...]:
    path = folder / "modules.json"
    if not path.is_file():
        return ()
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise BadCheckpoint(
            f"the file is not a list of modules ({error})",
            where=str(path),
            fix="Save the model again with sentence-transformers",
        ) from error


def _check_weights(folder: Path, checkpoint: str, allow_pickle: bool) -> None:
    if any(folder.glob("*.safetensors")):
        return
    if not any(folder.glob("*.bin")):
        raise BadCheckpoint(
            "this folder has a config.json and no weights",
            where=checkpoint,
            fix="Put model.safetensors beside it: save the model with save_pretrained()",
        )
    if not allow_pickle:
        raise BadCheckpoint(
            "the weights are a pickle, which can run code when it is read",
            where=checkpoint,
            fix="Save them as safetensors, or allow the pickle with --allow-pickle",
        )


def _files_of(folder: Path, modules: tuple[dict[str, Any], ...], allow_pickle: bool) -> list[str]:
    """The files that decide what the model computes: config, weights, tokenizer, modules."""
    suffixes = _SUFFIXES | ({".bin"} if allow_pickle else set())
    parts = [folder, *(folder / str(m.get("path", "")) for m in modules)]
    files = {p for part in parts for p in part.glob("*") if p.is_file()}
    return sorted(
        p.relative_to(folder).as_posix()
        for p in files
        if p.suffix in suffixes and p.name not in _NOT_MODEL
    )
