"""What engines of a simplified graph are compared with.

PyTorch has the whole model, so the numbers of an engine cannot be its own any more. Two things are
asked instead, on the same rows:

1. **The numbers**: what an engine of a whole graph is asked of PyTorch's, of the simplified
   graph's in fp32. The noise of a precision is that of PyTorch on the whole model.
2. **What the model says**: the agreement with PyTorch that the gate of the simplification
   promised, or reached if that was less, and less what quantising was allowed
   (`tfc.steps.verification.agreement`). Of few rows, as many may differ as chance explains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.manifest import MODEL
from tfc.runtime.padding import Feed
from tfc.simplified_graph import simplify_step
from tfc.steps.int8.verdict import number_text
from tfc.steps.verification.agreement import (
    agreement_of,
    decisions_in,
    measure_of,
    too_many_differ,
)

Array = npt.NDArray[Any]
Call = Callable[[Feed], dict[str, Array]]


@dataclass(frozen=True)
class SimplifiedReference:
    """The simplified graph as a reference; `whole` is PyTorch, which was not simplified."""

    graph: Call
    whole: Any

    def __call__(self, feed: Feed) -> dict[str, Array]:
        """The outputs for one batch."""
        return self.graph(feed)

    def in_precision(self, precision: str) -> Call:
        """The graph with the noise that the precision has in PyTorch on the whole model."""
        rounded = self.whole.in_precision(precision)

        def call(feed: Feed) -> dict[str, Array]:
            exact, noisy = self.whole(feed), rounded(feed)
            return {n: a + (noisy[n] - exact[n]) for n, a in self.graph(feed).items()}

        return call


@dataclass(frozen=True)
class Promise:
    """What the simplification promised of the agreement with PyTorch, whose values these are.

    Attributes:
        allowed: the least agreement of an engine that adds nothing of its own.
        expected: PyTorch's values on the rows that are compared.
    """

    allowed: float
    expected: list[Array] = field(default_factory=list)

    def broken_by(self, task: Any, got: Sequence[Array], allowed: float | None) -> str:
        """How an engine breaks it, which was allowed an agreement with its own graph."""
        asked = self.allowed - (1 - allowed if allowed is not None else 0.0)
        value = agreement_of(task, self.expected, got)
        decisions = decisions_in(task, self.expected)
        if not too_many_differ(value, asked, decisions):
            return ""
        measure = measure_of(task)
        found, least = (number_text(measure, each) for each in (value, asked))
        of = f" of {decisions}" if decisions else ""
        return f"{measure} as PyTorch {found}{of}, at least {least} asked of the simplified graph"


def graph_runner(artifact: Artifact) -> Call:
    """Runs the simplified graph.

    Raises:
        BadArtifact: it is damaged.
    """
    from tfc.optimizers.executor import runner_of
    from tfc.steps.optimize import loaded_graph

    return runner_of(loaded_graph(artifact, MODEL))


def promise_of(artifact: Artifact) -> Promise | None:
    """What the artifact's simplification promises; None where there is none."""
    step = simplify_step(artifact)
    if step is None:
        return None
    reached = [step.result[half]["agreement"] for half in ("choosing", "judging")]
    return Promise(min(1 - step.result["max_drop"], *reached))
