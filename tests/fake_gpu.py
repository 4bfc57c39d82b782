"""Stand-ins for CUDA and TensorRT that do nothing before somebody waits for it.

GPU memory is host memory. What is queued in a stream runs when the stream is synchronized, so that
whoever reads a result or reuses a buffer too early gets wrong numbers. Freed memory that is still
queued for, a capture of a context whose deferred work has not run, and a graph whose context has
other shapes by now are assertions.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

ERROR, INTERNAL_ERROR = "ERROR", "INTERNAL_ERROR"
USER_MANAGED, WHOLE_GRAPH_CAPTURE = "user managed", "whole graph capture"
TRT = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
    ILogger=SimpleNamespace(ERROR=ERROR, INTERNAL_ERROR=INTERNAL_ERROR),
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=USER_MANAGED),
    CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE=WHOLE_GRAPH_CAPTURE),
)
OK, NO_MEMORY, BROKEN = (SimpleNamespace(name=name) for name in ("ok", "memory", "cudaErrorX"))
DEVICE = 3
Answer = tuple[Any, ...]
Shape = tuple[int, ...]


@dataclass
class Work:
    """One thing in a stream: what it is called, the memory that it uses, what it does."""

    what: str
    addresses: tuple[int, ...]
    do: Callable[[], None]


class Cudart:
    """CUDA; `said` is what was called, in order; what fails is set by the tests."""

    def __init__(self) -> None:
        self.cudaStreamNonBlocking = 1
        self.cudaHostAllocDefault = 0
        self.cudaError_t = SimpleNamespace(cudaSuccess=OK, cudaErrorMemoryAllocation=NO_MEMORY)
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        self.room = 1 << 20
        self.sync_answer = self.capture_answer = OK
        self.said: list[tuple[str, Any]] = []
        self.mallocs: list[int] = []
        self.held: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.lock = threading.RLock()
        self.count = 100

    def new(self) -> int:
        with self.lock:
            self.count += 1
            return self.count

    def queue(self, stream: int, work: Work) -> None:
        with self.lock:
            recording = self.capturing.get(stream)
            (self.streams[stream] if recording is None else recording).append(work)
            self.said.append((work.what, stream))

    def check_unused(self, address: int) -> None:
        for queue in self.streams.values():
            assert all(address not in work.addresses for work in queue), "freed while in use"

    def cudaGetDevice(self) -> Answer:
        return OK, DEVICE

    def cudaSetDevice(self, device: int) -> Answer:
        assert device == DEVICE
        return (OK,)

    def cudaMalloc(self, size: int) -> Answer:
        if size > self.room:
            return NO_MEMORY, None
        memory = ctypes.create_string_buffer(size)
        with self.lock:
            self.held[ctypes.addressof(memory)] = memory
            self.mallocs.append(size)
        return OK, ctypes.addressof(memory)

    def cudaFree(self, address: int) -> Answer:
        with self.lock:
            self.check_unused(address)
            del self.held[address]
        return (OK,)

    def cudaHostAlloc(self, size: int, flags: int) -> Answer:
        memory = ctypes.create_string_buffer(size)
        with self.lock:
            self.pinned[ctypes.addressof(memory)] = memory
        return OK, ctypes.addressof(memory)

    def cudaFreeHost(self, address: int) -> Answer:
        with self.lock:
            self.check_unused(address)
            del self.pinned[address]
        return (OK,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: int, stream: int
    ) -> Answer:
        device, host = (target, source) if kind == 1 else (source, target)
        assert size <= len(self.held[device])
        assert size <= len(self.pinned[host]), "not pinned: the copy would not overlap"
        what = "copy in" if kind == 1 else "copy out"

        def copy() -> None:
            ctypes.memmove(target, source, size)

        self.queue(stream, Work(what, (target, source), copy))
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Answer:
        stream = self.new()
        self.streams[stream] = []
        return OK, stream

    def cudaStreamDestroy(self, stream: int) -> Answer:
        assert not self.streams.pop(stream)
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> Answer:
        assert stream not in self.capturing
        with self.lock:
            self.said.append(("synchronize", stream))
            queue, self.streams[stream] = self.streams[stream], []
        for work in queue:
            assert all(a in self.held or a in self.pinned for a in work.addresses)
            work.do()
        return (self.sync_answer,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Answer:
        self.capturing[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Answer:
        works = self.capturing.pop(stream)
        if self.capture_answer is not OK:
            return self.capture_answer, None
        return OK, works

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> Answer:
        number = self.new()
        self.graphs[number] = list(graph)
        return OK, number

    def cudaGraphDestroy(self, graph: list[Work]) -> Answer:
        graph.clear()
        return (OK,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> Answer:
        works = self.graphs[graph]
        addresses = tuple(a for work in works for a in work.addresses)

        def replay() -> None:
            for work in works:
                work.do()

        self.queue(stream, Work("launch", addresses, replay))
        return (OK,)

    def cudaGraphExecDestroy(self, graph: int) -> Answer:
        del self.graphs[graph]
        return (OK,)

    def cudaGetLastError(self) -> Answer:
        return (OK,)

    def cudaGetErrorString(self, code: SimpleNamespace) -> Answer:
        return OK, b"something broke"


class Context:
    """Doubles `ids` [batch, sequence] into `doubled`, in the type of the engine's output."""

    def __init__(self, engine: Engine, made_with: Any) -> None:
        self.engine = engine
        self.made_with = made_with
        self.active_optimization_profile = -1 if engine.contexts else 0
        self.addresses: dict[str, int] = {}
        self.shape: Shape = ()
        self.flushed = False  # whether it has run since its shape was changed
        self.memory: tuple[int, int] | None = None
        self.ran: list[Shape] = []

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.memory = address, size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.active_optimization_profile = profile
        self.shape, self.flushed = (), False
        return profile < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        smallest, _, largest = self.engine.profiles[self.active_optimization_profile]
        if shape != self.shape:
            self.shape, self.flushed = shape, False
        bounds = zip(smallest, shape, largest, strict=True)
        return all(least <= size <= most for least, size, most in bounds)

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> Shape:
        return (-1, 2) if self.engine.dynamic else self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self.addresses) == set(self.engine.types)
        cudart, shape, addresses = self.engine.cudart, self.shape, dict(self.addresses)
        if stream in cudart.capturing:
            assert self.flushed, "captured before its deferred work has run"
        self.flushed = True
        self.ran.append(shape)
        memory = (self.memory[0],) if self.memory else ()

        def compute() -> None:
            assert self.shape == shape, "a graph whose context has other shapes by now"
            count = int(np.prod(shape))
            ids = np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(addresses["ids"]))
            doubled = (ids * 2).astype(np.float32)
            data = doubled.tobytes()
            if self.engine.types["doubled"] == "BF16":
                data = (doubled.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            ctypes.memmove(addresses["doubled"], data, len(data))

        # A caller's own tensor is no memory of this CUDA.
        used = tuple(a for a in (*addresses.values(), *memory) if a in cudart.held)
        cudart.queue(stream, Work("enqueue", used, compute))
        return not self.engine.failing


class Engine:
    """An engine of one input and one output, with one profile or more."""

    num_io_tensors = 2
    device_memory_size_v2 = 64

    def __init__(
        self,
        cudart: Cudart,
        output: str = "FLOAT",
        *,
        dynamic: bool = False,
        profiles: Iterable[tuple[Shape, Shape, Shape]] = (((1, 1), (2, 4), (4, 8)),),
    ) -> None:
        self.cudart = cudart
        self.types = {"ids": "INT64", "doubled": output}
        self.profiles = list(profiles)
        self.dynamic = dynamic
        self.failing = False
        self.contexts: list[Context] = []

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "ids" else "out"

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self.types[name])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        return list(self.profiles[profile])

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, made_with: Any) -> Context:
        context = Context(self, made_with)
        self.contexts.append(context)
        return context
