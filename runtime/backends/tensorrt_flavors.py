"""TensorRT and TensorRT-RTX: what is different between them, as data.

Everything else that tfc uses is the same in TensorRT 10.13 to 11.4 and in TensorRT-RTX 1.7. A
member of TensorRT's API that only one of them has is used only in a function that its row of
`FLAVORS` names.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfc.errors import BackendUnavailable, MissingPackage, UsageError
from tfc.runtime.backends.base import BuildOptions, no_capabilities
from tfc.runtime.gpu import Gpu

# A plan of TensorRT-RTX that names no compute capability runs on all of these (its page on
# engines built without a GPU). That is wider than any list that can be named: the "and later" has
# no name. Turing is not in it, and sharing a plan with Turing costs the others speed.
PORTABLE = "compute capability 8.0, 8.6, 8.9, 12.0 and later, Linux and Windows"
TURING = "7.5"
# What --hardware-compatible takes → the member of HardwareCompatibilityLevel, and what such a plan
# runs on.
HARDWARE_LEVELS = {
    "ampere+": ("AMPERE_PLUS", "compute capability 8.0 and later"),
    "same-capability": ("SAME_COMPUTE_CAPABILITY", "GPUs of compute capability {capability}"),
}
_AMPERE = 8.0
REFIT, VERSION_COMPATIBLE, HARDWARE_COMPATIBLE = (
    "--refit",
    "--version-compatible",
    "--hardware-compatible",
)


def check_plan_options(backend: str, options: BuildOptions) -> None:
    """Refuse what a backend cannot build, before anything is done.

    Raises:
        UsageError: the first option that it does not have, and why.
    """
    asked = {
        REFIT: options.refit,
        VERSION_COMPATIBLE: options.version_compatible,
        HARDWARE_COMPATIBLE: bool(options.hardware_compatible),
    }
    for option in (option for option, given in asked.items() if given):
        if backend not in FLAVORS:
            raise UsageError(
                f"{option} is for TensorRT, and the backend is {backend}",
                fix=f"Leave {option} out, or add --backend tensorrt",
            )
        if why := FLAVORS[backend].refused.get(option):
            raise UsageError(why, fix=f"Leave {option} out, or add --backend tensorrt")


def hardware_of_level(level: str, present: Sequence[Gpu]) -> str:
    """What a plan of a level of hardware compatibility runs on, as words for the manifest.

    Raises:
        UsageError: such a plan cannot be built on the GPU that is present.
    """
    gpu = present[0]
    if level == "ampere+" and float(gpu.compute_capability) < _AMPERE:
        raise UsageError(
            f"a plan for compute capability 8.0 and later cannot be built on {gpu.name}, which has"
            f" {gpu.compute_capability}",
            fix="Build on such a GPU, or leave --hardware-compatible out",
        )
    return HARDWARE_LEVELS[level][1].format(capability=gpu.compute_capability)


def target_this_gpu(
    trt: Any, config: Any, present: Sequence[Gpu], asked: Sequence[str] = ()
) -> str:
    """A plan of TensorRT is timed on the GPU it is built on, and is for that kind of GPU."""
    if asked:
        raise no_capabilities("TensorRT builds for the GPU that it builds on")
    gpu = present[0]
    return f"{gpu.name} (compute capability {gpu.compute_capability})"


def target_rtx_gpus(
    trt: Any, config: Any, present: Sequence[Gpu], asked: Sequence[str] = ()
) -> str:
    """A plan for what is asked for; else a portable one.

    A portable plan would not run on Turing: where no other GPU is in this machine, it is for that.

    Raises:
        UsageError: TensorRT-RTX does not know a compute capability that is asked for.
    """
    if not asked and present and all(gpu.compute_capability == TURING for gpu in present):
        asked = (TURING,)
    if not asked:
        return PORTABLE
    known = _by_number(trt.ComputeCapability)
    if unknown := [name for name in asked if name not in known]:
        raise UsageError(
            f"TensorRT-RTX cannot build for compute capability {', '.join(unknown)}",
            fix=f"Choose among: {', '.join(known)}",
        )
    config.num_compute_capabilities = len(asked)
    for place, name in enumerate(asked):
        config.set_compute_capability(known[name], place)
    return f"compute capability {', '.join(asked)}"


def _by_number(capabilities: Any) -> dict[str, Any]:
    """`8.9` → the member `SM89`, in their order."""
    found: dict[str, Any] = {}
    for name in dir(capabilities):
        if match := re.fullmatch(r"SM(\d+)(\d)", name):
            found[f"{match[1]}.{match[2]}"] = getattr(capabilities, name)
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def user_managed_context(trt: Any, engine: Any, graphs: bool) -> Any:
    """A context of TensorRT without memory of its own: the caller gives it some."""
    return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)


def rtx_context(trt: Any, engine: Any, graphs: bool) -> Any:
    """A context of TensorRT-RTX, which allocates by itself, and captures graphs by itself.

    It compiles kernels for new shapes while it runs, so only it knows when a graph can be
    captured. With graphs, it captures one for each shape that it is given.
    """
    runtime_config = engine.create_runtime_config()
    if graphs:
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(runtime_config)


@dataclass(frozen=True)
class Flavor:
    """One member of the TensorRT family.

    Attributes:
        name: what the command line calls the backend.
        label: what a sentence calls it.
        module: the Python module to import.
        distributions: the packages that may have brought it, to ask for the version.
        extra: the extra of tfc that installs it.
        oldest: the oldest version whose API tfc is checked against.
        network_flags: major version → members of `NetworkDefinitionCreationFlag` that make a
            network strongly typed. Since TensorRT 11 every network is, and the flag is deprecated.
        builds_without_gpu: whether the builder works ahead of time.
        oldest_capability: the oldest compute capability that it has kernels for.
        opsets: version → the newest ONNX opset that its parser says it reads, from that version on.
        refused: options of a build that it does not have → why.
        times_kernels: whether the builder times kernels, and can be given the times of earlier
            builds. TensorRT-RTX chooses kernels when it loads a plan; since 1.2 its timing cache
            does nothing.
        target_hardware: sets what the plan is for, of the GPUs present and those asked for; returns
            it as words for the manifest.
        create_context: makes an execution context, with CUDA graphs or without; None on failure.
        shares_activations: whether the caller gives its contexts the memory to compute in.
        captures_graphs: whether the caller captures CUDA graphs.
    """

    name: str
    label: str
    module: str
    distributions: tuple[str, ...]
    extra: str
    oldest: tuple[int, int]
    network_flags: Mapping[int, tuple[str, ...]]
    builds_without_gpu: bool
    times_kernels: bool
    oldest_capability: str
    opsets: Mapping[tuple[int, int], int]
    refused: Mapping[str, str]
    target_hardware: Callable[[Any, Any, Sequence[Gpu], Sequence[str]], str]
    create_context: Callable[[Any, Any, bool], Any]
    shares_activations: bool
    captures_graphs: bool

    def version(self) -> str:
        """The installed version, without importing it; empty where it is not installed."""
        if importlib.util.find_spec(self.module) is None:
            return ""
        for distribution in self.distributions:
            try:
                return importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
        return ""

    def missing(self) -> MissingPackage | None:
        """The error that says why the package cannot be used; none where it can."""
        version = self.version()
        fix = f"Install it with: pip install 'tfc[{self.extra}]'"
        if not version:
            return MissingPackage(f"the package '{self.module}' is not installed", fix=fix)
        if numbers_of_version(version) < self.oldest:
            oldest = ".".join(str(number) for number in self.oldest)
            return MissingPackage(f"{self.label} {version} is older than {oldest}", fix=fix)
        return None

    def load(self) -> Any:
        """The module, imported.

        Raises:
            MissingPackage: it is not installed, or too old.
            BackendUnavailable: it is installed and cannot be loaded.
        """
        if problem := self.missing():
            raise problem
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendUnavailable(
                f"{self.label} is installed but cannot be loaded: {error}",
                fix=f"Install it again with: pip install --force-reinstall 'tfc[{self.extra}]'",
            ) from error

    def creation_flags(self, trt: Any) -> int:
        """The flags for `create_network` that make this version's networks strongly typed."""
        major = numbers_of_version(self.version())[0]
        flags = self.network_flags.get(major, ())
        return sum(1 << int(getattr(trt.NetworkDefinitionCreationFlag, flag)) for flag in flags)


