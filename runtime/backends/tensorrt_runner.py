"""Runs a TensorRT plan through `cuda-python`, without torch.

A `Lane` runs a batch; the runner checks it, chooses the optimization profile, and has as many lanes
as callers at once, up to a number. Written against the API of TensorRT 10.13 to 11.4 and
TensorRT-RTX 1.7 and the signatures of `cuda.bindings.runtime`, which tests check member by member.
It has not run on a GPU yet.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.errors import BackendUnavailable, BadArtifact, UsageError
from tfc.runtime.backends.base import Arrays, GpuMemory
from tfc.runtime.backends.cuda_calls import Cuda, load_cudart
from tfc.runtime.backends.cuda_memory import float32_of_bfloat16
from tfc.runtime.backends.device_tensor import DeviceTensor, on_device
from tfc.runtime.backends.lane_pool import LanePool
from tfc.runtime.backends.shape_profiles import (
    ShapeProfile,
    Shapes,
    chosen_profile,
    ranges_of_input,
)
from tfc.runtime.backends.tensorrt_errors import (
    REBUILD,
    collecting_logger,
    first_error,
    plan_refusal,
)
from tfc.runtime.backends.tensorrt_flavors import Flavor
from tfc.runtime.backends.tensorrt_lane import Lane, Plant, Port

_BFLOAT16 = "BF16"
# TensorRT's name of a data type → numpy's. numpy has no bfloat16: its bits travel as uint16.
_DTYPES: Mapping[str, npt.DTypeLike] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    _BFLOAT16: np.uint16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
# While one lane computes, another one copies; a third would only wait for the GPU.
LANES = 2


@dataclass(frozen=True)
class RunSettings:
    """How an engine is run: at most `lanes` batches at a time; with CUDA graphs or without."""

    lanes: int = LANES
    graphs: bool = True


DEFAULT_SETTINGS = RunSettings()


class TensorRTRunner:
    """A plan in GPU memory, with lanes for concurrent callers. See `Runner`.

    bfloat16 outputs come back as float32. `plan_bytes` is the size of the plan's file.
    """

    def __init__(
        self,
        flavor: Flavor,
        trt: Any,
        logger: Any,
        engine: Any,
        settings: RunSettings = DEFAULT_SETTINGS,
        plan_bytes: int = 0,
    ) -> None:
        self._flavor = flavor
        self._trt = trt
        self._logger = logger
        self._settings = settings
        self._plan_bytes = plan_bytes
        self._engine = engine
        self._ports = _ports_of_engine(trt, engine)
        self._profiles = _profiles_of_engine(engine, self._ports)
        self._cuda = Cuda(load_cudart())
        self._running = 0
        self._lock = threading.Lock()
        plant = Plant(flavor, trt, engine, self._cuda, self._ports, self._refusal, settings.graphs)
        self._pool: LanePool[Lane] = LanePool(lambda: Lane(plant), settings.lanes)
        with self._pool.lane(profile=0):
            pass  # the first lane is made now: what goes wrong is told when the engine is loaded

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one batch.

        Raises:
            UsageError: an input is missing, of another type, or outside the engine's shapes.
            BackendUnavailable: the GPU or TensorRT failed.
        """
        arrays = {port.name: _array(port, inputs) for port in self._ports if port.is_input}
        profile = self._profile({name: array.shape for name, array in arrays.items()})
        with self._lane(profile) as lane:
            outputs = lane.run(profile, arrays)
        datatypes = {port.name: port.datatype for port in self._ports}
        return {name: _readable(datatypes[name], array) for name, array in outputs.items()}

    def run_on_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceTensor]:
        """Run one batch of tensors on the GPU, by DLPack, without copies; the outputs stay there.

        Some inputs may be arrays. A tensor has the engine's own type, is contiguous, and is not
        changed while this runs. Raises as `run`, and BadInput for one that cannot be shared.
        """
        ports = [port for port in self._ports if port.is_input]
        host = {p.name: _array(p, inputs) for p in ports if not on_device(inputs.get(p.name))}
        shapes = {
            port.name: host[port.name].shape
            if port.name in host
            else tuple(inputs[port.name].shape)
            for port in ports
        }
        profile = self._profile(shapes)
        with self._lane(profile) as lane:
            tensors = {
                port.name: host[port.name]
                if port.name in host
                else _shared(port, inputs[port.name], lane.stream, self._cuda.device)
                for port in ports
            }
            return lane.run_on_device(profile, tensors)

    @property
    def memory(self) -> GpuMemory:
        """What it takes of the GPU's memory now, and with as many lanes as there may be."""
        lanes = self._pool.lanes
        return GpuMemory(
            plan=self._plan_bytes,
            lanes=len(lanes),
            most_lanes=self._settings.lanes,
            activations=max((lane.activation_bytes for lane in lanes), default=0),
            buffers=sum(lane.device_bytes for lane in lanes),
            pinned=sum(lane.pinned_bytes for lane in lanes),
        )

    @property
    def graphs(self) -> int:
        """How many CUDA graphs tfc has captured; TensorRT-RTX captures its own."""
        return sum(lane.graphs for lane in self._pool.lanes)

    def close(self) -> None:
        """Give back the GPU memory, when the batches that run are done. Safe to call twice."""
        lanes = self._pool.close()
        if lanes:
            self._cuda.use()
        for lane in lanes:
            lane.close()
        self._engine = None  # TensorRT frees it with the last reference

    def _profile(self, shapes: Shapes) -> int:
        index = chosen_profile(self._profiles, shapes)
        if index is not None:
            return index
        name = next(filter(None, (each.refused(shapes) for each in self._profiles)))
        raise UsageError(
            f"the input '{name}' has the shape {shapes[name]}; this engine takes"
            f" {ranges_of_input(self._profiles, name)}",
            fix="Use smaller batches, or build the engine for this shape: tfc build-engine",
        )

    @contextmanager
    def _lane(self, profile: int) -> Iterator[Lane]:
        """A lane for one batch, in whose thread the engine's device is the current one."""
        self._cuda.use()
        with self._pool.lane(profile) as lane:
            with self._lock:
                if not self._running:
                    del self._logger.said[:]  # of batches before: their errors are not this one's
                self._running += 1
            try:
                yield lane
            finally:
                with self._lock:
                    self._running -= 1

    def _refusal(self, what: str) -> BackendUnavailable:
        reason = first_error(self._trt, self._logger)
        return BackendUnavailable(
            f"{self._flavor.label} {what}: {reason}", fix="Check the GPU memory: tfc doctor"
        )


