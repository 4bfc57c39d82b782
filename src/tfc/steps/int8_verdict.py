"""How far an int8 engine may be from PyTorch in fp32, and whether it is further.

Two things are asked:

1. **What the model says**: the agreement with fp32 (`tfc.steps.agreement`) that its build was
   allowed, or reached if that was less. Of few rows, as many may differ as chance explains.
2. **The numbers**: a difference of at most 3 times that of the floor. PyTorch does not run the same
   integers, so the floor is the optimized fp32 graph with the recorded products quantised anew, on
   the same rows: neither the engine nor the file that it was built from. An engine with a wrong
   scale, bias or mask is further off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.manifest import MODEL, Engine, Task
from tfc.runtime.parity import NOISE_FACTOR, Tolerance, tolerance_of
from tfc.steps.agreement import (
    CORRELATION,
    COSINE,
    agreement_of,
    decisions_in,
    measure_of,
    too_many_differ,
)
from tfc.steps.int8_options import INT8
from tfc.steps.int8_prepare import int8_step, rebuilt, target_of

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FloorRunner:
    """The floor as an engine. See `Runner`."""

    call: Callable[[Any], dict[str, Array]]

    def run(self, inputs: Any) -> dict[str, Array]:
        """The outputs of one batch."""
        return self.call(inputs)

    def close(self) -> None:
        """Give nothing back: memory is all that it holds."""


@dataclass(frozen=True)
class Agreement:
    """What was measured, and what is asked.

    `decisions` is how many it is a share of, 0 if it is no share.
    """

    measure: str
    value: float
    allowed: float
    decisions: int

    @property
    def holds(self) -> bool:
        """Whether it is high enough, for so many decisions."""
        return not too_many_differ(self.value, self.allowed, self.decisions)

    def text(self) -> str:
        """`same labels 99.50% of 200, at least 99.00% asked`."""
        value, allowed = (number_text(self.measure, each) for each in (self.value, self.allowed))
        of = f" of {self.decisions}" if self.decisions else ""
        return f"{self.measure} {value}{of}, at least {allowed} asked"


def floor_runner(artifact: Artifact, engine: Engine) -> FloorRunner:
    """Runs the floor.

    Raises:
        BadArtifact: what the build recorded of it is not in the artifact any more.
    """
    from tfc.optimizers.executor import runner_of

    return FloorRunner(runner_of(rebuilt(artifact, target_of(engine), MODEL)))


def int8_tolerance(
    artifact: Artifact, engine: Engine, expected: Sequence[Array], floor: Sequence[Array]
) -> Tolerance:
    """For an engine, from PyTorch's values and the floor's on the same rows."""
    found = int8_step(artifact, target_of(engine), MODEL).result
    agreement = min(1 - found["max_drop"], found["accuracy"]["agreement"])
    source = f"{NOISE_FACTOR:g} × the error of the fp32 graph with the same products in int8"
    return dataclasses.replace(
        tolerance_of(expected, floor, INT8), source=source, agreement=agreement
    )


def int8_agreement(
    task: Task, expected: Sequence[Array], got: Sequence[Array], allowed: float
) -> Agreement:
    """Of PyTorch's and the engine's values."""
    found = agreement_of(task, expected, got)
    return Agreement(measure_of(task), found, allowed, decisions_in(task, expected))


def number_text(measure: str, value: float) -> str:
    """A share for people: `99.80%`; of a cosine or a correlation `0.9973`."""
    return f"{value:.4f}" if measure in (COSINE, CORRELATION) else f"{value:.2%}"