FLAVORS = {
    "tensorrt": Flavor(
        name="tensorrt",
        label="TensorRT",
        module="tensorrt",
        distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        extra="tensorrt",
        oldest=(10, 13),
        network_flags={10: ("STRONGLY_TYPED",)},
        builds_without_gpu=False,
        times_kernels=True,
        oldest_capability=TURING,
        opsets={(10, 15): 24, (11, 0): 25},
        refused={},
        target_hardware=target_this_gpu,
        create_context=user_managed_context,
        shares_activations=True,
        captures_graphs=True,
    ),
    "tensorrt-rtx": Flavor(
        name="tensorrt-rtx",
        label="TensorRT-RTX",
        module="tensorrt_rtx",
        distributions=("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
        extra="rtx",
        oldest=(1, 7),
        network_flags={},
        builds_without_gpu=True,
        times_kernels=False,
        oldest_capability=TURING,
        opsets={},
        refused={
            REFIT: "TensorRT-RTX builds in seconds, and a refittable plan on a machine with a GPU"
            " only",
            VERSION_COMPATIBLE: "a plan of TensorRT-RTX runs with the version that built it, which"
            " has no runtime to put into the plan",
            HARDWARE_COMPATIBLE: "a plan of TensorRT-RTX runs on every GPU of the compute"
            " capabilities that it is built for (--sm)",
        },
        target_hardware=target_rtx_gpus,
        create_context=rtx_context,
        shares_activations=False,
        captures_graphs=False,
    ),
}


def numbers_of_version(version: str) -> tuple[int, int]:
    """(major, minor) of a version: (10, 13) of ``10.13.3.9``; (0, 0) of one without numbers."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
