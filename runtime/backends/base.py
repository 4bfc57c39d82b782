"""What every backend is: something that may build engines here, and may run them here.

A backend is a module-level object with the methods of `Backend`; `tfc.runtime.backends` holds
the table. Whether it can build, and whether it can run, are separate facts: TensorRT-RTX builds
on a machine without a GPU and runs only on one that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tfc.errors import UsageError
from tfc.runtime.padding import MASK, split_name

if TYPE_CHECKING:
    from tfc.runtime.backends.device_tensor import DeviceTensor

Arrays = Mapping[str, npt.NDArray[Any]]
# Called with (what is under way, done, total).
OnProgress = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


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
class KernelTensor:
    """A tensor that a kernel reads or writes.

    `datatype` is TensorRT's word for it (`Half`, `Float`, `Int64`, …). `dims` holds -1 for a
    dynamic axis; it is None where the shape is not told.
    """

    name: str
    datatype: str
    dims: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel.

    Attributes:
        name: as the compiler calls it.
        type: the type of its layer: `kgen` (generated), `gemm`, `wait`, …
        reads: the tensors that it computes from, without constants.
        writes: the tensors that it gives.
        constants: weights and the like.
        nodes: the names of the ONNX nodes that it was made from; empty where that is not told.
    """

    name: str
    type: str
    reads: tuple[KernelTensor, ...] = ()
    writes: tuple[KernelTensor, ...] = ()
    constants: tuple[KernelTensor, ...] = ()
    nodes: tuple[str, ...] = ()

    @property
    def datatypes(self) -> tuple[str, ...]:
        """The data types of what it reads and writes, each once, in order of their names."""
        return tuple(sorted({tensor.datatype for tensor in (*self.reads, *self.writes)}))


@dataclass(frozen=True)
class Built:
    """What a build gave: the files' versions, what it was built for, its kernels if known.

    Of several optimization profiles, `kernels` are those of the one with the fewest fused ones.
    `memory` has the bytes of activations that each profile needs, where the compiler tells.
    """

    versions: Mapping[str, str]
    hardware: str
    kernels: tuple[Kernel, ...] = ()
    notes: tuple[str, ...] = field(default=())
    memory: tuple[int, ...] = ()


class KernelTimings(Protocol):
    """Times of kernels that builds keep for later ones."""

    def read(self) -> bytes:
        """What is kept; empty where there is nothing."""

    def update(self, combined: Callable[[bytes], bytes]) -> None:
        """Replace what is kept by what `combined` makes of it."""


@dataclass(frozen=True)
class BuildOptions:
    """What a build may be asked for beside the sizes.

    Attributes:
        compute_capabilities: the GPUs that an ahead-of-time build is for, as `8.9`; empty for
            what the backend takes by itself.
        on_progress: called while the backend compiles; what it raises stops the build.
        profiles: several optimization profiles in one engine, for a backend that compiles for
            sizes; empty for the one profile of the build.
        timings: kept times of kernels, for a backend that chooses kernels by timing them.
        refit: whether the weights of the engine can be replaced later.
        version_compatible: whether later versions of the backend are to run the engine, too.
        hardware_compatible: which other GPUs are to run it (`tensorrt_flavors.HARDWARE_LEVELS`);
            empty for none.
    """

    compute_capabilities: tuple[str, ...] = ()
    on_progress: OnProgress = no_progress
    profiles: tuple[Profile, ...] = ()
    timings: KernelTimings | None = None
    refit: bool = False
    version_compatible: bool = False
    hardware_compatible: str = ""


DEFAULTS = BuildOptions()


def no_capabilities(why: str) -> UsageError:
    """What a backend says that cannot build for chosen GPUs."""
    return UsageError(
        f"compute capabilities can be chosen for the backend tensorrt-rtx only: {why}",
        fix="Leave --sm out, or add --backend tensorrt-rtx",
    )


@dataclass(frozen=True)
class GpuMemory:
    """What a loaded engine takes of the GPU's memory, in bytes.

    Attributes:
        plan: the engine's file, which is about what its weights take.
        lanes: how many batches it can run at a time by now; made when they are first needed.
        most_lanes: how many there may be.
        activations: what each of them computes in, for the largest shapes.
        buffers: inputs and outputs on the GPU, of the largest batches so far.
        pinned: the same in page-locked memory of the host.
    """

    plan: int
    lanes: int
    most_lanes: int
    activations: int
    buffers: int
    pinned: int

    @property
    def on_gpu(self) -> int:
        """The sum of what is on the GPU now."""
        return self.plan + self.lanes * self.activations + self.buffers

    @property
    def at_most(self) -> int:
        """What it comes to with every lane, if the batches become no larger."""
        lanes = max(self.lanes, 1)
        each = self.activations + self.buffers // lanes
        return self.plan + max(self.most_lanes, lanes) * each

    def plus(self, other: GpuMemory) -> GpuMemory:
        """Of two graphs of one engine, which have their own lanes."""
        both = (self, other)
        return GpuMemory(
            plan=sum(each.plan for each in both),
            lanes=max(each.lanes for each in both),
            most_lanes=max(each.most_lanes for each in both),
            activations=sum(each.activations for each in both),
            buffers=sum(each.buffers for each in both),
            pinned=sum(each.pinned for each in both),
        )


class Runner(Protocol):
    """A loaded engine. `run` may be called from several threads."""

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one batch: arrays by input name → arrays by output name."""

    def close(self) -> None:
        """Give back what the engine holds. Safe to call twice."""


@runtime_checkable
class DeviceRunner(Protocol):
    """A runner that also takes tensors on its GPU, without copies."""

    def run_on_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceTensor]:
        """Run one batch of tensors that speak DLPack; the outputs stay on the GPU."""


@runtime_checkable
class MemoryTeller(Protocol):
    """A runner that tells what it takes of a GPU's memory."""

    @property
    def memory(self) -> GpuMemory:
        """What it takes now, and how much it may come to."""


class Backend(Protocol):
    """Builds engines, loads engines."""

    name: str
    suffix: str

    @property
    def target(self) -> str:
        """The form of graphs that it runs: one of `tfc.optimizers.TARGETS`."""

    def availability(self) -> Availability:
        """What this backend can do here. Never raises; imports its library only to look."""

    def build(
        self,
        model: Path,
        engine: Path,
        inputs: Inputs,
        profile: Profile,
        options: BuildOptions = DEFAULTS,
    ) -> Built:
        """Compile the ONNX file `model` into the file `engine`."""

    def load(self, engine: Path, threads: int | None = None, streams: int = 1) -> Runner:
        """Load the file `engine` to run it here, `streams` batches at once on `threads` threads.

        On the CPU the threads are shared among the streams; with one stream a batch has them all.
        """


def as_contiguous(inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The arrays, each contiguous in memory, as native libraries want them."""
    return {name: np.ascontiguousarray(array) for name, array in inputs.items()}


def smallest_batch(inputs: Inputs, profile: Profile) -> dict[str, npt.NDArray[Any]]:
    """Token 0 everywhere, and every token attended to: valid for any vocabulary."""
    batch = {}
    for name, (dtype, axes) in inputs.tensors.items():
        shape = tuple(profile.of_axis(axis).min for axis in axes)
        fill = 1 if split_name(name)[0] == MASK else 0
        batch[name] = np.full(shape, fill, np.dtype(dtype))
    return batch