def runner_from_plan(
    flavor: Flavor, plan: Path, settings: RunSettings = DEFAULT_SETTINGS
) -> TensorRTRunner:
    """Load the plan in the file `plan` to run it on this machine's GPU.

    Raises:
        BadArtifact: the file is absent, cut short, or not a plan.
        BackendUnavailable: it was built with another version or for another GPU.
    """
    if not plan.is_file():
        raise BadArtifact("there is no such engine", where=str(plan), fix=REBUILD)
    trt = flavor.load()
    logger = collecting_logger(trt)
    engine = engine_from_plan(flavor, trt, logger, plan)
    return TensorRTRunner(flavor, trt, logger, engine, settings, plan.stat().st_size)


def engine_from_plan(flavor: Flavor, trt: Any, logger: Any, plan: Path) -> Any:
    """The engine in the file `plan`, deserialized; raises as `runner_from_plan` does."""
    runtime = trt.Runtime(logger)
    # A version-compatible plan brings a runtime of its own version. The artifact's hash is checked.
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise plan_refusal(flavor, first_error(trt, logger), plan)
    return engine


def _ports_of_engine(trt: Any, engine: Any) -> tuple[Port, ...]:
    ports = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        datatype = str(engine.get_tensor_dtype(name).name)
        if datatype not in _DTYPES or (is_input and datatype == _BFLOAT16):
            raise BadArtifact(
                f"the engine's tensor '{name}' is of the type {datatype}, which has no numpy form",
                fix="Export the model with integer inputs and floating-point outputs",
            )
        ports.append(Port(name, is_input, datatype, np.dtype(_DTYPES[datatype])))
    return tuple(ports)


def _profiles_of_engine(engine: Any, ports: tuple[Port, ...]) -> tuple[ShapeProfile, ...]:
    names = [port.name for port in ports if port.is_input]
    found = []
    for index in range(engine.num_optimization_profiles):
        inputs = {}
        for name in names:
            sizes = engine.get_tensor_profile_shape(name, index)
            smallest, best, largest = (tuple(size) for size in sizes)
            inputs[name] = (smallest, best, largest)
        found.append(ShapeProfile(inputs))
    return tuple(found)


def _array(port: Port, inputs: Arrays) -> npt.NDArray[Any]:
    """The input of `port`, contiguous and in the type of the engine."""
    if port.name not in inputs:
        raise UsageError(
            f"the input '{port.name}' is missing", fix=f"The batch has {sorted(inputs)}"
        )
    array = inputs[port.name]
    if not np.can_cast(array.dtype, port.dtype, "safe"):
        raise UsageError(
            f"the input '{port.name}' is of type {array.dtype}; this engine takes {port.dtype}",
            fix=f"Convert it with .astype('{port.dtype}')",
        )
    return np.ascontiguousarray(array, port.dtype)


def _shared(port: Port, tensor: Any, stream: int, device: int) -> DeviceTensor:
    """The memory of an input that is on the GPU.

    Raises:
        UsageError: it is of another type, or on another GPU.
        BadInput: it cannot be shared.
    """
    found = DeviceTensor.of(port.name, tensor, stream)
    if found.dtype != port.dtype:
        raise UsageError(
            f"the input '{port.name}' is of type {found.dtype}; this engine takes {port.dtype}",
            fix="Convert it on the GPU first",
        )
    place = found.__dlpack_device__()[1]
    if place != device:
        raise UsageError(
            f"the input '{port.name}' is on GPU {place}; this engine is on GPU {device}",
            fix="Move it there first",
        )
    return found


def _readable(datatype: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return float32_of_bfloat16(array) if datatype == _BFLOAT16 else array
