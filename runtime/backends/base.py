"""What every backend is: something that may build engines here, and may run them here.

A backend is a module-level object with the methods of `Backend`; `tfc.runtime.backends` holds
the table. Whether it can build, and whether it can run, are separate facts: TensorRT-RTX builds
on a machine without a GPU and runs only on one that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Range:
    """The sizes that one dynamic axis may take; `opt` is the size to be fastest at."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Profile:
    """The shapes an engine is built for: sizes of the axes `batch`, `sequence` (tokens), others."""

    batch: Range = Range(1, 32, 256)
    sequence: Range = Range(1, 128, 512)
    others: Mapping[str, Range] = field(default_factory=dict)

    def of_axis(self, axis: int | str) -> Range:
        """The sizes of one axis of a tensor: of a dynamic axis by name, or one fixed size."""
        if axis == "batch":
            return self.batch
        if axis == "sequence":
            return self.sequence
        if axis in self.others:
            return self.others[str(axis)]
        size = int(axis)
        return Range(size, size, size)

    def as_json(self) -> dict[str, list[int]]:
        """The profile as it stands in the manifest: axis → [min, opt, max]."""
        every = {"batch": self.batch, "sequence": self.sequence, **self.others}
        return {axis: [sizes.min, sizes.opt, sizes.max] for axis, sizes in every.items()}


@dataclass(frozen=True)
class Availability:
    """What a backend can do on this machine, and why not where it cannot.

    `why_not_build` and `why_not_run` are sentences that name the fix; they are empty where the
    answer is yes.
    """

    name: str
    version: str
    why_not_build: str = ""
    why_not_run: str = ""
    hardware: str = ""

    @property
    def can_build(self) -> bool:
        """Whether engines can be built here."""
        return not self.why_not_build

    @property
    def can_run(self) -> bool:
        """Whether engines can be run here."""
        return not self.why_not_run


@dataclass(frozen=True)
class Inputs:
    """The engine's input tensors: name → (dtype, axes), axes as names or fixed sizes."""

    tensors: Mapping[str, tuple[str, tuple[int | str, ...]]]


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel: its name, its layer type, and the data types that it computes in."""

    name: str
    type: str
    datatypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """What a build gave: the files' versions, what it was built for, its kernels if known."""

    versions: Mapping[str, str]
    hardware: str
    kernels: tuple[Kernel, ...] = ()
    notes: tuple[str, ...] = field(default=())


class Runner(Protocol):
    """A loaded engine. `run` may be called from several threads."""

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one batch: arrays by input name → arrays by output name."""

    def close(self) -> None:
        """Give back what the engine holds. Safe to call twice."""


class Backend(Protocol):
    """Builds engines, loads engines."""

    name: str
    suffix: str

    @property
    def target(self) -> str:
        """The form of graphs that it runs: one of `tfc.optimizers.TARGETS`."""

    def availability(self) -> Availability:
        """What this backend can do here. Never raises; imports its library only to look."""

    def build(self, model: Path, engine: Path, inputs: Inputs, profile: Profile) -> Built:
        """Compile the ONNX file `model` into the file `engine`."""

    def load(self, engine: Path, threads: int | None = None) -> Runner:
        """Load the file `engine` to run it here."""


def as_contiguous(inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The arrays, each contiguous in memory, as native libraries want them."""
    return {name: np.ascontiguousarray(array) for name, array in inputs.items()}
