"""What an engine's precision does to the numbers by itself: tolerances are measured from it.

Of fp16 and bf16 that is PyTorch in the same type. PyTorch does not run the integers of an int8
engine: there it is the optimized fp32 graph with the same products quantised anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.manifest import Engine
from tfc.runtime.parity import Tolerance, tolerance_of
from tfc.steps.int8.options import INT8
from tfc.steps.int8.verdict import floor_runner, int8_tolerance

_FP32 = "fp32"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Noise:
    """Makes what computes as a precision does, each once; `reference` is PyTorch in fp32."""

    artifact: Artifact
    reference: Any
    made: dict[str, Any] = field(default_factory=dict)

    def key(self, engine: Engine) -> str:
        """The same for engines of the same noise; empty for those in fp32, which have none."""
        if engine.precision == _FP32:
            return ""
        return f"{engine.precision} {engine.backend}" if is_int8(engine) else engine.precision

    def of(self, engine: Engine) -> Any:
        """What computes as the engine's precision does: call it with the graph's inputs.

        Raises:
            BadArtifact: what an int8 build recorded is not in the artifact any more.
            CheckFailed: PyTorch could not run in this precision.
        """
        key = self.key(engine)
        if key not in self.made:
            if is_int8(engine):
                self.made[key] = floor_runner(self.artifact, engine).run
            else:
                self.made[key] = self.reference.in_precision(engine.precision)
        return self.made[key]

    def tolerance(
        self, engine: Engine, expected: Sequence[Array], floor: Sequence[Array] | None
    ) -> Tolerance:
        """For an engine, from PyTorch's values and those of its noise on the same rows."""
        if is_int8(engine) and floor is not None:
            return int8_tolerance(self.artifact, engine, expected, floor)
        return tolerance_of(expected, floor, engine.precision)


def is_int8(engine: Engine) -> bool:
    """Whether products are quantised in it."""
    return engine.precision == INT8
