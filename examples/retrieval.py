"""Nearest texts by embeddings, their order by a model of pairs, and what an order is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfc.runtime import Session

DEPTH = 10
Ranking = Sequence[str]  # ids of documents, the best first
Worth = Mapping[str, float]  # of each document that is worth anything, found or not


def nearest(session: Session, queries: Sequence[str], texts: Mapping[str, str]) -> list[Ranking]:
    """The ids of the ten texts nearest to each query; embeddings have length 1."""
    found = np.stack([each["embedding"] for each in session.predict([*queries, *texts.values()])])
    cosines = found[: len(queries)] @ found[len(queries) :].T
    ids = list(texts)
    return [[ids[place] for place in places[:DEPTH]] for places in np.argsort(-cosines, axis=1)]


def pairs(
    queries: Sequence[Mapping[str, Any]], rankings: Sequence[Ranking], texts: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row for each query and each text found for it, with what the text is worth."""
    return [
        {
            "text": query["text"],
            "text_pair": texts[each],
            "id": each,
            "relevance": query["relevant"].get(each, 0),
        }
        for query, ranked in zip(queries, rankings, strict=True)
        for each in ranked
    ]


def reranked(rows: Sequence[Mapping[str, Any]]) -> list[Ranking]:
    """The ids of pairs with their predictions, by score for each query, in the queries' order."""
    queries: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        queries.setdefault(row["text"], []).append(row)
    return [
        [row["id"] for row in sorted(each, key=lambda row: -row["prediction"]["score"])]
        for each in queries.values()
    ]


def ndcg(ranked: Ranking, worth: Worth) -> float:
    """Of one query: gains of the first ten, discounted by place, as a share of the best order's.

    Source: Järvelin and Kekäläinen, 2002, with the worth itself as the gain.
    """
    gains = [worth.get(document, 0) for document in ranked[:DEPTH]]
    return _discounted(gains) / _discounted(sorted(worth.values(), reverse=True)[:DEPTH])


def reciprocal_rank(ranked: Ranking, worth: Worth) -> float:
    """Of one query: 1 / the place of the first document that is worth the most; 0 if not found."""
    most = max(worth.values())
    hits = (1 / place for place, each in enumerate(ranked, 1) if worth.get(each) == most)
    return next(hits, 0.0)


def summary(name: str, rankings: Sequence[Ranking], worths: Sequence[Worth]) -> str:
    """One line: the means over all queries."""
    pairs = list(zip(rankings, worths, strict=True))
    gain = sum(ndcg(*pair) for pair in pairs) / len(pairs)
    first = sum(reciprocal_rank(*pair) for pair in pairs) / len(pairs)
    return f"{name:12} nDCG@10 {gain:.3f}  MRR {first:.3f}  ({len(pairs)} queries)"


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, 1))
