"""`preprocessor_config.json` of a Whisper-class model → how its recordings become features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfc.errors import BadCheckpoint
from tfc.manifest import AudioPreprocess
from tfc.runtime.image_steps import PREPROCESSOR_CONFIG

_WHISPER = "WhisperFeatureExtractor"
# What transformers' class says where the file says nothing.
_DEFAULTS = {
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "chunk_length": 30,
    "n_fft": 400,
}


def audio_steps_from_config(
    config: Mapping[str, Any], model_type: str = "", where: str = PREPROCESSOR_CONFIG
) -> AudioPreprocess:
    """What `config` asks for, as transformers' `WhisperFeatureExtractor` would take it.

    `mel_filters`, `n_samples` and `nb_max_frames` follow from the other values and are read over,
    as there; so are `do_normalize` and `return_attention_mask`, which do not change the features
    unless a call asks for it.

    Args:
        config: what `preprocessor_config.json` holds, or `processor_config.json`, where the
            same stands under `feature_extractor`.
        model_type: the `model_type` of `config.json`; needed where `config` names no class.
        where: the file, for messages.

    Raises:
        BadCheckpoint: the class is another one, a value is not one that it takes, or the features
            would be random or padded on the left.
    """
    values = config.get("feature_extractor", config)
    name = values.get("feature_extractor_type")
    if name is None:
        name = _WHISPER if model_type == "whisper" else "of no name"
    if name != _WHISPER:
        raise _refused(f"the feature extractor '{name}' is not one that tfc knows", where)
    if values.get("dither", 0.0) != 0.0:
        raise _refused(
            "'dither' adds random noise, so that a recording would never give one result", where
        )
    if values.get("padding_side", "right") != "right":
        raise _refused("'padding_side' is not right, where tfc pads recordings", where)
    counts = {key: values.get(key, default) for key, default in _DEFAULTS.items()}
    for key, count in counts.items():
        if type(count) is not int or count < 1:
            raise _refused(f"'{key}' is {count!r}, not a whole number from 1 on", where)
    padding = values.get("padding_value", 0.0)
    if type(padding) not in (int, float):
        raise _refused(f"'padding_value' is {padding!r}, not a number", where)
    return AudioPreprocess(**counts, padding_value=float(padding))


def _refused(what: str, where: str) -> BadCheckpoint:
    return BadCheckpoint(
        what, where=where, fix="Give the model tensors instead of audio, or correct the file"
    )
