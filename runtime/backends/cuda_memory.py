"""Buffers that are kept between batches and grow: on the device, and pinned on the host."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.runtime.backends.cuda_calls import Cuda


class DeviceBuffer:
    """Memory on the GPU that is kept between batches and grows when a larger one comes."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.size = 0
        self.address = 0

    def reserve(self, size: int) -> bool:
        """Make room for `size` bytes, at least one: TensorRT refuses the address 0.

        Returns whether the address is another one now.
        """
        if self.address and size <= self.size:
            return False
        self.free()
        wanted = max(size, 1)
        self.address = self._cuda.malloc(wanted)
        self.size = wanted
        return True

    def free(self) -> None:
        """Give the memory back. Safe to call twice."""
        if self.address:
            address, self.address, self.size = self.address, 0, 0
            self._cuda.free(address)


class PinnedBuffer:
    """Page-locked host memory: copies from and to it go on while the GPU computes."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.size = 0
        self.address = 0

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The buffer's first bytes as an array, which is valid until the buffer grows.

        The buffer grows if it must.
        """
        count = int(np.prod(shape, dtype=np.int64))
        self._reserve(count * dtype.itemsize)
        memory = (ctypes.c_uint8 * self.size).from_address(self.address)
        return np.ctypeslib.as_array(memory)[: count * dtype.itemsize].view(dtype).reshape(shape)

    def free(self) -> None:
        """Give the memory back. Safe to call twice."""
        if self.address:
            address, self.address, self.size = self.address, 0, 0
            self._cuda.free_host(address)

    def _reserve(self, size: int) -> None:
        if self.address and size <= self.size:
            return
        self.free()
        # A multiple of every item size, so that a view of no element is one too.
        wanted = max(size, np.dtype(np.complex128).itemsize)
        self.address = self._cuda.malloc_host(wanted)
        self.size = wanted


def float32_of_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 values, given as their bits, as float32: the bits are its upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
