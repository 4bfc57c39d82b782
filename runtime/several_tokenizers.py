"""Texts for a graph of several models that do not share a tokenizer: each tokenizes every text.

All rows of a batch have one width, that of the longest row of any tokenizer; the masks say which
places are padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.manifest import Preprocess
from tfc.runtime.padding import input_name
from tfc.runtime.tokenization import Ints, Text, TextEncoder


@dataclass(frozen=True)
class SeveralEncodings:
    """A text as each tokenizer gives it; as long as the longest of them."""

    encodings: tuple[Any, ...]

    def __len__(self) -> int:
        return max(map(len, self.encodings))

    @property
    def overflowing(self) -> list[Any]:
        """What was cut off, by any tokenizer."""
        return [piece for encoding in self.encodings for piece in encoding.overflowing]


class SeveralTextEncoders(TextEncoder):
    """The first tokenizer, and others beside it.

    Its rows are `SeveralEncodings`, and `pad` gives the inputs of all: those of the n-th other
    tokenizer have names that end in `_<n + 2>`.

    Args:
        path: the first tokenizer.
        preprocess: its limits.
        input_names: the inputs that it gives.
        others: the other tokenizers.
    """

    def __init__(
        self,
        path: Path,
        preprocess: Preprocess,
        input_names: Sequence[str],
        others: Sequence[TextEncoder],
    ) -> None:
        super().__init__(path, preprocess, input_names)
        self._others = tuple(others)

    @property
    def limits(self) -> tuple[Preprocess, ...]:
        """Those of the first tokenizer, and of the others."""
        return (self.preprocess, *(other.preprocess for other in self._others))

    def each(self, encoding: Any) -> tuple[Any, ...]:
        """What each tokenizer gave for a text."""
        found: tuple[Any, ...] = encoding.encodings
        return found

    def encode(self, texts: Sequence[Text]) -> list[Any]:
        """Each text's tokens, of every tokenizer."""
        found = [super().encode(texts), *(other.encode(texts) for other in self._others)]
        return [SeveralEncodings(encodings) for encodings in zip(*found, strict=True)]

    def pad(self, encodings: Sequence[Any], width: int | None = None) -> dict[str, Ints]:
        """The graph's inputs, all `[batch, seq]`, as wide as the longest row."""
        width = max(map(len, encodings)) if width is None else width
        own, *rest = zip(*(each.encodings for each in encodings), strict=True)
        arrays = super().pad(own, width)
        for number, (other, rows) in enumerate(zip(self._others, rest, strict=True), start=1):
            padded = other.pad(rows, width)
            arrays |= {input_name(name, number): array for name, array in padded.items()}
        return arrays
