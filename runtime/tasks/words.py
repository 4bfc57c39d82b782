"""Tokens → words → entities: the spans of a text that share a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfc.runtime.tasks.scores import Floats

if TYPE_CHECKING:
    from tokenizers import Encoding

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Span:
    """A part of the text, in characters, with its label and how sure it is."""

    label: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Word:
    """The tokens of one word, and the places of all tokens of its text."""

    tokens: list[int]
    offsets: Offsets


@dataclass(frozen=True)
class Words:
    """How the tokens of a tokenizer make words, as transformers' pipeline tells it.

    Where tokens that go on with a word have a prefix, such a token is longer than the text that
    it stands for. Elsewhere a token goes on with a word unless a space stands before it. A token
    for what is not in the vocabulary is a word.

    Attributes:
        prefix: what tokens inside a word begin with; empty where the tokenizer has no such thing.
        unknown: the id of the token for what is not in the vocabulary.
    """

    prefix: str
    unknown: int | None

    def of(self, row: Encoding, text: str) -> list[Word]:
        """The words of a row, special tokens left out."""
        words: list[Word] = []
        ids, tokens, offsets = row.ids, row.tokens, row.offsets
        for place, special in enumerate(row.special_tokens_mask):
            if special:
                continue
            inside = ids[place] != self.unknown and self._inside(
                tokens[place], offsets[place], text
            )
            if words and inside:
                words[-1].tokens.append(place)
            else:
                words.append(Word([place], offsets))
        return words

    def _inside(self, token: str, place: tuple[int, int], text: str) -> bool:
        start, end = place
        if self.prefix:
            return len(token) != len(text[start:end])
        return start > 0 and " " not in text[start - 1 : start + 1]


def merged_words(
    words: Sequence[Word], probabilities: Floats, labels: Sequence[str], how: str
) -> list[Span]:
    """A span per word: labelled by its ``first`` token, by ``average``, or by its ``max``."""
    spans = []
    for word in words:
        rows = probabilities[word.tokens]
        if how == "first":
            values = rows[0]
        elif how == "max":
            values = rows[rows.max(axis=-1).argmax()]
        else:
            values = rows.mean(axis=0)
        spans.append(labelled(word.tokens, values, labels, word.offsets))
    return spans


def labelled(
    tokens: Sequence[int], values: Floats, labels: Sequence[str], offsets: Offsets
) -> Span:
    """The span of neighbouring tokens, with the likeliest label."""
    best = int(values.argmax())
    return Span(labels[best], float(values[best]), offsets[tokens[0]][0], offsets[tokens[-1]][1])


def grouped(spans: Sequence[Span]) -> list[Span]:
    """Neighbours of one label as one span, up to the next ``B-``; its score is their mean."""
    runs: list[list[Span]] = []
    current = ""
    for span in spans:
        begins, label = tag_of(span.label)
        if begins or not runs or label != current:
            runs.append([])
        runs[-1].append(span)
        current = label
    return [_joined(run) for run in runs]


def tag_of(label: str) -> tuple[bool, str]:
    """(whether it begins an entity, the entity's label) of an IOB label or a bare one."""
    if label.startswith("B-"):
        return True, label[2:]
    return False, label.removeprefix("I-")


def _joined(run: Sequence[Span]) -> Span:
    score = float(np.mean([span.score for span in run]))
    return Span(tag_of(run[0].label)[1], score, run[0].start, run[-1].end)
