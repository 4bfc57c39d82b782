"""A lane: an execution context with a stream and buffers of its own. It runs a batch at a time.

In its stream, in this order: the inputs are copied from pinned memory to the device, the engine
runs, as many bytes of the outputs as there are are copied to pinned memory. A lane is handed back
when its stream is done, so no buffer is used twice at a time; while one lane computes, another one
copies. What CUDA graphs there are is the lane's own: TensorRT wants a context for each, since a
context keeps state of its shapes, and lets contexts that never run together share their memory.
TensorRT-RTX captures graphs by itself: one context does so, for the batches that are worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.errors import BackendUnavailable, BadArtifact
from tfc.runtime.backends.cuda_calls import Cuda
from tfc.runtime.backends.cuda_memory import DeviceBuffer, PinnedBuffer
from tfc.runtime.backends.device_tensor import DeviceTensor
from tfc.runtime.backends.graph_policy import Decision, GraphKey, GraphPolicy
from tfc.runtime.backends.shape_profiles import Shape, Shapes
from tfc.runtime.backends.tensorrt_flavors import Flavor

Array = npt.NDArray[Any]
# What went wrong → the error, with TensorRT's own reason.
Refusal = Callable[[str], BackendUnavailable]


@dataclass(frozen=True)
class Port:
    """One tensor that goes into an engine or comes out of it."""

    name: str
    is_input: bool
    datatype: str
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Plant:
    """What the lanes of one engine have in common."""

    flavor: Flavor
    trt: Any
    engine: Any
    cuda: Cuda
    ports: Sequence[Port]
    refusal: Refusal
    graphs: bool


@dataclass(frozen=True)
class Prepared:
    """A context with its shapes and addresses set, and the shapes of its outputs."""

    context: Any
    outputs: Mapping[str, Shape]


@dataclass(frozen=True)
class Captured:
    """A CUDA graph, with the context that it was captured from, which it needs."""

    graph: Any
    prepared: Prepared


class Lane:
    """See the module. Not for several threads at once: `LanePool` sees to that.

    Attributes:
        profile: the optimization profile that it ran with last.
        why_no_graphs: why a capture failed; empty where none has.
    """

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._cuda = plant.cuda
        self._inputs = tuple(port for port in plant.ports if port.is_input)
        self._outputs = tuple(port for port in plant.ports if not port.is_input)
        self._device = {port.name: DeviceBuffer(plant.cuda) for port in plant.ports}
        self._pinned = {port.name: PinnedBuffer(plant.cuda) for port in plant.ports}
        self._activations = DeviceBuffer(plant.cuda)
        self._stream = plant.cuda.stream()
        self._policy = GraphPolicy(plant.graphs)
        self._captured: dict[GraphKey, Captured] = {}
        self.why_no_graphs = ""
        self._self_capturing: Any = None  # TensorRT-RTX's context with graphs, when it is needed
        try:
            self._context = self._new_context(graphs=False)
        except BackendUnavailable:
            self._free_memory()
            raise
        self.profile = int(self._context.active_optimization_profile)

    @property
    def activation_bytes(self) -> int:
        """Memory that the engine computes in, for all of the lane's contexts together."""
        return self._size_to_compute_in * (1 if self._self_capturing is None else 2)

    @property
    def device_bytes(self) -> int:
        """Memory of inputs and outputs on the device."""
        return sum(buffer.size for buffer in self._device.values())

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory."""
        return sum(buffer.size for buffer in self._pinned.values())

    @property
    def graphs(self) -> int:
        """How many CUDA graphs it has captured."""
        return len(self._captured)

    def run(self, profile: int, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch of host arrays, contiguous and in the engine's types.

        Raises:
            BackendUnavailable: the GPU or TensorRT failed.
            BadArtifact: the shape of an output depends on the data.
        """
        key = GraphKey(profile, tuple(arrays[port.name].shape for port in self._inputs))
        try:
            decision = self._policy.decide(key)
            captured = self._captured.get(key)
            if captured is not None:
                prepared = captured.prepared
                self._upload(arrays)
                self._cuda.launch(captured.graph, self._stream)
            else:
                prepared = self._prepared(self._context_for(decision), profile, arrays)
                self._upload(arrays)
                self._enqueue(prepared.context)
            views = self._queued_downloads(prepared.outputs)
            self._cuda.synchronize(self._stream)
        except BaseException:
            self._cuda.drain(self._stream)
            raise
        found = {name: view.copy() for name, view in views.items()}
        if decision is Decision.CAPTURE:
            self._capture(key, prepared)
        return found

    def run_on_device(
        self, profile: int, tensors: Mapping[str, Array | DeviceTensor]
    ) -> dict[str, DeviceTensor]:
        """Run a batch of which some inputs are on the device; the outputs stay there.

        The engine reads the tensors and writes the results where they are. Raises as `run`.
        """
        host = {name: each for name, each in tensors.items() if isinstance(each, np.ndarray)}
        try:
            context = self._context
            outputs = self._set_shapes(context, profile, {n: t.shape for n, t in tensors.items()})
            found = {
                port.name: DeviceTensor.empty(self._cuda, outputs[port.name], port.dtype)
                for port in self._outputs
            }
            self._reserve({name: array.nbytes for name, array in host.items()})
            addresses = {name: buffer.address for name, buffer in self._device.items()}
            addresses |= {
                name: each.address
                for name, each in {**tensors, **found}.items()
                if isinstance(each, DeviceTensor)
            }
            self._set_addresses(context, addresses)
            self._upload(host)
            self._enqueue(context)
            self._cuda.synchronize(self._stream)
        except BaseException:
            self._cuda.drain(self._stream)
            raise
        return found

    @property
    def stream(self) -> int:
        """The handle of its stream, for who hands over tensors on the device."""
        return int(self._stream)

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        if self._context is None:
            return
        self._forget_graphs()
        self._context = self._self_capturing = None  # freed with the last reference
        self._free_memory()

    @property
    def _size_to_compute_in(self) -> int:
        engine = self._plant.engine
        return int(engine.device_memory_size_v2)

    def _context_for(self, decision: Decision) -> Any:
        if decision is Decision.RUN:
            return self._context
        if self._plant.flavor.captures_graphs:
            return self._new_context(graphs=False)
        if self._self_capturing is None:
            self._self_capturing = self._new_context(graphs=True)
        return self._self_capturing

    def _new_context(self, *, graphs: bool) -> Any:
        plant = self._plant
        context = plant.flavor.create_context(plant.trt, plant.engine, graphs)
        if context is None:
            raise plant.refusal("cannot prepare this engine to run")
        if plant.flavor.shares_activations:
            self._activations.reserve(self._size_to_compute_in)
            context.set_device_memory(self._activations.address, self._activations.size)
        return context

    def _prepared(self, context: Any, profile: int, arrays: Mapping[str, Array]) -> Prepared:
        outputs = self._set_shapes(context, profile, {n: a.shape for n, a in arrays.items()})
        sizes = {name: array.nbytes for name, array in arrays.items()}
        for port in self._outputs:
            sizes[port.name] = _bytes_of(outputs[port.name], port.dtype)
        self._reserve(sizes)
        self._set_addresses(context, {name: b.address for name, b in self._device.items()})
        return Prepared(context, outputs)

    def _set_shapes(self, context: Any, profile: int, wanted: Shapes) -> dict[str, Shape]:
        """Choose the profile, set the inputs' shapes; gives the outputs' shapes."""
        refusal = self._plant.refusal
        if context.active_optimization_profile != profile:
            if not context.set_optimization_profile_async(profile, self.stream):
                raise refusal(f"does not take its optimization profile {profile}")
            if context is self._context:
                self.profile = profile
        for name, shape in wanted.items():
            if not context.set_input_shape(name, shape):
                raise refusal(f"does not take the shape {shape} of '{name}'")
        if missing := context.infer_shapes():
            raise refusal(f"cannot infer shapes from {sorted(missing)}")
        found = {port.name: tuple(context.get_tensor_shape(port.name)) for port in self._outputs}
        for name, shape in found.items():
            if any(size < 0 for size in shape):
                raise BadArtifact(
                    f"the shape of the output '{name}' depends on the data: {shape}",
                    fix="Export a model whose output shapes follow from its input shapes",
                )
        return found

    def _reserve(self, sizes: Mapping[str, int]) -> None:
        """Make room in every buffer, one byte where no size is told. Graphs know addresses."""
        moved = [buffer.reserve(sizes.get(name, 1)) for name, buffer in self._device.items()]
        if any(moved):
            self._forget_graphs()

    def _set_addresses(self, context: Any, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._plant.refusal(f"does not take the memory for '{name}'")

    def _upload(self, arrays: Mapping[str, Array]) -> None:
        for name, array in arrays.items():
            pinned = self._pinned[name]
            np.copyto(pinned.view(array.shape, array.dtype), array)
            target = self._device[name].address
            self._cuda.to_device(target, pinned.address, array.nbytes, self._stream)

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self.stream):
            raise self._plant.refusal("failed to run this batch")

    def _queued_downloads(self, outputs: Mapping[str, Shape]) -> dict[str, Array]:
        views = {}
        for port in self._outputs:
            view = self._pinned[port.name].view(outputs[port.name], port.dtype)
            target, source = self._pinned[port.name].address, self._device[port.name].address
            self._cuda.to_host(target, source, view.nbytes, self._stream)
            views[port.name] = view
        return views

    def _capture(self, key: GraphKey, prepared: Prepared) -> None:
        """Record the run of a context that has just run: TensorRT's deferred work is done by then.

        An engine may have what cannot be recorded; it then runs without graphs.
        """
        if not self._plant.flavor.captures_graphs:
            self._policy.captured(key)
            return
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue(prepared.context)
            finally:
                graph = self._cuda.end_capture(self._stream)
        except BackendUnavailable as error:
            self._cuda.forget_error()
            self.why_no_graphs = error.what
            self._policy.failed()
            self._forget_graphs()
            return
        self._captured[key] = Captured(graph, prepared)
        given_up = self._policy.captured(key)
        if given_up is not None:
            self._cuda.destroy_graph(self._captured.pop(given_up).graph)

    def _forget_graphs(self) -> None:
        for captured in self._captured.values():
            self._cuda.destroy_graph(captured.graph)
        self._captured.clear()
        self._policy.forget()

    def _free_memory(self) -> None:
        for buffer in (*self._device.values(), self._activations):
            buffer.free()
        for pinned in self._pinned.values():
            pinned.free()
        self._cuda.destroy_stream(self._stream)


def _bytes_of(shape: Shape, dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
