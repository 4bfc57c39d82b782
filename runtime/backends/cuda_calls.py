"""The calls of the CUDA runtime that tfc makes, each checked: nothing else calls CUDA.

`cudart` is the module `cuda.bindings.runtime`, whose functions return a tuple: an error code, then
the results. Streams, events and graphs are the bindings' own objects; addresses are integers.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from tfc.errors import BackendUnavailable

MODULE = "cuda.bindings.runtime"


def cudart_installed() -> bool:
    """Whether the Python bindings of the CUDA runtime are installed."""
    try:
        return importlib.util.find_spec(MODULE) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def load_cudart() -> Any:
    """The Python bindings of the CUDA runtime."""
    return importlib.import_module(MODULE)


def checked(cudart: Any, answer: tuple[Any, ...]) -> Any:
    """The result in the answer of a CUDA call.

    Raises:
        BackendUnavailable: the call failed; the sentence has CUDA's name for the error.
    """
    code, *results = answer
    if code == cudart.cudaError_t.cudaSuccess:
        return results[0] if results else None
    _, text = cudart.cudaGetErrorString(code)
    if code == cudart.cudaError_t.cudaErrorMemoryAllocation:
        raise BackendUnavailable(
            "the GPU is out of memory", fix="Use a smaller batch, or free GPU memory"
        )
    raise BackendUnavailable(
        f"the GPU refuses: {text.decode()} ({code.name})",
        fix="Check the GPU and its driver: tfc doctor",
    )


class Cuda:
    """One device. Every method raises BackendUnavailable where CUDA refuses."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self.device = int(self._checked(cudart.cudaGetDevice()))

    def use(self) -> None:
        """Make the device current in this thread, where another library may have chosen one."""
        self._checked(self._cudart.cudaSetDevice(self.device))

    def malloc(self, size: int) -> int:
        """The address of `size` bytes on the device."""
        return int(self._checked(self._cudart.cudaMalloc(size)))

    def free(self, address: int) -> None:
        """Give memory of the device back; waits until the device does not use it."""
        self._checked(self._cudart.cudaFree(address))

    def malloc_host(self, size: int) -> int:
        """The address of `size` bytes of pinned host memory, which copies need to be overlapped."""
        flags = self._cudart.cudaHostAllocDefault
        return int(self._checked(self._cudart.cudaHostAlloc(size, flags)))

    def free_host(self, address: int) -> None:
        """Give pinned memory back."""
        self._checked(self._cudart.cudaFreeHost(address))

    def to_device(self, target: int, source: int, size: int, stream: Any) -> None:
        """Queue a copy from the host."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(self._cudart.cudaMemcpyAsync(target, source, size, kind, stream))

    def to_host(self, target: int, source: int, size: int, stream: Any) -> None:
        """Queue a copy from the device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(self._cudart.cudaMemcpyAsync(target, source, size, kind, stream))

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        flags = self._cudart.cudaStreamNonBlocking
        return self._checked(self._cudart.cudaStreamCreateWithFlags(flags))

    def destroy_stream(self, stream: Any) -> None:
        """Give a stream back."""
        self._checked(self._cudart.cudaStreamDestroy(stream))

    def synchronize(self, stream: Any) -> None:
        """Wait until everything in the stream is done; raises what went wrong in it."""
        self._checked(self._cudart.cudaStreamSynchronize(stream))

    def drain(self, stream: Any) -> None:
        """Wait for the stream after an error: that error is told, not one that follows from it."""
        self._cudart.cudaStreamSynchronize(stream)

    def begin_capture(self, stream: Any) -> None:
        """From here on, work for the stream is recorded and not run.

        Other threads may allocate meanwhile, which would end a capture in the global mode.
        """
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(self._cudart.cudaStreamBeginCapture(stream, mode))

    def end_capture(self, stream: Any) -> Any:
        """What was recorded, ready to be launched. The stream runs its work again, also on error.

        Raises:
            BackendUnavailable: something in between cannot be recorded.
        """
        graph = self._checked(self._cudart.cudaStreamEndCapture(stream))
        try:
            return self._checked(self._cudart.cudaGraphInstantiate(graph, 0))
        finally:
            self._checked(self._cudart.cudaGraphDestroy(graph))

    def forget_error(self) -> None:
        """Take back the last error of this thread, so that no later call tells it as its own."""
        self._cudart.cudaGetLastError()

    def launch(self, graph: Any, stream: Any) -> None:
        """Queue what was recorded."""
        self._checked(self._cudart.cudaGraphLaunch(graph, stream))

    def destroy_graph(self, graph: Any) -> None:
        """Give back what `end_capture` gave."""
        self._checked(self._cudart.cudaGraphExecDestroy(graph))

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        return checked(self._cudart, answer)
