"""How far an int8 engine may be from PyTorch in fp32, and whether it is further.

There is no noise floor for int8: PyTorch does not run the same integers. Two things are asked:

1. **What the model says**: the agreement with fp32 (`tfc.steps.agreement`) that its build was
   allowed, or reached if that was less. Of few rows, as many may differ as chance explains.
2. **The numbers**: a root mean square difference of at most 3 times that of the int8 graph on the
   rows of its calibration. Another engine of the same graph rounds the same integers; a wrong
   scale, bias or mask is further off than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.manifest import MODEL, Engine, Task
from tfc.runtime.backends import backend as backend_of
from tfc.runtime.parity import NOISE_FACTOR, PEAK_TO_RMS, Tolerance
from tfc.steps.agreement import (
    CORRELATION,
    COSINE,
    agreement_of,
    decisions_in,
    measure_of,
    too_many_differ,
)
from tfc.steps.int8 import INT8
from tfc.steps.optimize import optimized_file

Array = npt.NDArray[Any]
_CPU_TARGET = "onnxruntime"


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


def int8_tolerance(artifact: Artifact, engine: Engine) -> Tolerance:
    """From what the build measured on the rows of the calibration."""
    target = _CPU_TARGET if engine.backend == _CPU_TARGET else backend_of(engine.backend).target
    step = artifact.manifest.step(f"precision:{optimized_file(target, MODEL, INT8)}")
    assert step is not None
    found = step.result["accuracy"]
    rms = NOISE_FACTOR * found["rms"]
    peak = max(NOISE_FACTOR * found["max_abs"], PEAK_TO_RMS * rms)
    agreement = min(1 - step.result["max_drop"], found["agreement"])
    source = f"{NOISE_FACTOR:g} × the int8 graph's own error at its calibration"
    return Tolerance(rms, peak, source, agreement)


def int8_agreement(
    task: Task, expected: Sequence[Array], got: Sequence[Array], allowed: float
) -> Agreement:
    """Of PyTorch's and the engine's values."""
    found = agreement_of(task, expected, got)
    return Agreement(measure_of(task), found, allowed, decisions_in(task, expected))


def number_text(measure: str, value: float) -> str:
    """A share for people: `99.80%`; of a cosine or a correlation `0.9973`."""
    return f"{value:.4f}" if measure in (COSINE, CORRELATION) else f"{value:.2%}"
