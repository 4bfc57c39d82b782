"""Metamorphic checks of an engine: what must hold for any data, at every size of its profile.

Padding and odd texts are held against PyTorch on the same tensors; rows against the engine itself,
for what stands in the other rows of a batch, and in which order, must not matter. How far values
may differ is measured as it is on data: 1e-4 of the largest value in fp32, and in half a few times
PyTorch's own error on that very input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import TfcError
from tfc.manifest import BATCH, Engine
from tfc.runtime.backends.base import Runner
from tfc.runtime.padding import Feed
from tfc.runtime.parity import FP32_TOLERANCE, Tolerance, failures, parity_of, tolerance_of
from tfc.steps.cases import output_axes, real_values
from tfc.steps.reference import Recorded, Reference
from tfc.steps.verification.noise import Noise
from tfc.steps.verification.relation_inputs import (
    ALONE,
    IDENTICAL,
    OF_ROWS,
    PERMUTED,
    RelationCase,
    alone,
    relation_cases,
)

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
# Tokens of a batch. A CPU computes some 300 GFLOP/s: 512 tokens of BERT-base are 0.3 s of it, and
# there are some 30 batches. A GPU has time for whole profiles of short texts.
_BUDGET_CPU, _BUDGET_GPU = 512, 1 << 16
_CPU = "CPU"


@dataclass(frozen=True)
class Relation:
    """A relation at one size (rows x tokens), whether it holds, and by how much it is off.

    `feed` is the input on which it was checked.
    """

    name: str
    size: str
    outcome: str
    reason: str = ""
    max_abs: float | None = None
    allowed: float | None = None
    feed: Feed | None = field(default=None, repr=False, compare=False)

    @property
    def fails(self) -> bool:
        """Whether it was checked and does not hold."""
        return self.outcome == FAILED

    def as_json(self) -> dict[str, Any]:
        """As reports/verify.json holds it."""
        kept = {key: value for key, value in vars(self).items() if key != "feed"}
        return {key: value for key, value in kept.items() if value not in (None, "")}


@dataclass(frozen=True)
class _Seen:
    """An engine, and what it gave for inputs that several relations share, by their keys."""

    runner: Runner
    outputs: dict[str, Outputs] = field(default_factory=dict)

    def run(self, feed: Feed, key: str = "") -> Outputs:
        """The outputs for an input; without a key they are not kept."""
        if not key:
            return dict(self.runner.run(feed))
        if key not in self.outputs:
            self.outputs[key] = dict(self.runner.run(feed))
        return self.outputs[key]


# Inputs, what the engine should give for them, and what it gives.
Pairs = Iterator[tuple[Feed, Outputs, Outputs]]


def _identical(feed: Feed, seen: _Seen, key: str, names: list[str]) -> Pairs:
    """Rows that are the same give the same."""
    same = {name: np.repeat(array[:1], len(array), axis=0) for name, array in feed.items()}
    outputs = seen.run(same)
    yield same, {n: np.repeat(outputs[n][:1], len(outputs[n]), axis=0) for n in names}, outputs


def _permuted(feed: Feed, seen: _Seen, key: str, names: list[str]) -> Pairs:
    """Rows in another order give the same in that order."""
    outputs = seen.run(feed, key)
    order = np.arange(len(next(iter(feed.values()))))[::-1]
    turned = {name: np.ascontiguousarray(array[order]) for name, array in feed.items()}
    yield turned, {name: outputs[name][order] for name in names}, seen.run(turned)


def _alone(feed: Feed, seen: _Seen, key: str, names: list[str]) -> Pairs:
    """A row by itself gives what it gives among others."""
    outputs = seen.run(feed, key)
    for row, one in alone(feed):
        yield one, seen.run(one), {name: outputs[name][row : row + 1] for name in names}


_PAIRS = {IDENTICAL: _identical, PERMUTED: _permuted, ALONE: _alone}


@dataclass(frozen=True)
class Relations:
    """Checks the relations of engines; PyTorch's values are kept for the next one.

    `reference` is PyTorch in fp32, `noise` computes as other precisions do. `scale` is the largest
    value on the data: one text's score may be near zero, and says nothing of how large the sums
    were that gave it.
    """

    artifact: Artifact
    reference: Reference | Recorded
    noise: Noise
    scale: float = 0.0
    kept: dict[tuple[str, str], list[Array]] = field(default_factory=dict)

    def of_engine(
        self, engine: Engine, runner: Runner, on_case: Callable[[int, int], None]
    ) -> tuple[Relation, ...]:
        """Every relation of an engine, those that cannot be checked among them.

        Args:
            engine: the engine.
            runner: its first graph, loaded.
            on_case: called with how many are done, and how many there are.
        """
        budget = _BUDGET_CPU if engine.hardware == _CPU else _BUDGET_GPU
        cases = relation_cases(self.artifact, engine, budget)
        found = []
        seen = _Seen(runner)
        for number, case in enumerate(cases):
            on_case(number, len(cases))
            found.append(self._checked(case, engine, seen))
        on_case(len(cases), len(cases))
        return tuple(found)

    def _checked(self, case: RelationCase, engine: Engine, seen: _Seen) -> Relation:
        if case.feed is None:
            return Relation(case.name, case.size, NOT_RUN, case.reason)
        try:
            if case.name in OF_ROWS:
                expected, got, tolerance = self._of_rows(case, case.feed, engine, seen)
            else:
                expected, tolerance = self._of_pytorch(case, case.feed, engine)
                got = self._values(seen.run(case.feed, case.key), case.feed)
        except TfcError as error:
            return Relation(case.name, case.size, FAILED, str(error), feed=case.feed)
        tolerance = tolerance.at_least(FP32_TOLERANCE * self.scale)
        parity = parity_of(expected, got, tolerance)
        reasons = failures(parity, tolerance)
        outcome = FAILED if reasons else PASSED
        text = "; ".join(reasons)
        sizes = parity.max_abs, tolerance.max_abs
        return Relation(case.name, case.size, outcome, text, *sizes, case.feed)

    def _of_pytorch(
        self, case: RelationCase, feed: Feed, engine: Engine
    ) -> tuple[list[Array], Tolerance]:
        """PyTorch's values, and how far an engine may be from them."""
        expected = self._kept(case, feed, "", self.reference)
        noise = self.noise.key(engine)
        floor = self._kept(case, feed, noise, self.noise.of(engine)) if noise else None
        return expected, self.noise.tolerance(engine, expected, floor)

    def _kept(
        self, case: RelationCase, feed: Feed, noise: str, call: Callable[[Feed], Outputs]
    ) -> list[Array]:
        key = (case.key, noise)
        if key not in self.kept:
            self.kept[key] = self._values(call(feed), feed)
        return self.kept[key]

    def _of_rows(
        self, case: RelationCase, feed: Feed, engine: Engine, seen: _Seen
    ) -> tuple[list[Array], list[Array], Tolerance]:
        """What the engine's rows should be, what they are, and how far they may be apart."""
        pairs = list(_PAIRS[case.name](feed, seen, case.key, list(self._axes_of_rows())))
        expected = [v for given, right, _ in pairs for v in self._values(right, given)]
        got = [v for given, _, found in pairs for v in self._values(found, given)]
        return expected, got, self._tolerance_of_rows(expected, case, feed, engine)

    def _tolerance_of_rows(
        self, expected: list[Array], case: RelationCase, feed: Feed, engine: Engine
    ) -> Tolerance:
        """A batch of another size rounds anew: as far as the precision is from fp32."""
        if not self.noise.key(engine) or isinstance(self.reference, Recorded):
            return tolerance_of(expected, None, "fp32")
        return self._of_pytorch(case, feed, engine)[1]

    def _axes_of_rows(self) -> dict[str, list[int | str]]:
        """The axes of the outputs that have a row for each row that goes in."""
        axes = output_axes(self.artifact)
        return {name: own for name, own in axes.items() if own[:1] == [BATCH]}

    def _values(self, outputs: Outputs, feed: Feed) -> list[Array]:
        return [real_values(outputs[name], own, feed) for name, own in self._axes_of_rows().items()]


def failing(relations: Sequence[Relation]) -> list[str]:
    """The names of the relations that do not hold, each with the sizes at which it does not."""
    sizes: dict[str, list[str]] = {}
    for one in relations:
        if one.fails:
            sizes.setdefault(one.name, []).append(one.size)
    return [f"{name} at {', '.join(at)}" if any(at) else name for name, at in sizes.items()]
