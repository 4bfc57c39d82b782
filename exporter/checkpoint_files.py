"""What lies in a checkpoint's folder: its config, its modules, its weights. Nothing is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tfc.artifact import MANIFEST
from tfc.errors import BadCheckpoint

_SUFFIXES = {".json", ".txt", ".model", ".spm", ".safetensors"}
# Written by trainers beside the model; they do not change what the model computes.
_NOT_MODEL = {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}
# Pickles that trainers write beside the model. They are never read.
_NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "scheduler.bin"}
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_STEP = re.compile(r"^checkpoint-(\d+)$")


def config_of(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`.

    Raises:
        BadCheckpoint: it has none, or it is no JSON object; a folder that is something else than
            a checkpoint gets a sentence that says what.
    """
    path = folder / "config.json"
    if (folder / MANIFEST).is_file():
        raise BadCheckpoint(
            "this is an artifact, which tfc made from a checkpoint",
            where=str(folder),
            fix="Give the checkpoint itself; 'tfc inspect' tells where it was",
        )
    if path.is_file():
        return json_object(path)
    latest = _latest_checkpoint(folder)
    if latest is not None:
        raise BadCheckpoint(
            "this folder holds the checkpoints of a training and no model of its own",
            where=str(folder),
            fix=f"Export the latest one: {latest}",
        )
    raise BadCheckpoint(
        "this folder is no checkpoint: it has no config.json",
        where=str(folder),
        fix="Give the folder that save_pretrained() wrote",
    )


def modules_of(folder: Path) -> tuple[dict[str, Any], ...]:
    """The list in `modules.json` where the folder is one of sentence-transformers.

    Raises:
        BadCheckpoint: the file is no list of objects.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return ()
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        return tuple({**module} for module in modules)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise BadCheckpoint(
            f"the file is not a list of modules ({error})",
            where=str(path),
            fix="Save the model again with sentence-transformers",
        ) from error


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint.

    Raises:
        BadCheckpoint: the file cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadCheckpoint(
            f"the file is not valid JSON ({error})",
            where=str(path),
            fix="Save the checkpoint again with save_pretrained()",
        ) from error
    if not isinstance(value, dict):
        raise BadCheckpoint(
            f"{path.name} holds no object", where=str(path), fix="Save the checkpoint again"
        )
    return value


def check_weights(
    folder: Path, given: str, allow_pickle: bool, modules: tuple[dict[str, Any], ...] = ()
) -> None:
    """Refuse a folder whose weights are missing, or are pickles without permission.

    Modules of sentence-transformers may have weights of their own, under the same rule.

    Raises:
        BadCheckpoint: the sentence says which.
    """
    _check_shards(folder, given)
    parts = [folder, *(folder / path for m in modules if (path := str(m.get("path") or "")))]
    pickled = [part for part in parts if _only_pickles(part)]
    if not pickled and any(folder.glob("*.safetensors")):
        return
    if not pickled:
        raise BadCheckpoint(
            f"this folder has {_config_name(folder)} and no weights",
            where=given,
            fix="Put model.safetensors beside it: save the model with save_pretrained()",
        )
    if not allow_pickle:
        raise BadCheckpoint(
            "the weights are a pickle, which can run code when it is read",
            where=given if pickled[0] == folder else str(pickled[0]),
            fix="Save them as safetensors, or allow the pickle with --allow-pickle",
        )


def files_of(folder: Path, modules: tuple[dict[str, Any], ...], allow_pickle: bool) -> list[str]:
    """The files that decide what the model computes: config, weights, tokenizer, modules."""
    suffixes = _SUFFIXES | ({".bin"} if allow_pickle else set())
    parts = [folder, *(folder / str(m.get("path", "")) for m in modules)]
    files = {p for part in parts for p in part.glob("*") if p.is_file()}
    return sorted(
        p.relative_to(folder).as_posix()
        for p in files
        if p.suffix in suffixes and p.name not in _NOT_MODEL | _NOT_WEIGHTS
    )


def _only_pickles(folder: Path) -> bool:
    """Whether the weights in a folder are pickles; what trainers leave there does not count."""
    if any(folder.glob("*.safetensors")):
        return False
    return any(path.name not in _NOT_WEIGHTS for path in folder.glob("*.bin"))


def _latest_checkpoint(folder: Path) -> Path | None:
    """The training checkpoint with the highest step, where the folder holds some."""
    steps = {int(m[1]): p for p in folder.glob("*") if p.is_dir() and (m := _STEP.match(p.name))}
    return steps[max(steps)] if steps else None


def _check_shards(folder: Path, given: str) -> None:
    for name in _INDEXES:
        if not (folder / name).is_file():
            continue
        weight_map = json_object(folder / name).get("weight_map")
        shards = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        missing = [shard for shard in shards if not (folder / str(shard)).is_file()]
        if missing:
            raise BadCheckpoint(
                f"the weights are in {len(shards)} files, and {missing[0]} is missing",
                where=given,
                fix="Copy the whole folder; an interrupted download or save leaves files out",
            )


def _config_name(folder: Path) -> str:
    adapter = (folder / "adapter_config.json").is_file()
    return "an adapter_config.json" if adapter else "a config.json"
