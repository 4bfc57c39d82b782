"""Read what a sentence-transformers folder does after the Transformer: pooling, normalisation.

Format: `modules.json` lists the modules in order; each has a folder with a `config.json`
(sentence-transformers documentation, "Creating Custom Models"). Older versions write one
boolean per pooling mode, newer ones a single `pooling_mode`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.errors import BadCheckpoint
from tfc.exporter.checkpoint_files import json_object
from tfc.exporter.source import Source

NO_POOLING = "none"
POOLING_MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_BOOLEAN_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_LENGTH_FILES = ("sentence_bert_config.json", "sentence_transformers_config.json")


@dataclass(frozen=True)
class EmbeddingHead:
    """What follows the Transformer: `pooling` is one of POOLING_MODES, or NO_POOLING."""

    pooling: str = NO_POOLING
    normalize: bool = False
    max_length: int | None = None


def embedding_head_of(source: Source) -> EmbeddingHead:
    """The pooling and normalisation of a sentence-transformers folder.

    A folder without `modules.json` has no pooling: its graph gives one vector per token. An
    adapter without one has that of its base.

    Raises:
        BadCheckpoint: the folder has a module that tfc does not put into a graph.
    """
    if not source.modules:
        return embedding_head_of(source.base) if source.base is not None else EmbeddingHead()
    pooling, normalize = NO_POOLING, False
    for module in source.modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        folder = source.folder / str(module.get("path", ""))
        if kind == "Pooling":
            pooling = _pooling_of(folder / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind not in ("Transformer", "Dropout"):
            raise BadCheckpoint(
                f"the sentence-transformers module '{kind}' is not supported",
                where=str(source.folder / "modules.json"),
                fix="tfc takes Transformer, Pooling and Normalize; export the rest yourself",
            )
    return EmbeddingHead(pooling, normalize, _max_length_of(source.folder))


def _pooling_of(path: Path) -> str:
    config = json_object(path)
    mode: Any = config.get("pooling_mode")
    if mode is None:
        mode = [name for key, name in _BOOLEAN_KEYS.items() if config.get(key)]
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise BadCheckpoint(
            f"the pooling '{'+'.join(map(str, modes)) or 'empty'}' is not supported",
            where=str(path),
            fix=f"tfc takes exactly one of: {', '.join(POOLING_MODES)}",
        )
    return str(modes[0])


def _max_length_of(folder: Path) -> int | None:
    for name in _LENGTH_FILES:
        if (folder / name).is_file():
            length = json_object(folder / name).get("max_seq_length")
            return int(length) if length else None
    return None
