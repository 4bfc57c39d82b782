"""Exact match and F1 of answers, as SQuAD counts them (Rajpurkar et al., 2016, arXiv:1606.05250).

An answer is compared with each of the row's answers, and the best counts. Before that both are
put in lower case, and punctuation, articles and superfluous white space are left out. F1 is that
of the words that two answers share.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np

from tfc.errors import BadData
from tfc.metrics.base import AnyLabels, Found, Indices, LoneRows, not_a, precision_recall_f1

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerTally(LoneRows):
    """Exact match and F1 of each row."""

    def __init__(self, exact: Sequence[float], f1: Sequence[float]) -> None:
        self._exact, self._f1 = np.asarray(exact), np.asarray(f1)

    def values(self, rows: Indices) -> dict[str, float]:
        """The means."""
        return {"F1": float(self._f1[rows].mean()), "exact match": float(self._exact[rows].mean())}

    def report(self) -> dict[str, dict[str, float]]:
        """Answers have no classes."""
        return {}


class AnswerScorer(AnyLabels):
    """A row's label is a list of answers, one of which is to be found; empty: there is none.

    An object with the answers under ``text``, as in SQuAD's files, is taken as well.
    """

    pair: ClassVar[str | None] = "context"
    splits: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def gold(self, value: Any) -> list[str]:
        """The answers; one that is empty where there is none."""
        texts = value.get("text") if isinstance(value, dict) else value
        if not isinstance(texts, list):
            raise not_a(value, "a list of answers")
        if not all(isinstance(text, str) for text in texts):
            raise BadData("an answer is not a text")
        return texts or [""]

    def tally(
        self, golds: Sequence[list[str]], found: Sequence[Found], queries: Sequence[Hashable] = ()
    ) -> AnswerTally:
        """Each row's best match."""
        pairs = [(gold, self.answer(each)) for gold, each in zip(golds, found, strict=True)]
        exact = [max(exact_match(text, answer) for text in gold) for gold, answer in pairs]
        return AnswerTally(exact, [_best_f1(gold, answer) for gold, answer in pairs])

    def answer(self, found: Found) -> str:
        """The best answer."""
        return str(found[0]["answer"])

    def change(self, gold: list[str], reference: Found, engine: Found) -> float:
        """Of the row's own F1."""
        return _best_f1(gold, self.answer(engine)) - _best_f1(gold, self.answer(reference))


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, with single spaces."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(gold: str, answer: str) -> float:
    """1 if the two are equal when normalized, else 0."""
    return float(normalized(gold) == normalized(answer))


def word_f1(gold: str, answer: str) -> float:
    """F1 of the words of two answers; of an empty one 1 if both are, else 0."""
    wanted, found = normalized(gold).split(), normalized(answer).split()
    if not wanted or not found:
        return float(wanted == found)
    shared = sum((Counter(wanted) & Counter(found)).values())
    return precision_recall_f1(shared, len(found), len(wanted))[2]


def _best_f1(golds: Sequence[str], answer: str) -> float:
    return max(word_f1(gold, answer) for gold in golds)
