"""What a graph of a model that generates is bisected on: one call of it.

The calls are those of generation: the encoder, the decoder on the prompt (its caches empty), and
the decoder on one more token with a cache. All of them get PyTorch's tensors, so an error of one
does not reach the next, and the first call where the engine is off is the one to look into.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.manifest import DECODER, ENCODER, Manifest
from tfc.runtime.backends.base import Runner
from tfc.runtime.generation import settings_from_config, start_tokens
from tfc.runtime.generation.decoder import ENCODER_MASK, LOGITS, PAST, PRESENT
from tfc.runtime.padding import MASK, Feed
from tfc.runtime.parity import Tolerance, failures, parity_of, tolerance_of
from tfc.steps.bisection.inputs import Judged
from tfc.steps.generation_cases import GenerationCases
from tfc.steps.reference import Reference

Array = npt.NDArray[Any]
Outputs = dict[str, Array]


@dataclass(frozen=True)
class CallInput:
    """One call of a graph. See `Given`.

    Each output has a tolerance of its own: scores are held to what the data were, keys and values
    to what rounding does to them in this call. `floor` is PyTorch in the engine's precision, None
    for fp32.
    """

    graph: str
    feed: Feed
    expected: Outputs
    floor: Outputs | None
    described: str
    tolerance: Tolerance
    exact: Tolerance

    def judged(self, got: Outputs, exact: bool) -> Judged:
        """See `Given`. What is reported is of the output that is furthest beyond its tolerance."""
        found = []
        for name, right in self.expected.items():
            tolerance = self._tolerance(name, exact)
            arrays = [_real(array, self.feed) for array in (right, got[name])]
            parity = parity_of(arrays[:1], arrays[1:], tolerance)
            if name != LOGITS:  # keys and values decide nothing
                parity = replace(parity, flips_beyond_noise=0)
            texts = failures(parity, tolerance)
            reasons = [f"{name}: {'; '.join(texts)}"] if texts else []
            found.append((parity.max_abs / tolerance.max_abs, reasons, parity.max_abs, tolerance))
        _, reasons, largest, tolerance = max(found, key=lambda one: (bool(one[1]), one[0]))
        return Judged(reasons, largest, tolerance.max_abs)

    def _tolerance(self, name: str, exact: bool) -> Tolerance:
        if name == LOGITS:
            return self.exact if exact else self.tolerance
        right = [_real(self.expected[name], self.feed)]
        if exact or self.floor is None:
            return tolerance_of(right, None, "fp32")
        return tolerance_of(right, [_real(self.floor[name], self.feed)], "")


@dataclass(frozen=True)
class Row:
    """Rows that are read together, what PyTorch says after them, and in words which they are."""

    feed: Feed
    said: Array
    described: str


@dataclass(frozen=True)
class Calls:
    """Makes the calls of generation, with PyTorch's tensors.

    `precision` is the engine's; `tolerance` and `exact` are those of the scores, of the engine
    and of graphs in fp32.
    """

    manifest: Manifest
    model: Any
    precision: str
    tolerance: Tolerance
    exact: Tolerance

    def reference(self, graph: str) -> Reference:
        """PyTorch, called with a graph's inputs."""
        from tfc.exporter.generation.by_name import GraphModule

        signature = self.manifest.graphs[graph].signature
        names = [spec.name for spec in signature.inputs]
        outputs = tuple(spec.name for spec in signature.outputs)
        return Reference(GraphModule(self.model, graph, names), outputs)

    def of(self, row: Row, step: int) -> Iterator[CallInput]:
        """The encoder, the prompt, and the step of that number, each with what was before it."""
        source: Feed = {}
        if ENCODER in self.manifest.graphs:
            encoder = self._call(ENCODER, row.feed, f"the encoder on {row.described}")
            yield encoder
            source = dict(encoder.expected)
            if MASK in row.feed:
                source[ENCODER_MASK] = row.feed[MASK]
            settings = settings_from_config(self.manifest.task.generation)
            ids = start_tokens(settings, len(row.said))
            mask = np.ones_like(ids)
        else:
            ids, mask = row.feed["input_ids"], row.feed[MASK]
        past = self._no_past(len(ids))
        for number in range(step + 1):
            given = {"input_ids": ids, MASK: mask, **past, **source}
            what = "the prompt" if number == 0 else f"token {number} after the prompt"
            call = self._call(DECODER, given, f"the decoder on {what} of {row.described}")
            if number in (0, step):
                yield call
            past = {
                name.replace(PRESENT, PAST): array
                for name, array in call.expected.items()
                if name.startswith(PRESENT)
            }
            if number < step:
                ids = row.said[:, number : number + 1]
                mask = np.concatenate([mask, np.ones_like(ids)], axis=1)

    def _call(self, graph: str, given: Mapping[str, Array], described: str) -> CallInput:
        inputs = self.manifest.graphs[graph].signature.inputs
        feed = {spec.name: given[spec.name].astype(spec.dtype, copy=False) for spec in inputs}
        reference = self.reference(graph)
        half = self.precision in ("fp16", "bf16")
        floor = reference.in_precision(self.precision)(feed) if half else None
        right = reference(feed)
        return CallInput(graph, feed, right, floor, described, self.tolerance, self.exact)

    def _no_past(self, batch: int) -> Feed:
        inputs = self.manifest.graphs[DECODER].signature.inputs
        return {
            spec.name: np.zeros((batch, int(spec.shape[1]), 0, int(spec.shape[3])), spec.dtype)
            for spec in inputs
            if spec.name.startswith(PAST)
        }


