"""Find a checkpoint and say what it is, before anything is loaded.

A checkpoint is a local folder or the id of a model on the Hugging Face hub: a whole model, or an
adapter (`adapter_config.json`) with its base model. Weights must be safetensors unless the caller
allows pickles, and code that comes with a checkpoint is never run unless the caller allows it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfc.errors import BadCheckpoint, UsageError, first_line
from tfc.exporter.checkpoint_files import (
    check_weights,
    config_of,
    files_of,
    json_object,
    modules_of,
)
from tfc.files import sha256_of_json, sha256_of_tree

ADAPTER_CONFIG = "adapter_config.json"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_DOWNLOADED = [
    *("*.json", "*.txt", "*.model", "*.spm", "*.safetensors"),
    *("*/config.json", "*/*.safetensors"),
]
_PICKLES = ["*.bin", "*/*.bin"]


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk.

    `given` is what the caller typed, `folder` where its files are, `config` its `config.json`,
    `modules` the list in `modules.json` where it is a sentence-transformers folder. An adapter
    has its `adapter_config.json` in `adapter`, its base model in `base`, and the base's `config`.
    """

    given: str
    folder: Path
    revision: str | None
    config: dict[str, Any]
    modules: tuple[dict[str, Any], ...]
    sha256: str
    adapter: dict[str, Any] = field(default_factory=dict)
    base: Source | None = None

    @property
    def model_type(self) -> str:
        """The `model_type` of the config, empty where it has none."""
        return str(self.config.get("model_type", ""))

    @property
    def architecture(self) -> str:
        """The class that the checkpoint was saved from, e.g. BertForSequenceClassification."""
        trained = (self.adapter.get("auto_mapping") or {}).get("base_model_class")
        names = self.config.get("architectures") or [""]
        return str(trained or names[0])


def source_from_checkpoint(
    checkpoint: str,
    *,
    revision: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    base: str | None = None,
) -> Source:
    """Locate a checkpoint and check that it can be loaded under the given permissions.

    Args:
        checkpoint: a folder, or a hub id.
        revision: the revision of a hub model.
        allow_pickle: whether weights may be pickles.
        trust_remote_code: whether code that comes with the checkpoint may run.
        base: the base model of an adapter; its own config tells it otherwise.

    Raises:
        BadCheckpoint: it is not there, is not a checkpoint, or needs a permission.
        UsageError: a base was given for a checkpoint that is no adapter.
    """
    folder = _folder_of(checkpoint, revision, allow_pickle)
    permissions = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapter_source(checkpoint, folder, revision, base, permissions)
    if base is not None:
        raise UsageError(
            "--base names the base model of an adapter, and this checkpoint is a whole model",
            where=checkpoint,
            fix="Leave --base out",
        )
    config = config_of(folder)
    if "auto_map" in config and not trust_remote_code:
        raise BadCheckpoint(
            "this checkpoint brings its own Python code, which tfc does not run by default",
            where=checkpoint,
            fix="Read that code, then allow it with --trust-remote-code",
        )
    modules = modules_of(folder)
    check_weights(folder, checkpoint, allow_pickle, modules)
    names = files_of(folder, modules, allow_pickle)
    return Source(checkpoint, folder, revision, config, modules, sha256_of_tree(folder, names))


def _adapter_source(
    given: str,
    folder: Path,
    revision: str | None,
    base: str | None,
    permissions: dict[str, bool],
) -> Source:
    """An adapter with its base; the hash covers both."""
    adapter = json_object(folder / ADAPTER_CONFIG)
    check_weights(folder, given, permissions["allow_pickle"])
    under = _base_source(given, folder, adapter, base, permissions)
    modules = modules_of(folder)
    own = sha256_of_tree(folder, files_of(folder, modules, permissions["allow_pickle"]))
    sha256 = sha256_of_json({"adapter": own, "base": under.sha256})
    return Source(given, folder, revision, under.config, modules, sha256, adapter, under)


def _base_source(
    given: str,
    folder: Path,
    adapter: dict[str, Any],
    base: str | None,
    permissions: dict[str, bool],
) -> Source:
    told = adapter.get("base_model_name_or_path")
    name = str(base or told or "")
    if not name:
        raise BadCheckpoint(
            "this adapter's config does not name its base model",
            where=given,
            fix="Say where it is with --base",
        )
    beside = folder / name
    found = str(beside) if base is None and beside.is_dir() else name
    revision = adapter.get("revision") if base is None else None
    try:
        source = source_from_checkpoint(
            found,
            revision=revision,
            allow_pickle=permissions["allow_pickle"],
            trust_remote_code=permissions["trust_remote_code"],
        )
    except BadCheckpoint as error:
        raise BadCheckpoint(
            f"the base model of this adapter, {name}, cannot be used ({error.what})",
            where=given,
            fix=error.fix if base is not None else f"Say where it is with --base; or: {error.fix}",
        ) from error
    if source.base is not None:
        raise BadCheckpoint(
            f"the base model of this adapter, {name}, is an adapter itself",
            where=given,
            fix="Merge that one with peft's merge_and_unload(), then give the result with --base",
        )
    return source


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
