"""What a search needs beside its models: the nearest texts, orders, and what an order is worth."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfc.runtime import Session

DEPTH = 10
Row = dict[str, Any]
Found = dict[str, float]  # the cosine of each text by its id, the nearest first
Worth = Mapping[str, float]  # of each text that is worth anything to a query, found or not


def nearest(artifact: Path, queries: Sequence[Row], texts: Mapping[str, str]) -> dict[str, Found]:
    """How near each text is to each query, by an artifact whose embeddings have length 1."""
    read = [query["text"] for query in queries]
    with Session.load(str(artifact)) as session:
        vectors = np.stack([one["embedding"] for one in session.predict([*read, *texts.values()])])
    found = {}
    for query, cosines in zip(read, vectors[: len(read)] @ vectors[len(read) :].T, strict=True):
        near = zip(texts, map(float, cosines), strict=True)
        found[query] = dict(sorted(near, key=lambda pair: pair[1], reverse=True))
    return found


def contrast(query: Row, near: Mapping[str, Found], wrong: int) -> list[tuple[str, float]]:
    """The right text of a query, then some of the nearest wrong ones, all with their cosines."""
    found, worth = near[query["text"]], query["relevant"]
    others = [each for each in found if each not in worth][:DEPTH]
    shown = [max(worth, key=worth.__getitem__), *random.sample(others, wrong)]
    return [(each, found[each]) for each in shown]


def candidates(
    queries: Sequence[Row], near: Mapping[str, Found], texts: Mapping[str, str]
) -> list[Row]:
    """A row for each query and each of the texts nearest to it, with what the text is worth."""
    return [
        {
            "text": query["text"],
            "text_pair": texts[each],
            "id": each,
            "cosine": cosine,
            "relevance": query["relevant"].get(each, 0),
        }
        for query in queries
        for each, cosine in list(near[query["text"]].items())[:DEPTH]
    ]


def ordered(rows: Sequence[Row], score: Callable[[Row], float]) -> dict[str, list[str]]:
    """The ids of each query's candidates, the highest score first."""
    queries: dict[str, list[Row]] = {}
    for row in rows:
        queries.setdefault(row["text"], []).append(row)
    return {
        query: [row["id"] for row in sorted(each, key=score, reverse=True)]
        for query, each in queries.items()
    }


def ndcg(ranked: Sequence[str], worth: Worth) -> float:
    """Of one query: gains of the first ten, discounted by place, as a share of the best order's.

    Source: Järvelin and Kekäläinen, 2002, with the worth itself as the gain.
    """
    gains = [worth.get(each, 0) for each in ranked[:DEPTH]]
    return _discounted(gains) / _discounted(sorted(worth.values(), reverse=True)[:DEPTH])


def reciprocal_rank(ranked: Sequence[str], worth: Worth) -> float:
    """Of one query: 1 / the place of the first text that is worth the most; 0 if not found."""
    most = max(worth.values())
    hits = (1 / place for place, each in enumerate(ranked, 1) if worth.get(each) == most)
    return next(hits, 0.0)


def summary(name: str, rankings: Mapping[str, Sequence[str]], queries: Sequence[Row]) -> str:
    """One line: the means over all queries."""
    pairs = [(rankings[query["text"]], query["relevant"]) for query in queries]
    gain = sum(ndcg(*pair) for pair in pairs) / len(pairs)
    first = sum(reciprocal_rank(*pair) for pair in pairs) / len(pairs)
    return f"{name:12} nDCG@10 {gain:.3f}  MRR {first:.3f}  ({len(pairs)} queries)"


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, 1))
