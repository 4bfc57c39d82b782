"""What the sites of a graph read on real data: histograms, not activations.

Padding is left out: it has values like any token, and they are no one's text. Each batch's
activations are held once, so batches are cut to what a budget of memory holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tfc.optimizers.executor import Feed, runner_of
from tfc.optimizers.precision.int8.histogram import Histogram
from tfc.optimizers.precision.int8.sites import Site

ATTENTION_MASK = "attention_mask"
# Of activations that are held at once: some 500 tokens of BERT-base, 1800 of MiniLM.
_BYTES = 128 << 20
_FLOAT_BYTES = 4
_MASK_RANK = 2

Array = npt.NDArray[Any]


@dataclass
class Observed:
    """What was seen so far of each activation, by its name.

    Attributes:
        halves: two histograms: of the rows with an even number in their batch, and of the others.
        channels: the largest magnitude of each channel, `[channels]`.
        batches: how many of the data's batches were seen.
        rows: how many rows those had, texts as a rule.
        tokens: how many tokens, without padding.
    """

    halves: dict[str, tuple[Histogram, Histogram]] = field(default_factory=dict)
    channels: dict[str, Array] = field(default_factory=dict)
    batches: int = 0
    rows: int = 0
    tokens: int = 0

    def histograms(self) -> dict[str, Histogram]:
        """Of all rows."""
        return {name: even.plus(odd) for name, (even, odd) in self.halves.items()}

    def half(self, number: int) -> dict[str, Histogram]:
        """Of one half of the rows."""
        return {name: pair[number] for name, pair in self.halves.items()}


def observe(
    model: ir.Model,
    sites: Collection[Site],
    feeds: Sequence[Feed],
    seen: Observed,
    after_batch: Callable[[Observed], None],
) -> None:
    """Run the graph on the batches that `seen` does not have yet, and add to it what they show.

    Args:
        model: an optimized fp32 graph.
        sites: whose activations are looked at.
        feeds: all batches, in the order of an earlier call.
        seen: changed in place.
        after_batch: called after each batch.

    Raises:
        ValueError: an activation is not finite.
    """
    names = list(dict.fromkeys(site.activation for site in sites))
    run = runner_of(values_model(model, names))
    most = _most_tokens(model, names)
    for feed in feeds[seen.batches :]:
        for part in _parts(feed, most):
            found = run(part)
            for name in names:
                _add(seen, name, found[name], part.get(ATTENTION_MASK))
            seen.rows += _rows(part)
            seen.tokens += _tokens(part)
        seen.batches += 1
        after_batch(seen)


def values_model(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The graph that gives these values."""
    probe = model.clone()
    given = (v for node in probe.graph for v in node.outputs)
    values = {v.name: v for v in (*probe.graph.inputs, *given)}
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(values[name] for name in names)
    RemoveUnusedNodesPass()(probe)
    return probe


def _most_tokens(model: ir.Model, names: Sequence[str]) -> int:
    wanted = set(names)
    values = (v for node in model.graph for v in node.outputs if v.name in wanted)
    widths = (v.shape[-1] for v in values if v.shape is not None)
    width = sum(w for w in widths if isinstance(w, int))
    return max(1, _BYTES // (_FLOAT_BYTES * max(1, width)))


def _parts(feed: Feed, most: int) -> Iterator[Feed]:
    """The batch in pieces of whole rows; a row that is too long alone is a piece."""
    rows, mask = _rows(feed), feed.get(ATTENTION_MASK)
    length = mask.shape[1] if mask is not None and mask.ndim == _MASK_RANK else 1
    step = max(1, most // max(1, length))
    for first in range(0, rows, step):
        yield {name: array[first : first + step] for name, array in feed.items()}


def _rows(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def _tokens(feed: Feed) -> int:
    mask = feed.get(ATTENTION_MASK)
    return int(np.count_nonzero(mask)) if mask is not None else _rows(feed)


def _add(seen: Observed, name: str, array: Array, mask: Array | None) -> None:
    pair = seen.halves.setdefault(name, (Histogram(), Histogram()))
    channels = seen.channels.get(name, np.zeros(array.shape[-1], np.float32))
    vectors, rows = _real(array, mask)
    for half, histogram in enumerate(pair):
        histogram.add(vectors[rows % 2 == half])
    if len(vectors):
        channels = np.maximum(channels, np.abs(vectors).max(axis=0))
    seen.channels[name] = channels


def real_vectors(array: Array, feed: Feed) -> Array:
    """Of an activation, the vectors that are not of padding, `[vectors, channels]`."""
    return _real(array, feed.get(ATTENTION_MASK))[0]


def _real(array: Array, mask: Array | None) -> tuple[Array, Array]:
    """The vectors that are not of padding, `[vectors, channels]`, and the row of each."""
    rows = len(array) if mask is None else len(mask)
    vectors = array.reshape(-1, array.shape[-1])
    of_rows = np.repeat(np.arange(rows), max(1, len(vectors) // max(1, rows)))
    if mask is None or mask.ndim != _MASK_RANK or mask.size != len(vectors):
        return vectors, of_rows
    real = mask.reshape(-1).astype(bool)
    return vectors[real], of_rows[real]
