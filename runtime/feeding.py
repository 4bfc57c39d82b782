"""Rows → the arrays of a batch → the outputs of each row: the two parts that a model may replace.

A `Feeder` knows the arrays: how long a row is, how many rows fit, what padding is. A `BatchRunner`
knows the graphs: here one of them, called once; for a model that generates a loop over several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfc.manifest import BATCH, SEQUENCE, Signature
from tfc.runtime.backends.base import Profile, Runner
from tfc.runtime.batching import width_of
from tfc.runtime.tokenization import INPUT_IDS, TextEncoder

Array = npt.NDArray[Any]
NO_CUT = slice(None)
# Images are large: 32 of 224 x 224 are 19 MB in, and their activations some hundred.
MOST_MEDIA = 32


@dataclass(frozen=True)
class Feed:
    """A batch: arrays by input name; `places[i]` is where row i stands on the sequence axis.

    There may be more rows in the arrays than places: those only fill the engine's smallest batch.
    `width` is the size of the sequence axis.
    """

    arrays: Mapping[str, Array]
    places: Sequence[slice]
    width: int


class MediaEncoder(Protocol):
    """Files or arrays → the model's own arrays, all of one shape."""

    def encode_one(self, item: object, where: str) -> Array:
        """One item's array; raises BadInput or BadData."""

    def batch(self, arrays: Sequence[Array]) -> dict[str, Array]:
        """The arrays of a batch by input name."""


class Feeder(Protocol):
    """Makes batches of rows.

    Attributes:
        most_rows: the most rows of a batch.
        longest: the longest row.
    """

    most_rows: int
    longest: int

    def length(self, row: Any) -> int:
        """What the row takes of the sequence axis: its tokens."""

    def feed(self, rows: Sequence[Any]) -> Feed:
        """The rows as one batch; at least one, each no longer than `longest`."""


class BatchRunner(Protocol):
    """Runs the model on batches. Called from several threads."""

    def run(self, feed: Feed) -> Sequence[Mapping[str, Array]]:
        """The outputs of each row by name, its padding taken off."""


class TextFeeder:
    """Pads token ids to the longest row, and up to the smallest sizes that the engine takes.

    Args:
        encoder: pads.
        signature: the graph's inputs.
        profile: the sizes that the engine was built for.
        widths: what batches are padded to, in ascending order; empty: each to its longest row.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        signature: Signature,
        profile: Profile,
        widths: Sequence[int] = (),
    ) -> None:
        self._encoder = encoder
        self._widths = tuple(widths)
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in signature.inputs}
        rows, width = next(spec.shape for spec in signature.inputs if spec.name == INPUT_IDS)
        self._least_rows, self.most_rows = profile.of_axis(rows).min, profile.of_axis(rows).max
        self._least_width, self.longest = profile.of_axis(width).min, profile.of_axis(width).max

    def length(self, row: Any) -> int:
        """Its tokens."""
        return len(row)

    def feed(self, rows: Sequence[Any]) -> Feed:
        """The padded inputs; the last row again where the engine's smallest batch is larger."""
        longest = max(self._least_width, *(len(row) for row in rows))
        width = width_of(longest, self._widths)
        filled = [*rows, *[rows[-1]] * (self._least_rows - len(rows))]
        arrays = {
            name: array.astype(self._dtypes[name], copy=False)
            for name, array in self._encoder.pad(filled, width).items()
        }
        return Feed(arrays, [self._encoder.place(len(row), width) for row in rows], width)


class MediaFeeder:
    """Stacks arrays of one shape: images, recordings.

    Args:
        encoder: makes the arrays, and the inputs of a batch of them.
        profile: the sizes that the engine was built for.
    """

    longest = 1

    def __init__(self, encoder: MediaEncoder, profile: Profile) -> None:
        self.encoder = encoder
        self._least_rows = profile.batch.min
        self.most_rows = min(MOST_MEDIA, profile.batch.max)

    def length(self, row: Any) -> int:
        """Every row is as long as the others."""
        return 1

    def feed(self, rows: Sequence[Any]) -> Feed:
        """The rows as one array; the last row again where the engine's smallest batch is larger."""
        filled = [*rows, *[rows[-1]] * (self._least_rows - len(rows))]
        return Feed(self.encoder.batch(filled), [NO_CUT] * len(rows), 1)


class GraphRunner:
    """Runs one graph once for a batch.

    Args:
        runner: the loaded graph.
        signature: says which outputs have a sequence axis.
        names: the outputs to give.
    """

    def __init__(self, runner: Runner, signature: Signature, names: Sequence[str]) -> None:
        self._runner = runner
        shapes = {spec.name: spec.shape for spec in signature.outputs}
        self._per_token = {name: shapes[name][:2] == [BATCH, SEQUENCE] for name in names}

    def run(self, feed: Feed) -> Sequence[Mapping[str, Array]]:
        """The outputs of each row; of an output per token those of the row's own."""
        outputs = self._runner.run(feed.arrays)
        return [
            {
                name: outputs[name][row][place if per_token else NO_CUT]
                for name, per_token in self._per_token.items()
            }
            for row, place in enumerate(feed.places)
        ]


# Called with a batch and the outputs of its rows, by the thread that ran it.
OnRows = Callable[[Feed, Sequence[Mapping[str, Array]]], None]


class WatchedRunner:
    """Runs batches as another runner does, and shows them to somebody else."""

    def __init__(self, runner: BatchRunner, on_rows: OnRows) -> None:
        self._runner, self._on_rows = runner, on_rows

    def run(self, feed: Feed) -> Sequence[Mapping[str, Array]]:
        """The outputs of each row."""
        rows = self._runner.run(feed)
        self._on_rows(feed, rows)
        return rows
