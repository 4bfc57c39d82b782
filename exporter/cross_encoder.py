"""What a CrossEncoder of sentence-transformers, which scores pairs of texts, does to its logit."""

from __future__ import annotations

from tfc.errors import BadCheckpoint
from tfc.exporter.sentence_embedding import IDENTITY, activation_of, own_config
from tfc.exporter.source import Source

_CROSS_ENCODER = "CrossEncoder"
# Where sentence-transformers before 4.0 kept the activation, in the Transformer's config.
_OLD_ACTIVATION = "sbert_ce_default_activation_function"


def is_cross_encoder(source: Source) -> bool:
    """Whether the folder is a CrossEncoder: a classifier of pairs, and no embedding."""
    if source.modules:
        return own_config(source).get("model_type") == _CROSS_ENCODER
    return "sentence_transformers" in source.config or _OLD_ACTIVATION in source.config


def score_activation_of(source: Source) -> str:
    """What a CrossEncoder with one score does to its logit: one of ACTIVATIONS.

    `CrossEncoder.get_default_activation_fn` is the definition: the folder's own config, that of
    the Transformer, and a sigmoid where neither tells. A plain classifier does nothing.

    Raises:
        BadCheckpoint: the activation is no module of torch that needs no arguments.
    """
    if not is_cross_encoder(source):
        return IDENTITY
    _check_only_transformer(source)
    nested = source.config.get("sentence_transformers") or {}
    told = (
        nested.get("activation_fn")
        or source.config.get(_OLD_ACTIVATION)
        or own_config(source).get("activation_fn")
    )
    return activation_of(told, source.folder) if told else "Sigmoid"


def _check_only_transformer(source: Source) -> None:
    for module in source.modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind != "Transformer":
            raise BadCheckpoint(
                f"the module '{kind}' of a CrossEncoder is not supported",
                where=str(source.folder / "modules.json"),
                fix="tfc takes a CrossEncoder whose Transformer is a sequence classifier",
            )
