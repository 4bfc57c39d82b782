"""A generation config → settings: what is honoured, what does nothing, what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tfc.errors import BadInput, UsageError
from tfc.runtime.generation import (
    GenerationSettings,
    config_from_settings,
    settings_from_config,
    start_tokens,
)
from tfc.runtime.generation.settings import DOES_NOTHING, NO_EFFECT

FULL: dict[str, Any] = {
    "max_new_tokens": 60,
    "max_length": 142,
    "min_new_tokens": 3,
    "min_length": 56,
    "num_return_sequences": 2,
    "num_beams": 4,
    "length_penalty": 2,
    "early_stopping": "never",
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 0,
    "top_p": 0.9,
    "min_p": 0.05,
    "typical_p": 0.95,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "sequence_bias": [[[5, 6], -2.5], [[7], 1]],
    "encoder_repetition_penalty": 1.1,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 4,
    "bad_words_ids": [[7], [8, 9]],
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": [10, 1.1],
    "suppress_tokens": [1, 2, 7],
    "begin_suppress_tokens": [220, 50257],
    "renormalize_logits": True,
    "eos_token_id": [128001, 128009],
    "pad_token_id": 1,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
}
# Published generation_config.json files, as they are.
LLAMA = {
    "bos_token_id": 128000,
    "do_sample": True,
    "eos_token_id": [128001, 128008, 128009],
    "temperature": 0.6,
    "top_p": 0.9,
    "transformers_version": "4.45.0.dev0",
}
BART = {
    "_from_model_config": True,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "length_penalty": 2.0,
    "max_length": 142,
    "min_length": 56,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "pad_token_id": 1,
    "transformers_version": "4.31.0.dev0",
}


def test_every_field_is_read_and_written_back() -> None:
    assert set(FULL) == {field.name for field in dataclasses.fields(GenerationSettings)}
    config = FULL | {"suppress_tokens": [1, 7]}
    settings = settings_from_config(config)
    assert settings.forced_eos_token_id == (2,)
    assert settings.sequence_bias == (((5, 6), -2.5), ((7,), 1.0))
    assert settings.early_stopping == "never"
    written = json.loads(json.dumps(config_from_settings(settings)))
    assert settings_from_config(written) == settings
    assert written == config | {"forced_eos_token_id": [2]}


def test_absent_and_null_are_the_default() -> None:
    nothing = dict.fromkeys([*FULL, *DOES_NOTHING, "stop_strings"])
    assert settings_from_config({}) == settings_from_config(nothing) == GenerationSettings()


@pytest.mark.parametrize("config", [LLAMA, BART])
def test_published_configs(config: dict[str, Any]) -> None:
    settings = config_from_settings(settings_from_config(config))
    for name in config.keys() - {"transformers_version", "_from_model_config"}:
        value = config[name]
        several = isinstance(settings[name], list) and not isinstance(value, list)
        assert settings[name] == ([value] if several else value)


def test_the_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    defaults = transformers.GenerationConfig._get_default_generation_params()
    known = dataclasses.asdict(settings_from_config(defaults))
    assert known == dataclasses.asdict(GenerationSettings(max_length=20))
    assert settings_from_config(transformers.GenerationConfig().to_dict()) == GenerationSettings()


def test_every_field_of_transformers_is_honoured_or_refused() -> None:
    transformers = pytest.importorskip("transformers")
    for name in vars(transformers.GenerationConfig()).keys() - FULL.keys() - NO_EFFECT:
        if name.startswith("_"):
            continue
        for value in (0.5, 3, "dflash", [[1, 2]], {"a": 1}):
            with pytest.raises(UsageError, match=f"sets {name} to .* tfc does not honour"):
                settings_from_config({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beam_groups", 2),
        ("diversity_penalty", 0.5),
        ("penalty_alpha", 0.6),
        ("guidance_scale", 1.5),
        ("prompt_lookup_num_tokens", 3),
        ("watermarking_config", {"bias": 2.0}),
        ("stop_strings", ["END"]),
        ("constraints", []),
        ("return_timestamps", True),
        ("my_own_processor", 0),
    ],
)
def test_what_would_change_the_tokens_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"sets {name} to") as error:
        settings_from_config({name: value})
    assert name in error.value.fix
    assert settings_from_config({name: None}) == GenerationSettings()


def test_what_belongs_into_the_prompt_is_refused() -> None:
    for name in ("forced_decoder_ids", "language", "task"):
        with pytest.raises(UsageError) as error:
            settings_from_config({name: [[1, 50259]]})
        assert error.value.fix == "Give its tokens as the start of the decoder's prompt"


@pytest.mark.parametrize("name", DOES_NOTHING)
def test_values_that_do_nothing_are_taken(name: str) -> None:
    assert settings_from_config({name: DOES_NOTHING[name]}) == GenerationSettings()
    assert settings_from_config({name: False}) == GenerationSettings()


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("num_beams", "4", "Give an integer"),
        ("num_beams", True, "Give an integer"),
        ("num_beams", 4.0, "Give an integer"),
        ("temperature", "hot", "Give a number"),
        ("do_sample", 1, "Give true or false"),
        ("early_stopping", "always", "Give true or false"),
        ("eos_token_id", [1, "2"], "Give an integer"),
        ("bad_words_ids", [7], "Give a list"),
        ("sequence_bias", [[[7]]], "Give a list of two values"),
        ("sequence_bias", [[7, 1.0]], "Give a list"),
        ("exponential_decay_length_penalty", 3, "Give a list"),
        ("num_beams", 0, "Give 1 or more"),
        ("max_new_tokens", 0, "Give 1 or more"),
        ("min_length", -1, "Give 0 or more"),
        ("temperature", 0.0, "Give a number above 0"),
        ("repetition_penalty", -1.0, "Give a number above 0"),
        ("top_p", 1.5, "Give a number from 0 to 1"),
        ("typical_p", 0.0, "Give a number above 0, up to 1"),
        ("eta_cutoff", 1.0, "Give a number from 0, below 1"),
        ("bad_words_ids", [[7], []], "Give sequences of one token or more"),
        ("sequence_bias", [[[], 1.0]], "Give sequences of one token or more"),
    ],
)
def test_wrong_values_are_refused(name: str, value: Any, fix: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} is ") as error:
        settings_from_config({name: value})
    assert error.value.fix == fix


def test_values_that_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="3 sequences cannot come of 2 beams"):
        GenerationSettings(num_return_sequences=3, num_beams=2)
    with pytest.raises(UsageError, match="2 sequences cannot come of 1 beams"):
        GenerationSettings(num_return_sequences=2)
    assert GenerationSettings(num_return_sequences=2, do_sample=True)
    with pytest.raises(UsageError, match="every token of forced_eos_token_id is also"):
        GenerationSettings(forced_eos_token_id=(3, 4), suppress_tokens=(4, 3))
    with pytest.raises(UsageError, match="every token of forced_bos_token_id is also"):
        GenerationSettings(forced_bos_token_id=0, suppress_tokens=(0,))
    with pytest.raises(UsageError, match="raises the end token, and there is none"):
        GenerationSettings(exponential_decay_length_penalty=(3, 1.1))


def test_what_a_decoder_starts_with() -> None:
    both = GenerationSettings(decoder_start_token_id=0, bos_token_id=5)
    assert start_tokens(both, 2).tolist() == [[0], [0]]
    assert start_tokens(GenerationSettings(bos_token_id=5), 1).tolist() == [[5]]
    with pytest.raises(BadInput, match="names no token to start with"):
        start_tokens(GenerationSettings(), 1)
