"""The likeliest spans of a context: from where it starts and where it ends to characters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfc.runtime.tasks.scores import Floats, softmax

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass(frozen=True)
class Span:
    """The tokens `start` to `end`, both in it, and their probability."""

    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Candidates:
    """The probabilities that an answer starts and ends at each token of a row.

    `allowed` is true for the tokens of the context, which alone may be in an answer; `impossible`
    is the probability that there is none, which models give to the row's first token.
    """

    start: Floats
    end: Floats
    allowed: npt.NDArray[np.bool_]
    impossible: float


def candidates_of(
    outputs: Mapping[str, npt.NDArray[Any]], row: Encoding, *, context_first: bool
) -> Candidates:
    """Probabilities over the context, and the first token of the row where it is special."""
    allowed = _context(row, context_first)
    competing = allowed.copy()
    if row.special_tokens_mask[0]:
        competing |= np.array(row.ids) == row.ids[0]
    start = _softmax_among(outputs["start_logits"], competing)
    end = _softmax_among(outputs["end_logits"], competing)
    return Candidates(start, end, allowed, float(start[0] * end[0]))


def best_spans(candidates: Candidates, count: int, longest: int) -> list[Span]:
    """Up to `count` spans of at most `longest` tokens, the likeliest first."""
    tokens = len(candidates.start)
    reach = min(longest, tokens)
    start = np.where(candidates.allowed, candidates.start, -1.0)
    end = np.where(candidates.allowed, candidates.end, -1.0)
    # scores[s, n]: the span of n + 1 tokens from token s; -1 where it is none.
    padded = np.concatenate([end, np.full(reach - 1, -1.0)])
    ends = np.lib.stride_tricks.sliding_window_view(padded, reach)
    scores = np.where((start[:, None] >= 0) & (ends >= 0), start[:, None] * ends, -1.0).ravel()
    count = min(count, len(scores))
    kept = np.argpartition(-scores, count - 1)[:count]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return [
        Span(int(place // reach), int(place // reach + place % reach), float(scores[place]))
        for place in kept
        if scores[place] >= 0
    ]


def characters_of(
    row: Encoding, span: Span, allowed: npt.NDArray[np.bool_], *, whole_words: bool
) -> tuple[int, int]:
    """Where a span stands in the context, widened to whole words where the tokenizer knows them."""
    first, last, words = span.start, span.end, row.word_ids
    if whole_words and words[first] is not None and words[last] is not None:
        while first > 0 and allowed[first - 1] and words[first - 1] == words[first]:
            first -= 1
        while last + 1 < len(words) and allowed[last + 1] and words[last + 1] == words[last]:
            last += 1
    return row.offsets[first][0], row.offsets[last][1]


def _context(row: Encoding, context_first: bool) -> npt.NDArray[np.bool_]:
    """The tokens of the context. Of a row that `join` made only the second text's id is sure."""
    second = np.array([text == 1 for text in row.sequence_ids])
    special = np.array(row.special_tokens_mask, np.bool_)
    return ~second & ~special if context_first else second


def _softmax_among(logits: npt.NDArray[Any], competing: npt.NDArray[np.bool_]) -> Floats:
    """Probabilities of those that compete; 0 for the others."""
    found = np.zeros(len(logits), np.float64)
    if competing.any():
        found[competing] = softmax(logits[competing])
    return found
