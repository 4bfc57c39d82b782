"""The tokens that `generate` writes are those of transformers' `model.generate`."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch_decoders import (
    CAUSAL,
    END,
    POSITIONS,
    SEQ2SEQ,
    VOCABULARY,
    CausalDecoder,
    Seq2SeqDecoder,
    base_config,
    prompts,
    reference,
)

from tfc.errors import BadInput, CheckFailed, UsageError
from tfc.runtime.generation import generate, settings_from_config, start_tokens

MODELS = [*CAUSAL, *SEQ2SEQ]
LENGTHS = [5, 9, 1, 7]
ENDS = [2, 5, 11, 17, 23, 31]  # one token in eight ends: rows end at different lengths

# Each on its own, with one token after the other.
SINGLE: dict[str, dict[str, Any]] = {
    "greedy": {},
    "one-token": {"max_new_tokens": 1},
    "default-length": {"max_new_tokens": None},
    "long": {"max_new_tokens": 40, "eos_token_id": None},
    "several-ends": {"eos_token_id": ENDS},
    "no-pad": {"eos_token_id": ENDS, "pad_token_id": None},
    "max-length": {"max_new_tokens": None, "max_length": 13, "eos_token_id": ENDS},
    "room-for-one": {"max_new_tokens": None, "max_length": max(LENGTHS) + 1},
    "min-length": {"min_length": 14, "eos_token_id": ENDS},
    "min-new": {"min_new_tokens": 6, "eos_token_id": ENDS},
    "min-new-before-min-length": {"min_new_tokens": 2, "min_length": 20, "eos_token_id": ENDS},
    "repetition": {"repetition_penalty": 1.7},
    "repetition-reward": {"repetition_penalty": 0.6},
    "encoder-repetition": {"encoder_repetition_penalty": 1.5},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bigrams": {"no_repeat_ngram_size": 2, "repetition_penalty": 0.5},
    "encoder-bigrams": {"encoder_no_repeat_ngram_size": 2, "encoder_repetition_penalty": 2.0},
    "encoder-unigrams": {"encoder_no_repeat_ngram_size": 1},
    "bad-words": {
        "bad_words_ids": [[7], [9, 12], [2], [30, 31, 32], *([t] for t in range(20, 30))]
    },
    "bias": {"sequence_bias": [[[7], 3.0], [[9], -4.0], [[7, 8], 9.0], [[8, 10], 9.5]]},
    "suppress": {"suppress_tokens": list(range(3, 20))},
    "begin-suppress": {"begin_suppress_tokens": list(range(3, 40))},
    "forced-first": {"forced_bos_token_id": 12},
    "forced-first-begin": {"forced_bos_token_id": 12, "begin_suppress_tokens": list(range(3, 40))},
    "forced-last": {"forced_eos_token_id": 6},
    "forced-lasts": {"forced_eos_token_id": [6, END]},
    "decay": {"exponential_decay_length_penalty": (2, 1.4), "eos_token_id": [2, 5]},
    "finite": {"remove_invalid_values": True, "suppress_tokens": [3, 4]},
    "renormalized": {"renormalize_logits": True},
    "together": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[7], [9, 12]],
        "min_new_tokens": 3,
        "suppress_tokens": [4, 40],
        "eos_token_id": ENDS,
        "renormalize_logits": True,
    },
    "ignored-without-sampling": {"temperature": 0.5, "top_k": 2, "top_p": 0.1},
}
BEAMS: dict[str, dict[str, Any]] = {
    f"{beams}-beams-{stopping}-{penalty}": {
        "num_beams": beams,
        "early_stopping": stopping,
        "length_penalty": penalty,
        "eos_token_id": ENDS if (beams + int(penalty)) % 2 else [2, 5],
    }
    for beams in (2, 4)
    for stopping in (False, True, "never")
    for penalty in (1.0, 0.0, 2.0, -1.5)
}
BEAMS |= {
    "3-of-5": {"num_beams": 5, "num_return_sequences": 3, "eos_token_id": ENDS},
    "all-of-3": {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True},
    "no-end": {"num_beams": 3, "eos_token_id": None},
    "one-token": {"num_beams": 3, "max_new_tokens": 1},
    "room-for-one": {"num_beams": 3, "max_new_tokens": None, "max_length": max(LENGTHS) + 1},
    "long": {"num_beams": 3, "max_new_tokens": 40, "eos_token_id": [2, 5]},
    "pad": {"num_beams": 3, "pad_token_id": 9, "eos_token_id": ENDS},
    "no-pad": {"num_beams": 3, "pad_token_id": None, "eos_token_id": ENDS},
    "min-length": {"num_beams": 3, "min_length": 12, "eos_token_id": ENDS},
    "repetition": {"num_beams": 3, "repetition_penalty": 1.7, "eos_token_id": [2, 5]},
    "bigrams": {"num_beams": 4, "no_repeat_ngram_size": 2, "eos_token_id": [2, 5]},
    "encoder": {
        "num_beams": 2,
        "encoder_no_repeat_ngram_size": 1,
        "encoder_repetition_penalty": 1.2,
        "eos_token_id": ENDS,
    },
    "forced": {"num_beams": 3, "forced_bos_token_id": 12, "forced_eos_token_id": 2},
    "renormalized": {
        "num_beams": 3,
        "suppress_tokens": list(range(3, 20)),
        "renormalize_logits": True,
        "eos_token_id": ENDS,
    },
    "bad-words": {"num_beams": 3, "bad_words_ids": [[7], [9, 12]], "eos_token_id": ENDS},
    "decay": {
        "num_beams": 3,
        "exponential_decay_length_penalty": (2, 1.4),
        "eos_token_id": [2, 5],
    },
    "summary": {  # as bart-large-cnn has it
        "num_beams": 4,
        "length_penalty": 2.0,
        "min_length": 8,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
    },
}


def decoder_of(name: str, tokens: Any, mask: Any) -> Any:
    return CausalDecoder(name) if name in CAUSAL else Seq2SeqDecoder(name, tokens, mask)


def written(name: str, tokens: Any, mask: Any, decoder: Any, settings: dict[str, Any]) -> Any:
    chosen = settings_from_config({**base_config(name), **settings})
    if name in CAUSAL:
        start, shown = tokens, mask
    else:
        start, shown = start_tokens(chosen, len(tokens)), None
    return generate(
        decoder, start, chosen, attention_mask=shown, source=tokens, positions=POSITIONS
    )


def check(name: str, settings: dict[str, Any], lengths: list[int], seed: int = 0) -> Any:
    """Compare the two; gives the decoder, to see what it ran."""
    settings = {"max_new_tokens": 12, **settings}
    tokens, mask = prompts(name, seed, lengths)
    decoder = decoder_of(name, tokens, mask)
    found = written(name, tokens, mask, decoder, settings)
    np.testing.assert_array_equal(found, reference(name, tokens, mask, **settings))
    return decoder


@pytest.mark.parametrize("settings", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("name", MODELS)
def test_one_token_after_the_other(name: str, settings: dict[str, Any]) -> None:
    check(name, settings, LENGTHS)
    check(name, settings, [6])


@pytest.mark.parametrize("settings", BEAMS.values(), ids=BEAMS)
@pytest.mark.parametrize("name", MODELS)
def test_beams(name: str, settings: dict[str, Any]) -> None:
    check(name, settings, LENGTHS)
    check(name, settings, [1])


@pytest.mark.parametrize("name", CAUSAL)
def test_the_default_length_ends_with_the_positions(name: str) -> None:
    decoder = check(name, {"max_new_tokens": None, "eos_token_id": None}, [POSITIONS - 7])
    assert len(decoder.rows) == 7


def any_settings(random: Random) -> dict[str, Any]:
    """Several settings together; no forced tokens, which make scores equal."""

    def tokens(count: int) -> list[int]:
        return random.sample(range(3, VOCABULARY), count)

    beams = random.choice([1, 2, 3, 6])
    several: dict[str, Any] = {
        "num_beams": beams,
        "early_stopping": random.choice([True, False, "never"]) if beams > 1 else False,
        "length_penalty": random.choice([0.0, -1.0, 1.0, 2.5]) if beams > 1 else 1.0,
        "num_return_sequences": random.randint(1, beams) if beams > 1 else 1,
    }
    rules: dict[str, Any] = {
        "eos_token_id": tokens(random.choice([2, 6])),
        "repetition_penalty": random.choice([0.7, 1.3]),
        "encoder_repetition_penalty": random.choice([0.8, 1.3]),
        "no_repeat_ngram_size": random.choice([1, 2, 3]),
        "encoder_no_repeat_ngram_size": 2,
        "bad_words_ids": [tokens(random.choice([1, 2])) for _ in range(5)],
        "sequence_bias": [[tokens(random.choice([1, 2])), random.uniform(-9, 9)]],
        "min_new_tokens": random.randint(1, 9),
        "suppress_tokens": tokens(6),
        "begin_suppress_tokens": tokens(6),
        "renormalize_logits": True,
        "pad_token_id": random.choice([None, 9]),
    }
    chosen = random.sample(sorted(rules), random.randint(1, 6))
    return several | {name: rules[name] for name in chosen}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", MODELS)
def test_any_settings_together(name: str, seed: int) -> None:
    random = Random(seed)
    lengths = [random.randint(1, 12) for _ in range(random.choice([1, 3]))]
    check(name, any_settings(random), lengths, seed)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_rows_that_have_ended_leave_the_batch(name: str, beams: int) -> None:
    settings = {"num_beams": beams, "early_stopping": beams > 1, "eos_token_id": ENDS}
    decoder = check(name, settings | {"max_new_tokens": 30}, [5, 9, 1, 7, 3, 8])
    prompt_rows, *rows = decoder.rows
    assert prompt_rows == 6, "the prompt runs once for all beams"
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 6 * beams


def test_no_room_for_a_token() -> None:
    tokens, mask = prompts("gpt2", 0, [5])
    for settings in ({"max_length": 5}, {"max_length": 3}):
        with pytest.raises(BadInput, match="the prompt has 5 tokens") as error:
            written("gpt2", tokens, mask, CausalDecoder("gpt2"), settings)
        assert "max_new_tokens" in error.value.fix


def test_padding_stands_before_the_tokens() -> None:
    tokens, mask = prompts("gpt2", 0, [5, 3])
    for wrong in (mask[:, ::-1], np.zeros_like(mask), np.array([[1, 0, 1, 1, 1]] * 2)):
        with pytest.raises(BadInput, match="padding after its tokens"):
            written("gpt2", tokens, wrong, CausalDecoder("gpt2"), {})
    with pytest.raises(BadInput, match="the mask has the shape"):
        written("gpt2", tokens, mask[:, 1:], CausalDecoder("gpt2"), {})
    with pytest.raises(BadInput, match="a prompt has the shape"):
        written("gpt2", tokens[:, :0], mask[:, :0], CausalDecoder("gpt2"), {})


@pytest.mark.parametrize("beams", [1, 2])
def test_what_leaves_no_token_is_refused(beams: int) -> None:
    tokens, mask = prompts("gpt2", 0, [5])
    none = {"suppress_tokens": list(range(VOCABULARY)), "num_beams": beams}
    with pytest.raises(UsageError, match="forbids every token"):
        written("gpt2", tokens, mask, CausalDecoder("gpt2"), none)
    for field in ({"forced_bos_token_id": 99}, {"bad_words_ids": [[3], [4, 99]]}):
        with pytest.raises(UsageError, match="has the token 99, and the model has 48"):
            written("gpt2", tokens, mask, CausalDecoder("gpt2"), {**field, "num_beams": beams})


def test_source_settings_need_a_source() -> None:
    tokens, _ = prompts("gpt2", 0, [5])
    for field in ({"encoder_repetition_penalty": 2.0}, {"encoder_no_repeat_ngram_size": 2}):
        with pytest.raises(UsageError, match="compares with the tokens of the source"):
            generate(CausalDecoder("gpt2"), tokens, settings_from_config(field))


@pytest.mark.parametrize("beams", [1, 2])
def test_scores_that_are_not_numbers_are_refused(beams: int) -> None:
    class Broken(CausalDecoder):
        def step(self, *arguments: Any) -> Any:
            logits, cache = super().step(*arguments)
            logits[1, 3] = np.nan
            return logits, cache

    tokens, mask = prompts("gpt2", 0, [5, 3])
    with pytest.raises(CheckFailed, match="not finite numbers") as error:
        written("gpt2", tokens, mask, Broken("gpt2"), {"num_beams": beams})
    assert error.value.where == "row 1"
    found = written("gpt2", tokens, mask, Broken("gpt2"), {"remove_invalid_values": True})
    assert found.shape == (2, 25)
