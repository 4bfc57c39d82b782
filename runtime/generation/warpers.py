"""What sampling draws from: the temperature, and the unlikely tokens that are cut off.

Called as the constraints are (`tfc.runtime.generation.constraints`). `keep` is the number of
tokens that stay whatever the cut; what is cut off has the score -inf. The rules are those of
transformers' logits warpers of the same names.
"""

from __future__ import annotations

import numpy as np

from tfc.runtime.generation.constraints import MINUS_INFINITY
from tfc.runtime.generation.numerics import (
    Array,
    Floats,
    Integers,
    kth_largest,
    largest,
    log_softmax,
    running_sum,
    softmax,
)


def temperature(tokens: Integers, scores: Floats, rows: Integers, *, temperature: float) -> Floats:
    """Divides the scores: below 1 the likely tokens become likelier."""
    found: Floats = scores / np.float32(temperature)
    return found


def top_k(tokens: Integers, scores: Floats, rows: Integers, *, k: int, keep: int) -> Floats:
    """Keeps the `k` likeliest tokens, and those as likely as the last of them."""
    return _cut(scores, scores < kth_largest(scores, max(k, keep)))


def top_p(tokens: Integers, scores: Floats, rows: Integers, *, p: float, keep: int) -> Floats:
    """Keeps the fewest likeliest tokens whose probabilities sum to `p`.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration (nucleus sampling).
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    rising = np.take_along_axis(scores, order, axis=-1)
    removed = running_sum(softmax(rising)) <= np.float32(1 - p)
    removed[:, -keep:] = False
    return _cut(scores, _in_place(removed, order))


def min_p(tokens: Integers, scores: Floats, rows: Integers, *, p: float, keep: int) -> Floats:
    """Keeps the tokens at least `p` times as likely as the likeliest."""
    likely = softmax(scores)
    removed = likely < np.float32(p) * likely.max(axis=-1, keepdims=True)
    best = largest(likely, min(keep, scores.shape[-1]))
    np.put_along_axis(removed, best, False, axis=-1)
    return _cut(scores, removed)


def typical(tokens: Integers, scores: Floats, rows: Integers, *, p: float, keep: int) -> Floats:
    """Keeps the tokens whose information is nearest to the entropy, up to the mass `p`.

    Source: Meister et al., Locally Typical Sampling.
    """
    logs = log_softmax(scores)
    distance = np.abs(-logs - _entropy(logs))
    order = np.argsort(distance, axis=-1, kind="stable")
    sums = running_sum(softmax(np.take_along_axis(scores, order, axis=-1)))
    last = np.minimum((sums < np.float32(p)).sum(axis=-1), scores.shape[-1] - 1)
    sorted_distance = np.take_along_axis(distance, order, axis=-1)
    removed = sorted_distance > np.take_along_axis(sorted_distance, last[:, None], axis=-1)
    removed[:, :keep] = False
    return _cut(scores, _in_place(removed, order))


def epsilon_cutoff(
    tokens: Integers, scores: Floats, rows: Integers, *, epsilon: float, keep: int
) -> Floats:
    """Keeps the tokens with a probability of at least `epsilon`.

    Source: Hewitt et al., Truncation Sampling as Language Model Desmoothing.
    """
    return _cut_unlikely(scores, np.full((1, 1), epsilon, np.float32), keep)


def eta_cutoff(
    tokens: Integers, scores: Floats, rows: Integers, *, epsilon: float, keep: int
) -> Floats:
    """Like `epsilon_cutoff`, with a lower bound √epsilon · exp(-entropy) where the model is unsure.

    Source: Hewitt et al., Truncation Sampling as Language Model Desmoothing.
    """
    unsure = np.sqrt(np.float32(epsilon)) * np.exp(-_entropy(log_softmax(scores)))
    return _cut_unlikely(scores, np.minimum(np.float32(epsilon), unsure), keep)


def normalised(tokens: Integers, scores: Floats, rows: Integers) -> Floats:
    """The scores as log-probabilities that sum to 1."""
    return log_softmax(scores)


def _cut_unlikely(scores: Floats, bound: Array, keep: int) -> Floats:
    unlikely = softmax(scores) < bound
    return _cut(scores, unlikely & (scores < kth_largest(scores, keep)))


def _entropy(logs: Floats) -> Floats:
    """Σ -p · log p of each row, of log-probabilities: `[rows, 1]`; p = 0 adds nothing."""
    finite = np.where(np.isneginf(logs), np.float32(0), logs)
    found: Floats = -(finite * np.exp(logs)).sum(axis=-1, keepdims=True)
    return found


def _in_place(removed: Array, order: Integers) -> Array:
    """Flags of sorted tokens, back in the order of the vocabulary."""
    found = np.empty_like(removed)
    np.put_along_axis(found, order, removed, axis=-1)
    return found


def _cut(scores: Floats, removed: Array) -> Floats:
    return np.where(removed, MINUS_INFINITY, scores)
