"""The little of CUDA that running an engine takes: checked calls, and buffers that grow.

The functions take `cudart`, the module `cuda.bindings.runtime`, whose functions return a tuple:
an error code, then the results.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt

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


def free_bytes() -> int | None:
    """The memory of the GPU that nobody uses; None without the bindings of the CUDA runtime.

    Asking sets up CUDA in this process, whose own memory is taken then.

    Raises:
        BackendUnavailable: there is no GPU, or it refuses.
    """
    if not cudart_installed():
        return None
    cudart = load_cudart()
    code, *sizes = cudart.cudaMemGetInfo()
    free, _ = checked(cudart, (code, sizes))
    return int(free)


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


class DeviceBuffer:
    """Memory on the GPU that is kept between batches and grows when a larger one comes."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._size = 0
        self.address = 0

    def reserve(self, size: int) -> int:
        """Make room for `size` bytes; returns the address, never 0 (TensorRT refuses it)."""
        if self.address and size <= self._size:
            return self.address
        self.free()
        wanted = max(size, 1)
        self.address = int(checked(self._cudart, self._cudart.cudaMalloc(wanted)))
        self._size = wanted
        return self.address

    def upload(self, host: npt.NDArray[Any], stream: Any) -> None:
        """Queue the copy of a contiguous array to the buffer, which grows if it must."""
        self.reserve(host.nbytes)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        source = host.ctypes.data
        checked(
            self._cudart,
            self._cudart.cudaMemcpyAsync(self.address, source, host.nbytes, kind, stream),
        )

    def download(self, host: npt.NDArray[Any], stream: Any) -> None:
        """Queue the copy of the buffer's first bytes into a contiguous array."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target = host.ctypes.data
        checked(
            self._cudart,
            self._cudart.cudaMemcpyAsync(target, self.address, host.nbytes, kind, stream),
        )

    def free(self) -> None:
        """Give the memory back. Safe to call twice."""
        if not self.address:
            return
        address, self.address, self._size = self.address, 0, 0
        checked(self._cudart, self._cudart.cudaFree(address))


def float32_of_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 values, given as their bits, as float32: the bits are its upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
