"""How far an int8 engine may be from PyTorch in fp32, and whether it is further.

PyTorch does not run the same integers. What stands in for it is the floor: the optimized fp32 graph
with the recorded products quantised anew, so neither the engine nor the file that it was built
from. Two things are asked of an engine, on the same rows:

1. **What the model says**: the agreement with fp32 PyTorch that its build was allowed, or reached
   if that was less (`tfc.steps.verification.agreement`). Of few rows, as many may differ as chance
   explains.
2. **The numbers**: it is as near to the floor as the floor is to PyTorch. (On ONNX Runtime's CPU
   provider it is the floor, to the bit; a graph for TensorRT, with fp16 beside int8, is 0.4 times
   as far from it: rounding to half moves some values over the edge of an int8 level.) So it is at
   most twice as far from PyTorch. An engine with a wrong scale, bias or mask is further off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.manifest import MODEL, Engine, Task
from tfc.runtime.parity import FP32_TOLERANCE, PEAK_TO_RMS, Tolerance
from tfc.steps.int8.prepare import int8_step, rebuilt, target_of
from tfc.steps.verification.agreement import (
    CORRELATION,
    COSINE,
    agreement_of,
    decisions_in,
    measure_of,
    too_many_differ,
)

Array = npt.NDArray[Any]
# The way to PyTorch over the floor, if both parts of it are as long.
_FACTOR = 2.0


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

    Attributes:
        measure: what agreement with PyTorch means.
        value: the agreement.
        allowed: the least that is asked.
        decisions: how many it is a share of, 0 if it is no share.
        distance: root mean square difference from the floor.
        room: that of the floor from PyTorch.
    """

    measure: str
    value: float
    allowed: float
    decisions: int
    distance: float
    room: float

    @property
    def holds(self) -> bool:
        """Whether the agreement is high enough, for so many decisions."""
        return not too_many_differ(self.value, self.allowed, self.decisions)

    def reasons(self) -> list[str]:
        """Why the engine fails; empty if it passes."""
        found = [] if self.holds else [self.text()]
        if not self.distance <= self.room:
            found.append(
                f"rms difference {self.distance:.3g} from the same products quantised anew, which "
                f"are {self.room:.3g} from PyTorch"
            )
        return found

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
    wrong = _differences(expected, floor)
    scale = max(float(np.abs(each).max(initial=0.0)) for each in expected)
    rms = max(_FACTOR * _rms(wrong), FP32_TOLERANCE * scale)
    return Tolerance(
        rms,
        max(_FACTOR * float(np.abs(wrong).max(initial=0.0)), PEAK_TO_RMS * rms),
        f"{_FACTOR:g} × the error of the fp32 graph with the same products in int8",
        min(1 - found["max_drop"], found["accuracy"]["agreement"]),
    )


def int8_agreement(
    task: Task,
    expected: Sequence[Array],
    floor: Sequence[Array],
    got: Sequence[Array],
    tolerance: Tolerance,
) -> Agreement:
    """Of PyTorch's, the floor's and the engine's values."""
    return Agreement(
        measure_of(task),
        agreement_of(task, expected, got),
        tolerance.agreement or 0.0,
        decisions_in(task, expected),
        _rms(_differences(floor, got)),
        tolerance.rms / _FACTOR,
    )


def _differences(one: Sequence[Array], other: Sequence[Array]) -> Array:
    pairs = zip(one, other, strict=True)
    found = np.concatenate([(a.astype(np.float64) - b).reshape(-1) for a, b in pairs])
    return np.where(np.isfinite(found), found, np.inf)


def _rms(differences: Array) -> float:
    return float(np.sqrt(np.mean(differences**2)))


def number_text(measure: str, value: float) -> str:
    """A share for people: `99.80%`; of a cosine or a correlation `0.9973`."""
    return f"{value:.4f}" if measure in (COSINE, CORRELATION) else f"{value:.2%}"