def chosen_call(
    calls: Calls,
    cases: GenerationCases,
    found: tuple[list[Array], list[Array]],
    runners: Mapping[str, Runner],
) -> tuple[CallInput, bool]:
    """The first call where an engine is off, and whether there is one.

    The row that is furthest off is read without its padding; then with it, then with the rows
    beside it, for as long as nothing is off. If nothing is at all, it is the prompt of the row.

    Args:
        calls: makes them.
        cases: the texts.
        found: PyTorch's scores and the engine's, as `cases` gives them.
        runners: the engine's graphs.
    """
    number, row, step = _worst(cases, *found)
    first: CallInput | None = None
    for rows in _rows(cases, number, row):
        for call in calls.of(rows, max(step, 1)):
            if call.judged(runners[call.graph].run(call.feed), exact=False).reasons:
                return call, True
            if first is None and call.graph == DECODER:
                first = call
    assert first is not None
    return first, False


def _worst(cases: GenerationCases, expected: list[Array], got: list[Array]) -> tuple[int, int, int]:
    """The batch, the row in it, and the step where the scores are furthest apart."""
    worst: tuple[float, int, int] = (-1.0, 0, 0)
    for number, (right, values) in enumerate(zip(expected, got, strict=True)):
        apart = np.abs(right.astype(np.float64) - values)
        largest = np.where(np.isfinite(apart), apart, np.inf).max(axis=1)
        place = int(largest.argmax())
        worst = max(worst, (float(largest[place]), number, place), key=lambda one: one[0])
    _, number, place = worst
    row, step = divmod(place, cases.tokens[number].shape[1] + 1)
    return number, row, step


def _rows(cases: GenerationCases, number: int, row: int) -> Iterator[Row]:
    """A row without its padding, with it, and all rows of its batch."""
    feed, said = cases.feeds[number], cases.tokens[number]
    batch = f"batch {number + 1} of {len(cases.feeds)} of {cases.origin}"
    one = {name: np.ascontiguousarray(array[row : row + 1]) for name, array in feed.items()}
    described = f"row {row + 1} of {batch}"
    own = said[row : row + 1]
    real = one[MASK][0].astype(bool) if MASK in one else np.ones(1, bool)
    if real.all():
        yield Row(one, own, described)
    else:
        bare = {name: np.ascontiguousarray(array[:, real]) for name, array in one.items()}
        yield Row(bare, own, f"{described}, without its padding")
        yield Row(one, own, f"{described}, with its padding")
    if len(said) > 1:
        yield Row(feed, said, f"all rows of {batch}")


def _real(array: Array, feed: Feed) -> Array:
    """Of keys and values `[batch, heads, tokens, head_dim]`, those of real tokens."""
    mask = feed.get(MASK)
    if mask is None or array.ndim != 4 or (array.shape[0], array.shape[2]) != mask.shape:
        return array
    return np.asarray(np.moveaxis(array, 2, 1)[mask.astype(bool)])
