"""Runs a TensorRT plan through `cuda-python`, without torch.

Written against the API of TensorRT 10.13 to 11.4 and TensorRT-RTX 1.7 and the signatures of
`cuda.bindings.runtime`, which tests check member by member. It has not run on a GPU yet.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.errors import BackendUnavailable, BadArtifact, UsageError
from tfc.runtime.backends.base import Arrays
from tfc.runtime.backends.cuda_memory import (
    DeviceBuffer,
    checked,
    float32_of_bfloat16,
    load_cudart,
)
from tfc.runtime.backends.tensorrt_errors import (
    REBUILD,
    collecting_logger,
    first_error,
    plan_refusal,
)
from tfc.runtime.backends.tensorrt_flavors import Flavor

_PROFILE = 0  # tfc builds one optimization profile per engine
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


@dataclass(frozen=True)
class Port:
    """One tensor that goes into an engine or comes out of it."""

    name: str
    is_input: bool
    datatype: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of its elements; of bfloat16, the type of its bits."""
        return np.dtype(_DTYPES[self.datatype])


class TensorRTRunner:
    """A plan in GPU memory, with one execution context, one stream and buffers that are reused.

    Batches from several threads run one after the other. bfloat16 outputs come back as float32.
    """

    def __init__(self, flavor: Flavor, trt: Any, logger: Any, engine: Any) -> None:
        self._flavor = flavor
        self._trt = trt
        self._logger = logger
        self._cudart = load_cudart()
        self._lock = threading.Lock()
        self._engine = engine
        self._ports = _ports_of_engine(trt, engine)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise self._refusal("cannot prepare this engine to run")
        self._buffers = {port.name: DeviceBuffer(self._cudart) for port in self._ports}
        flags = self._cudart.cudaStreamNonBlocking
        self._stream = checked(self._cudart, self._cudart.cudaStreamCreateWithFlags(flags))

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one batch.

        Raises:
            UsageError: an input is missing, of another type, or outside the engine's shapes.
            BackendUnavailable: the GPU or TensorRT failed.
        """
        arrays = {port.name: _array(port, inputs) for port in self._ports if port.is_input}
        with self._lock:
            if self._context is None:
                raise UsageError("this engine is closed", fix="Load it again")
            del self._logger.said[:]
            self._set_shapes(arrays)
            outputs = self._empty_outputs()
            for name, array in arrays.items():
                self._buffers[name].upload(array, self._stream)
            self._execute(outputs)
        return {name: _readable(self._port(name), array) for name, array in outputs.items()}

    def close(self) -> None:
        """Give back the GPU memory. Safe to call twice."""
        with self._lock:
            if self._context is None:
                return
            self._context = self._engine = None  # TensorRT frees them with the last reference
            for buffer in self._buffers.values():
                buffer.free()
            checked(self._cudart, self._cudart.cudaStreamDestroy(self._stream))

    def _set_shapes(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, array.shape):
                raise self._shape_refusal(name, array.shape)
        if missing := self._context.infer_shapes():
            raise self._refusal(f"cannot infer shapes from {sorted(missing)}")

    def _empty_outputs(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays to copy the outputs into, in the shapes that follow from the inputs'."""
        outputs = {}
        for port in self._ports:
            if port.is_input:
                continue
            shape = tuple(self._context.get_tensor_shape(port.name))
            if any(size < 0 for size in shape):
                raise BadArtifact(
                    f"the shape of the output '{port.name}' depends on the data: {shape}",
                    fix="Export a model whose output shapes follow from its input shapes",
                )
            outputs[port.name] = np.empty(shape, port.dtype)
        return outputs

    def _execute(self, outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, array in outputs.items():
            self._buffers[name].reserve(array.nbytes)
        for name, buffer in self._buffers.items():
            if not self._context.set_tensor_address(name, buffer.address):
                raise self._refusal(f"does not take the memory for '{name}'")
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._refusal("failed to run this batch")
        for name, array in outputs.items():
            self._buffers[name].download(array, self._stream)
        checked(self._cudart, self._cudart.cudaStreamSynchronize(self._stream))

    def _port(self, name: str) -> Port:
        return next(port for port in self._ports if port.name == name)

    def _refusal(self, what: str) -> BackendUnavailable:
        reason = first_error(self._trt, self._logger)
        return BackendUnavailable(
            f"{self._flavor.label} {what}: {reason}", fix="Check the GPU memory: tfc doctor"
        )

    def _shape_refusal(self, name: str, shape: tuple[int, ...]) -> UsageError:
        sizes = self._engine.get_tensor_profile_shape(name, _PROFILE)
        smallest, _, largest = (tuple(size) for size in sizes)
        return UsageError(
            f"the input '{name}' has the shape {shape}; this engine takes {smallest} to {largest}",
            fix="Use smaller batches, or build the engine for this shape: tfc build-engine",
        )


def runner_from_plan(flavor: Flavor, plan: Path) -> TensorRTRunner:
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
    return TensorRTRunner(flavor, trt, logger, engine)


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
        ports.append(Port(name, is_input, str(engine.get_tensor_dtype(name).name)))
    for port in ports:
        if port.datatype not in _DTYPES or (port.is_input and port.datatype == _BFLOAT16):
            raise BadArtifact(
                f"the engine's tensor '{port.name}' is of the type {port.datatype}, which has no"
                " numpy form",
                fix="Export the model with integer inputs and floating-point outputs",
            )
    return tuple(ports)


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


def _readable(port: Port, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return float32_of_bfloat16(array) if port.datatype == _BFLOAT16 else array
