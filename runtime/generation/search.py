"""Tokens from a model: greedy search, sampling and beam search, as `model.generate` does them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfc.errors import BadInput, UsageError
from tfc.runtime.generation.beams import beam_search
from tfc.runtime.generation.decoder import C, Decoder
from tfc.runtime.generation.numerics import Integers
from tfc.runtime.generation.processors import Prompt
from tfc.runtime.generation.settings import GenerationSettings
from tfc.runtime.generation.single import one_by_one

DEFAULT_NEW_TOKENS = 20  # transformers' own, where neither max_new_tokens nor max_length is given


def generate(
    decoder: Decoder[C],
    input_ids: Integers,
    settings: GenerationSettings,
    *,
    attention_mask: Integers | None = None,
    source: Integers | None = None,
    positions: int | None = None,
    seed: int = 0,
    rows: Sequence[int] | None = None,
) -> Integers:
    """Go on from each row of `input_ids`.

    Args:
        decoder: runs the model.
        input_ids: `[batch, length]`, padded on the left; for an encoder-decoder model what its
            decoder starts with (`start_tokens`).
        settings: how tokens are chosen.
        attention_mask: `[batch, length]`, 0 for padding; left out, nothing is padding.
        source: `[batch, source length]`: the encoder's tokens, or the prompt itself where there
            is no encoder; used by the `encoder_*` settings.
        positions: the model's `max_position_embeddings`, at which the default length ends.
        seed: what samples are drawn with, 0 or more. A row's draws depend on the seed and on
            its number only, not on the rows that run beside it.
        rows: `[batch]`, the rows' numbers; left out, 0, 1, ….

    Returns:
        `[batch * num_return_sequences, total]`: prompts and new tokens, padded on the right.

    Raises:
        BadInput: the prompt leaves no room for a token, or is not padded on the left.
        UsageError: the settings do not fit the model, or leave no token to choose.
        CheckFailed: the model gives values that are not finite numbers.
    """
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise BadInput(
            f"a prompt has the shape {list(input_ids.shape)}", fix="Give [batch, length]"
        )
    mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
    _check_padding(mask, input_ids)
    limit = _limit(settings, input_ids.shape[1], positions)
    padding = (mask != 0).argmax(axis=1)
    prompt = Prompt(input_ids.astype(np.int64), padding, source, limit)
    if seed < 0:
        raise UsageError(f"the seed is {seed}", fix="Give 0 or more")
    numbers = range(len(input_ids)) if rows is None else rows
    if len(numbers) != len(input_ids):
        raise UsageError(
            f"{len(numbers)} row numbers are given for {len(input_ids)} prompts",
            fix="Give one for each",
        )
    if settings.num_beams > 1:
        return beam_search(decoder, prompt, settings, _generators(seed, numbers, 1))
    copies = settings.num_return_sequences
    return one_by_one(decoder, prompt, settings, _generators(seed, numbers, copies))


def start_tokens(settings: GenerationSettings, batch: int) -> Integers:
    """What the decoder of an encoder-decoder model starts with: `[batch, 1]`.

    Raises:
        BadInput: the settings have no `decoder_start_token_id` and no `bos_token_id`.
    """
    start = settings.decoder_start_token_id
    if start is None:
        start = settings.bos_token_id
    if start is None:
        raise BadInput(
            "the generation config names no token to start with",
            fix="Give decoder_start_token_id",
        )
    return np.full((batch, 1), start, np.int64)


def _limit(settings: GenerationSettings, length: int, positions: int | None) -> int:
    """The most tokens of a sequence, prompt included."""
    if settings.max_new_tokens is not None:
        limit = settings.max_new_tokens + length
    elif settings.max_length is not None:
        limit = settings.max_length
    else:
        limit = min(DEFAULT_NEW_TOKENS + length, positions or DEFAULT_NEW_TOKENS + length)
    if length >= limit:
        raise BadInput(
            f"the prompt has {length} tokens, and a sequence may have {limit}",
            fix="Give max_new_tokens, or a shorter prompt",
        )
    return limit


def _check_padding(mask: Integers, input_ids: Integers) -> None:
    if mask.shape != input_ids.shape:
        raise BadInput(
            f"the mask has the shape {list(mask.shape)}, and the prompt {list(input_ids.shape)}",
            fix="Give both as [batch, length]",
        )
    if (np.diff(mask, axis=1) < 0).any() or not mask[:, -1].all():
        raise BadInput("a prompt has padding after its tokens", fix="Pad prompts on the left")


def _generators(seed: int, rows: Sequence[int], copies: int) -> list[np.random.Generator]:
    """One generator for each copy of each row."""
    return [
        np.random.Generator(np.random.PCG64([seed, row, copy]))
        for row in rows
        for copy in range(copies)
    ]
