"""Read what a sentence-transformers folder does after the Transformer, and before it to the text.

Format: `modules.json` lists the modules in order; each has a folder with a `config.json`
(sentence-transformers documentation, "Creating Custom Models"). Older versions write one
boolean per pooling mode, newer ones a single `pooling_mode`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfc.errors import BadCheckpoint
from tfc.exporter.checkpoint_files import json_object
from tfc.exporter.source import Source

NO_POOLING = "none"
# What a model does itself that gives one vector per text (CLIP's text tower).
PROJECTION = "projection"
IDENTITY = "Identity"
POOLING_MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_BOOLEAN_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Activations that sentence-transformers builds without arguments. Nothing else is looked up.
ACTIVATIONS = frozenset(
    {
        "ELU",
        "GELU",
        IDENTITY,
        "LeakyReLU",
        "Mish",
        "ReLU",
        "Sigmoid",
        "SiLU",
        "Softplus",
        "Tanh",
    }
)
_OWN_CONFIG = "config_sentence_transformers.json"
_EMBEDDING = "sentence_embedding"
_LENGTH_FILES = ("sentence_bert_config.json", "sentence_transformers_config.json")


@dataclass(frozen=True)
class Normalize:
    """Scale the embedding to length 1."""


@dataclass(frozen=True)
class Dense:
    """A linear layer and an activation (one of ACTIVATIONS); its weights are in `folder`.

    With `residual` the layer's input is added, projected where the sizes differ.
    """

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str
    residual: bool = False


@dataclass(frozen=True)
class EmbeddingHead:
    """What follows the Transformer: `pooling` is one of POOLING_MODES, or NO_POOLING.

    `layers` are applied in order to what pooling gives.
    """

    pooling: str = NO_POOLING
    layers: tuple[Dense | Normalize, ...] = ()
    max_length: int | None = None

    @property
    def normalize(self) -> bool:
        """Whether embeddings have length 1."""
        return bool(self.layers) and isinstance(self.layers[-1], Normalize)


def embedding_head_of(source: Source) -> EmbeddingHead:
    """The pooling and what follows it in a sentence-transformers folder.

    A folder without `modules.json` has no pooling: its graph gives one vector per token. An
    adapter without one has that of its base.

    Raises:
        BadCheckpoint: the folder has a module that tfc does not put into a graph.
    """
    if not source.modules:
        return embedding_head_of(source.base) if source.base is not None else EmbeddingHead()
    head = EmbeddingHead(max_length=_max_length_of(source.folder))
    for module in source.modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        folder = source.folder / str(module.get("path", ""))
        if kind == "Pooling":
            head = replace(head, pooling=_pooling_of(folder / "config.json", source))
        elif kind in ("Dense", "Normalize"):
            layer = _dense_of(folder) if kind == "Dense" else Normalize()
            _check_place(head, kind, folder)
            head = replace(head, layers=(*head.layers, layer))
        elif kind not in ("Transformer", "Dropout"):
            raise BadCheckpoint(
                f"the sentence-transformers module '{kind}' is not supported",
                where=str(source.folder / "modules.json"),
                fix="tfc takes Transformer, Pooling, Dense and Normalize; export the rest yourself",
            )
    return head


def prompts_of(source: Source) -> tuple[dict[str, str], str]:
    """The prompts that a sentence-transformers folder names, and which one is used unasked.

    Raises:
        BadCheckpoint: there is no prompt of the default's name.
    """
    if source.base is not None and not source.modules:
        return prompts_of(source.base)
    config = own_config(source)
    prompts = {str(name): str(text) for name, text in (config.get("prompts") or {}).items()}
    default = str(config.get("default_prompt_name") or "")
    if default and default not in prompts:
        raise BadCheckpoint(
            f"the default prompt is '{default}', and there is no prompt of that name",
            where=str(source.folder / _OWN_CONFIG),
            fix="Correct default_prompt_name, or save the model again",
        )
    return prompts, default


def lowercases(source: Source) -> bool:
    """Whether sentence-transformers lower-cases the text, whatever the tokenizer does."""
    path = source.folder / _LENGTH_FILES[0]
    return path.is_file() and bool(json_object(path).get("do_lower_case"))


def own_config(source: Source) -> dict[str, Any]:
    """What `config_sentence_transformers.json` holds; nothing where there is none."""
    path = source.folder / _OWN_CONFIG
    return json_object(path) if path.is_file() else {}


def _check_place(head: EmbeddingHead, kind: str, folder: Path) -> None:
    """Refuse a layer that works on tokens: before pooling, or told so by its config."""
    path = folder / "config.json"
    config = json_object(path) if path.is_file() else {}
    names = {config.get(f"module_{end}_name") or _EMBEDDING for end in ("input", "output")}
    if (head.pooling == NO_POOLING and kind == "Dense") or names != {_EMBEDDING}:
        raise BadCheckpoint(
            f"the module '{kind}' works on tokens, not on the pooled embedding",
            where=str(path),
            fix="tfc takes Dense and Normalize after Pooling",
        )


def _dense_of(folder: Path) -> Dense:
    path = folder / "config.json"
    config = json_object(path)
    try:
        return Dense(
            folder,
            int(config["in_features"]),
            int(config["out_features"]),
            bool(config.get("bias", True)),
            activation_of(config.get("activation_function") or "torch.nn.Tanh", path),
            bool(config.get("use_residual", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadCheckpoint(
            f"the config of a Dense module lacks its sizes ({error})",
            where=str(path),
            fix="Save the model again with sentence-transformers",
        ) from error


def activation_of(name: str, where: Path) -> str:
    """The class in torch.nn that a config names.

    Raises:
        BadCheckpoint: it is none of ACTIVATIONS.
    """
    kind = str(name).rsplit(".", 1)[-1]
    if not str(name).startswith("torch.nn.") or kind not in ACTIVATIONS:
        raise BadCheckpoint(
            f"the activation {name} is not supported",
            where=str(where),
            fix=f"tfc takes these of torch.nn: {', '.join(sorted(ACTIVATIONS))}",
        )
    return kind


def _pooling_of(path: Path, source: Source) -> str:
    config = json_object(path)
    if not config.get("include_prompt", True) and any(
        (own_config(source).get("prompts") or {}).values()
    ):
        raise BadCheckpoint(
            "this model leaves its prompt out of the pooling (include_prompt is false), and the "
            "graph cannot tell a prompt from a text",
            where=str(path),
            fix="Remove the prompts from config_sentence_transformers.json if you do not use them",
        )
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
