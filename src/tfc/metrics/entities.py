"""Entity-level precision, recall and F1: an entity is right if its span and its label are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np

from tfc.errors import BadData
from tfc.metrics.base import (
    AnyLabels,
    Found,
    Indices,
    LoneRows,
    UnknownLabel,
    not_a,
    precision_recall_f1,
    report_line,
)
from tfc.runtime.rows import json_type
from tfc.runtime.tasks.words import tag_of

# An entity: where it starts and ends, in characters of the text, and its label without B- or I-.
Entity = tuple[int, int, str]
Entities = frozenset[Entity]


class EntityTally(LoneRows):
    """The entities that rows are labelled with, and those that were found."""

    def __init__(self, golds: Sequence[Entities], found: Sequence[Entities]) -> None:
        self._golds, self._found = golds, found
        self._counts = np.array(
            [_counts(*each) for each in zip(golds, found, strict=True)], np.int64
        )

    def values(self, rows: Indices) -> dict[str, float]:
        """Over all entities of these rows together."""
        right, found, wanted = self._counts[rows].sum(axis=0).tolist()
        precision, recall, f1 = precision_recall_f1(right, found, wanted)
        return {"F1": f1, "precision": precision, "recall": recall}

    def report(self) -> dict[str, dict[str, float]]:
        """Of each label that is wanted or found."""
        labels = {label for each in (*self._golds, *self._found) for _, _, label in each}
        lines = {}
        for label in sorted(labels):
            pairs = [
                (_of(label, gold), _of(label, found))
                for gold, found in zip(self._golds, self._found, strict=True)
            ]
            counts = np.array([_counts(*pair) for pair in pairs]).sum(axis=0)
            lines[label] = report_line(*map(float, counts))
        return lines


class EntityScorer(AnyLabels):
    """A row's label is a list of entities: objects with `start`, `end` and `label`."""

    pair: ClassVar[str | None] = None
    splits: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __init__(self, labels: list[str]) -> None:
        self._known = {tag_of(label)[1] for label in labels}

    def gold(self, value: Any) -> Entities:
        """The row's entities."""
        if not isinstance(value, list):
            raise not_a(value, "a list of entities")
        return frozenset(self._entity(each) for each in value)

    def tally(
        self, golds: Sequence[Entities], found: Sequence[Found], queries: Sequence[Hashable] = ()
    ) -> EntityTally:
        """The entities of the labels beside those found."""
        return EntityTally(golds, [_entities(each) for each in found])

    def answer(self, found: Found) -> list[list[Any]]:
        """The entities that were found, in order."""
        return [list(entity) for entity in sorted(_entities(found))]

    def change(self, gold: Entities, reference: Found, engine: Found) -> float:
        """Of the row's own F1."""
        return _f1(gold, _entities(engine)) - _f1(gold, _entities(reference))

    def _entity(self, value: Any) -> Entity:
        if not isinstance(value, dict):
            raise BadData(f"an entity is {json_type(value)}, not an object")
        start, end, label = (value.get(name) for name in ("start", "end", "label"))
        if type(start) is not int or type(end) is not int or not isinstance(label, str):
            raise BadData("an entity needs start and end, in characters, and a label")
        label = tag_of(label)[1]
        if label not in self._known:
            raise UnknownLabel(label)
        return start, end, label


def _entities(found: Found) -> Entities:
    return frozenset((e["start"], e["end"], e["label"]) for e in found[0]["entities"])


def _of(label: str, entities: Entities) -> Entities:
    return frozenset(entity for entity in entities if entity[2] == label)


def _counts(gold: Entities, found: Entities) -> tuple[int, int, int]:
    """How many are right, found and wanted."""
    return len(gold & found), len(found), len(gold)


def _f1(gold: Entities, found: Entities) -> float:
    """Of one row; 1 where there is nothing to find and nothing was found."""
    return precision_recall_f1(*_counts(gold, found))[2] if gold or found else 1.0
