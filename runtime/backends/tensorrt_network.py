"""An ONNX file → a TensorRT plan: parse, set the shapes, build, and list what was compiled.

The variables that hold TensorRT's objects have fixed names, here and in the runner (`builder`,
`network`, `parser`, `parser_error`, `config`, `shapes`, `tensor`, `layer`, `boundary`,
`attention`, `memory`, `timing`, `refitter`, `parser_refitter`, `runtime`, `engine`, `context`,
`inspector`): a test follows them to check every member that is used against the API of each
TensorRT version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.errors import BackendUnavailable, BadInput, UsageError
from tfc.runtime.backends.base import (
    DEFAULTS,
    BuildOptions,
    Inputs,
    Kernel,
    KernelTimings,
    Profile,
)
from tfc.runtime.backends.kernel_log import (
    kernels_by_profile,
    kernels_from_inspector,
    kernels_from_log,
    memory_from_log,
)
from tfc.runtime.backends.kernels import audit_of_kernels, least_fused
from tfc.runtime.backends.tensorrt_errors import (
    EXPORT,
    Room,
    build_refusal,
    collecting_logger,
    first_error,
    lacks_attention_kernel,
    messages_of,
    parser_refusal,
)
from tfc.runtime.backends.tensorrt_flavors import (
    HARDWARE_LEVELS,
    Flavor,
    hardware_of_level,
)
from tfc.runtime.backends.tensorrt_progress import build_with_progress
from tfc.runtime.gpu import Gpu, free_memory

_NO_PROFILE = -1  # what add_optimization_profile returns for a profile that it does not take


_REFITTABLE = (
    "the weights can be replaced, so nothing is folded into them; compare the speed with an engine "
    "without --refit: tfc bench"
)
_DECOMPOSED = (
    "TensorRT has no fused kernel for an attention of these types and sizes: it is computed from "
    "its products (fused attention takes fp16 or bf16, and head sizes of 16 to 256 that are "
    "multiples of 8)"
)


@dataclass(frozen=True)
class Plan:
    """A built plan: its bytes, what it is portable to, its kernels, and what to know about it.

    `kernels` and `memory` are as in `Built`.
    """

    data: bytes
    hardware: str
    kernels: tuple[Kernel, ...]
    notes: tuple[str, ...]
    memory: tuple[int, ...]


def plan_from_onnx(
    flavor: Flavor,
    model: Path,
    inputs: Inputs,
    profile: Profile,
    present: Sequence[Gpu],
    options: BuildOptions = DEFAULTS,
) -> Plan:
    """Build the ONNX file `model` for the shapes of `profile`.

    Where TensorRT has no fused kernel for an attention (in fp32, or for its sizes), the graph is
    built once more with leave to compute attention from its products, and a note says so.

    Raises:
        BadInput: TensorRT cannot read the file, or cannot build the graph.
        BackendUnavailable: TensorRT cannot work on this machine.
        UsageError: the profile does not fit the graph, or there is no such GPU to build for.
    """
    trt = flavor.load()
    build = _Build(flavor, trt, model, inputs, profile, present, options)
    tried = build.run(decompose=False)
    if tried.data is None and lacks_attention_kernel(first_error(trt, tried.logger)):
        tried = build.run(decompose=True)
    if tried.data is None:
        error = first_error(trt, tried.logger)
        free = free_memory(0) if present else None
        room = Room(profile.batch, free)
        raise build_refusal(flavor, error, model, messages_of(tried.logger), room)
    listed = _kernels(trt, tried.logger, tried.data, can_load=bool(present))
    kernels = least_fused(kernels_by_profile(listed))
    if not kernels:
        notes: tuple[str, ...] = ("the builder's log does not list the compiled kernels",)
    else:
        fused = audit_of_kernels(kernels).fused_attention
        notes = (_DECOMPOSED,) if fused < tried.decomposable else ()
    notes += (_REFITTABLE,) if options.refit else ()
    memory = memory_from_log(messages_of(tried.logger))
    if len(memory) != max(1, len(options.profiles)):
        memory = ()  # another version of the log: which profile a number is of is not told
    return Plan(tried.data, tried.hardware, kernels, notes, memory)


@dataclass(frozen=True)
class _Tried:
    """One attempt: the plan or None, what it was built for, the logger with what was said.

    `decomposable` is how many attentions were allowed to be computed from their products; some
    of them are compiled to fused kernels all the same.
    """

    data: bytes | None
    hardware: str
    logger: Any
    decomposable: int


@dataclass(frozen=True)
class _Build:
    """One graph and what it is built for."""

    flavor: Flavor
    trt: Any
    model: Path
    inputs: Inputs
    profile: Profile
    present: Sequence[Gpu]
    options: BuildOptions

    def run(self, *, decompose: bool) -> _Tried:
        """Build once."""
        logger = collecting_logger(self.trt)
        builder = _builder(self.flavor, self.trt, logger)
        network = builder.create_network(self.flavor.creation_flags(self.trt))
        _parse(self.flavor, self.trt, network, logger, self.model)
        decomposable = 0
        if decompose and hasattr(self.trt, "IAttention"):
            decomposable = _let_attention_be_decomposed(self.trt, network)
        config = builder.create_builder_config()
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED
        for profile in self.options.profiles or (self.profile,):
            _add_shapes(builder, config, network, self.inputs, profile, self.model)
        asked = self.options.compute_capabilities
        hardware = self.flavor.target_hardware(self.trt, config, self.present, asked)
        hardware = _set_plan_options(self.trt, config, self.options, self.present) or hardware
        timings = self.options.timings if self.flavor.times_kernels else None
        timing = _used_timings(config, timings) if timings is not None else None
        report = self.options.on_progress
        memory = build_with_progress(self.trt, builder, network, config, report)
        if timings is not None and memory is not None:
            _keep_timings(config, timing, timings)
        data = None if memory is None else bytes(memory)
        return _Tried(data, hardware, logger, decomposable)


def _set_plan_options(trt: Any, config: Any, options: BuildOptions, present: Sequence[Gpu]) -> str:
    """What the plan can do later; where it runs on other GPUs, those as words."""
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if not options.hardware_compatible:
        return ""
    member, _ = HARDWARE_LEVELS[options.hardware_compatible]
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, member)
    return hardware_of_level(options.hardware_compatible, present)


def _used_timings(config: Any, timings: KernelTimings) -> Any:
    """TensorRT takes no times of another version or GPU; then it begins with none.

    What is returned has to live until the build is over.
    """
    timing = config.create_timing_cache(timings.read())
    if timing is None or not config.set_timing_cache(timing, False):
        timing = config.create_timing_cache(b"")
        config.set_timing_cache(timing, False)
    return timing


def _keep_timings(config: Any, timing: Any, timings: KernelTimings) -> None:
    """Add the times of this build to those that others kept meanwhile."""

    def combined(kept: bytes) -> bytes:
        if kept and (other_timing := config.create_timing_cache(kept)) is not None:
            timing.combine(other_timing, False)
        memory = timing.serialize()
        return bytes(memory)

    timings.update(combined)


def _let_attention_be_decomposed(trt: Any, network: Any) -> int:
    """Called where TensorRT has attention of its own (10.14 and later): others decompose it.

    Returns how many there are.
    """
    changed = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            boundary = _as(trt.IAttentionInputLayer, layer)
            attention = boundary.attention
            attention.decomposable = True
            changed += 1
    return changed


def _as(kind: Any, value: Any) -> Any:
    """The bindings give every layer as an `ILayer`, and let it be taken as what it is."""
    value.__class__ = kind
    return value


def _builder(flavor: Flavor, trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11: the library's factory gave nothing
        raise BackendUnavailable(
            f"{flavor.label} cannot start its builder: {first_error(trt, logger)}",
            fix="Check the GPU and its driver: tfc doctor",
        ) from error


def _parse(flavor: Flavor, trt: Any, network: Any, logger: Any, model: Path) -> None:
    if not model.is_file():
        raise BadInput("there is no such ONNX file", where=str(model), fix="Run tfc export first")
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise parser_refusal(flavor, parser, model)
    # A file that is not ONNX at all can pass the parser as an empty graph.
    if network.num_outputs == 0:
        raise parser_refusal(flavor, parser, model)


def _add_shapes(
    builder: Any, config: Any, network: Any, inputs: Inputs, profile: Profile, model: Path
) -> None:
    """One optimization profile: the sizes of every axis of every input."""
    shapes = builder.create_optimization_profile()
    for name in _names_of_inputs(network, inputs, model):
        _, axes = inputs.tensors[name]
        sizes = [profile.of_axis(axis) for axis in axes]
        shapes.set_shape(
            name,
            tuple(size.min for size in sizes),
            tuple(size.opt for size in sizes),
            tuple(size.max for size in sizes),
        )
    if config.add_optimization_profile(shapes) == _NO_PROFILE:
        raise UsageError(
            f"the sizes {profile.as_json()} do not fit the inputs of this graph",
            where=str(model),
            fix="Each axis needs min <= opt <= max",
        )


def _names_of_inputs(network: Any, inputs: Inputs, model: Path) -> list[str]:
    names = []
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        names.append(str(tensor.name))
    if set(names) != set(inputs.tensors):
        raise BadInput(
            f"the graph has the inputs {sorted(names)}, but {sorted(inputs.tensors)} were declared",
            where=str(model),
            fix=EXPORT,
        )
    return names


def _kernels(trt: Any, logger: Any, data: bytes, *, can_load: bool) -> tuple[Kernel, ...]:
    """From the builder's log; where that lists none and a GPU is present, from the inspector."""
    kernels = kernels_from_log(messages_of(logger))
    if kernels or not can_load:
        return kernels
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True  # a version-compatible plan brings a runtime
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        return ()
    inspector = engine.create_engine_inspector()
    return kernels_from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
