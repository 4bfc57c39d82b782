"""What the next token may not be, must be, or is made more or less likely to be.

Each is called with

- `tokens` `[sequences, length]`: what stands so far, the prompt and its padding included;
- `scores` `[sequences, vocabulary]` float32: logits, or log-probabilities in beam search;
- `rows` `[sequences]`: the row of the prompt that each sequence goes on from;

and gives new scores. The rules are those of transformers' logits processors of the same names;
`tfc.runtime.generation.processors` has their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfc.runtime.generation.numerics import Array, Floats, Integers

MINUS_INFINITY = np.float32(-np.inf)


def sequence_bias(
    tokens: Integers,
    scores: Floats,
    rows: Integers,
    *,
    biases: Sequence[tuple[tuple[int, ...], float]],
) -> Floats:
    """Adds its bias to the last token of each sequence whose other tokens stand at the end."""
    total = np.zeros_like(scores)
    for (*start, last), bias in biases:
        if len(start) > tokens.shape[1]:
            continue
        complete = (tokens[:, tokens.shape[1] - len(start) :] == np.array(start, int)).all(1)
        total[complete, last] += np.float32(bias)
    found: Floats = scores + total
    return found


def repetition_penalty(
    tokens: Integers, scores: Floats, rows: Integers, *, penalty: float, padding: Integers
) -> Floats:
    """Makes tokens that stand already less likely: divides a positive score, multiplies others.

    `padding` `[rows]` is how many tokens at each row's start are padding, which do not count.
    """
    own = np.arange(tokens.shape[1]) >= padding[rows, None]
    return _penalised(scores, _present(tokens, own, scores.shape[1]), penalty)


def encoder_repetition_penalty(
    tokens: Integers, scores: Floats, rows: Integers, *, penalty: float, source: Integers
) -> Floats:
    """Makes tokens of the source text, `[rows, source length]`, more likely; below 1 less."""
    text = source[rows]
    present = _present(text, np.ones_like(text, bool), scores.shape[1])
    return _penalised(scores, present, 1 / penalty)


def _present(tokens: Integers, counts: Array, vocabulary: int) -> Array:
    """Which tokens of the vocabulary stand where `counts` says: `[sequences, vocabulary]`.

    A model may read tokens that it cannot write; they go to a spare column.
    """
    places = np.where(counts, np.minimum(tokens, vocabulary), vocabulary)
    found = np.zeros((len(tokens), vocabulary + 1), bool)
    np.put_along_axis(found, places, True, axis=1)
    return found[:, :vocabulary]


def _penalised(scores: Floats, present: Array, penalty: float) -> Floats:
    lower = np.where(scores < 0, scores * penalty, scores / penalty)
    return np.where(present, lower, scores)


def no_repeated_ngram(tokens: Integers, scores: Floats, rows: Integers, *, size: int) -> Floats:
    """Forbids the token that would end an n-gram which stands already."""
    return _without_completions(tokens, tokens, size, scores)


def no_encoder_ngram(
    tokens: Integers, scores: Floats, rows: Integers, *, size: int, source: Integers
) -> Floats:
    """Forbids the token that would end an n-gram of the source text, `[rows, source length]`."""
    return _without_completions(tokens, source[rows], size, scores)


def _without_completions(tokens: Integers, text: Integers, size: int, scores: Floats) -> Floats:
    length = tokens.shape[1]
    if length < size - 1 or text.shape[1] < size:
        return scores
    ending = tokens[:, None, length - (size - 1) :]
    ngrams = np.lib.stride_tricks.sliding_window_view(text, size, axis=1)
    begun = (ngrams[..., :-1] == ending).all(axis=-1)
    banned = _present(ngrams[..., -1], begun, scores.shape[1])
    return np.where(banned, MINUS_INFINITY, scores)


def min_length(
    tokens: Integers, scores: Floats, rows: Integers, *, length: int, ends: Sequence[int]
) -> Floats:
    """Forbids the end tokens until `length` tokens stand."""
    return _without(scores, ends) if tokens.shape[1] < length else scores


def forced_at(
    tokens: Integers, scores: Floats, rows: Integers, *, length: int, only: Sequence[int]
) -> Floats:
    """Leaves only the given tokens, each with score 0, when `length` tokens stand."""
    if tokens.shape[1] != length:
        return scores
    found = np.full_like(scores, MINUS_INFINITY)
    found[:, list(only)] = 0
    return found


def suppressed_at(
    tokens: Integers,
    scores: Floats,
    rows: Integers,
    *,
    suppressed: Sequence[int],
    length: int | None,
) -> Floats:
    """Forbids tokens when `length` tokens stand; always where `length` is None."""
    here = length is None or tokens.shape[1] == length
    return _without(scores, suppressed) if here else scores


def length_decay(
    tokens: Integers,
    scores: Floats,
    rows: Integers,
    *,
    start: int,
    factor: float,
    ends: Sequence[int],
) -> Floats:
    """Raises the end tokens by |score| · (factor^n - 1), n tokens after `start` of them stand."""
    late = tokens.shape[1] - start
    if late <= 0:
        return scores
    old = scores[:, list(ends)]
    size = np.where(np.isfinite(old), np.abs(old), 0)
    found: Floats = scores.copy()
    found[:, list(ends)] = old + size * np.float32(np.float64(factor) ** late - 1)
    return found


def only_finite(tokens: Integers, scores: Floats, rows: Integers) -> Floats:
    """NaN becomes 0, and an infinity the largest number of its sign."""
    found: Floats = np.nan_to_num(scores, nan=0.0)
    return found


def _without(scores: Floats, tokens: Sequence[int]) -> Floats:
    """The scores with -inf for `tokens`; those beyond the vocabulary do not matter."""
    found: Floats = scores.copy()
    found[:, [token for token in tokens if token < scores.shape[1]]] = MINUS_INFINITY
    return found
