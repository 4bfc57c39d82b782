"""`vocabulary.json`: which tokens of the checkpoint an artifact kept, and under which ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tfc.artifact import VOCABULARY, Artifact
from tfc.errors import BadArtifact

Ids = npt.NDArray[np.int64]
# Outputs with the vocabulary as their last axis, and the tasks whose graphs give them.
VOCABULARY_OUTPUT = "logits"
_WITH_OUTPUT = frozenset(
    ("fill-mask", "text-generation", "text2text-generation", "automatic-speech-recognition")
)


@dataclass(frozen=True)
class Vocabulary:
    """A trimmed vocabulary: token i was token `kept[i]` of `size` before."""

    size: int
    kept: list[int]

    @cached_property
    def old(self) -> Ids:
        """`[tokens]`: the old id of each token."""
        return np.array(self.kept, np.int64)

    @cached_property
    def new_ids(self) -> dict[int, int]:
        """Old id → new id."""
        return {old: new for new, old in enumerate(self.kept)}

    def to_json(self) -> str:
        """The text of `vocabulary.json`."""
        return json.dumps({"size": self.size, "kept": self.kept}) + "\n"


def vocabulary_of(artifact: Artifact) -> Vocabulary | None:
    """The trimmed vocabulary of an artifact; None where it has the whole one.

    Raises:
        BadArtifact: the file is damaged.
    """
    if VOCABULARY not in artifact.manifest.files:
        return None
    path = artifact.file(VOCABULARY)
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise BadArtifact(
            "the file is not a list of tokens that were kept",
            where=str(path),
            fix="Export the checkpoint again with: tfc export --overwrite",
        ) from error


def vocabulary_outputs(task: str) -> tuple[str, ...]:
    """The outputs of a task's graphs that have the vocabulary as their last axis."""
    return (VOCABULARY_OUTPUT,) if task in _WITH_OUTPUT else ()


def _checked(found: dict[str, object]) -> Vocabulary:
    size, kept = found["size"], found["kept"]
    if set(found) != {"size", "kept"} or type(size) is not int or not isinstance(kept, list):
        raise ValueError("fields")
    in_order = all(type(i) is int for i in kept) and kept == sorted(set(kept))
    if not kept or not in_order or kept[0] < 0 or kept[-1] >= size:
        raise ValueError("ids")
    return Vocabulary(size, kept)
