"""Tensors on the GPU that are handed over without a copy, by the DLPack protocol, in and out.

The structures and numbers are those of `dlpack.h` 1.0 in its unversioned form, which every library
that speaks DLPack takes and gives.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from typing import Any

import numpy as np

from tfc.errors import BadInput, first_line
from tfc.runtime.backends.cuda_calls import Cuda

CPU_DEVICE, CUDA_DEVICE = 1, 2  # DLDeviceType
_CAPSULE = b"dltensor"
# (DLDataTypeCode, bits) → numpy's type. numpy lacks bfloat16: as in the runner, uint16 is its bits.
_DTYPES: dict[tuple[int, int], np.dtype[Any]] = {
    (0, 8): np.dtype(np.int8),
    (0, 32): np.dtype(np.int32),
    (0, 64): np.dtype(np.int64),
    (1, 8): np.dtype(np.uint8),
    (2, 16): np.dtype(np.float16),
    (2, 32): np.dtype(np.float32),
    (4, 16): np.dtype(np.uint16),
    (6, 8): np.dtype(np.bool_),
}
_CODES = {dtype: codes for codes, dtype in _DTYPES.items()}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_python = ctypes.pythonapi
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", _python)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)
_raw_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _python)
)
_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)


class DeviceTensor:
    """Contiguous memory on a GPU, with a shape and a numpy type. It speaks DLPack.

    `torch.from_dlpack(tensor)` and `cupy.from_dlpack(tensor)` take it as it is; it lives as long
    as they use it. Its values are complete: who made it has waited for the GPU.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        device: tuple[int, int],
        owner: object,
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self._device = device
        self._owner = owner

    @classmethod
    def empty(cls, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """New memory, given back when nobody uses the tensor any more.

        Raises:
            BackendUnavailable: the GPU is out of memory.
        """
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        owner = _Memory(cuda, size)
        return cls(owner.address, shape, dtype, (CUDA_DEVICE, cuda.device), owner)

    @classmethod
    def of(cls, name: str, tensor: Any, stream: int) -> DeviceTensor:
        """The memory of a tensor on a GPU, ready for the work that comes next in `stream`.

        Raises:
            BadInput: it cannot be shared, is not contiguous, or has a type that no engine reads.
        """
        try:
            capsule = tensor.__dlpack__(stream=stream)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise BadInput(
                f"the input '{name}' cannot be shared: {first_line(error)}",
                fix="Give a tensor without a gradient",
            ) from error
        # The capsule is kept, and never marked as used: its destructor gives the tensor back.
        managed = _Managed.from_address(_pointer(capsule, _CAPSULE))
        found = managed.tensor
        shape = tuple(found.shape[axis] for axis in range(found.ndim))
        dtype = _DTYPES.get((found.dtype.code, found.dtype.bits))
        if dtype is None or found.dtype.lanes != 1:
            raise BadInput(
                f"the input '{name}' has a type that no engine reads",
                fix="Convert it to the type in the artifact's signature",
            )
        if found.strides and not _contiguous(shape, found.strides):
            raise BadInput(f"the input '{name}' is not contiguous", fix="Call .contiguous() first")
        address = (found.data or 0) + found.byte_offset
        return cls(address, shape, dtype, (found.device.type, found.device.id), capsule)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's type of device, and which one."""
        return self._device

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: object = None,
        dl_device: object = None,
        copy: object = None,
    ) -> Any:
        """The tensor as a capsule. Nothing is queued that `stream` would have to wait for."""
        if (dl_device is not None and dl_device != self._device) or copy:
            raise BufferError("this tensor is shared where it is, and not copied")
        return _exported(self)


class _Memory:
    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.address = cuda.malloc(max(size, 1))

    def __del__(self) -> None:
        address = getattr(self, "address", 0)
        if address:
            self._cuda.free(address)


def on_device(tensor: object) -> bool:
    """Whether a tensor speaks DLPack and is on an NVIDIA GPU."""
    place = getattr(tensor, "__dlpack_device__", None)
    return place is not None and int(place()[0]) == CUDA_DEVICE


def _contiguous(shape: tuple[int, ...], strides: Any) -> bool:
    expected = 1
    for axis in range(len(shape) - 1, -1, -1):
        if shape[axis] != 1 and strides[axis] != expected:
            return False
        expected *= shape[axis]
    return True


# What others use now, by a number that stands in the structure: it must not be collected.
_shared: dict[int, tuple[Any, ...]] = {}
_numbers = itertools.count(1)
_lock = threading.Lock()


def _forget(managed: Any) -> None:
    with _lock:
        _shared.pop(managed.contents.context, None)


def _drop(capsule: int) -> None:
    """Of a capsule that nobody took the tensor out of."""
    if _raw_is_valid(capsule, _CAPSULE):
        managed = _Managed.from_address(_raw_pointer(capsule, _CAPSULE))
        managed.deleter(ctypes.pointer(managed))


# C calls these: they must live as long as the process.
_give_back, _drop_capsule = _Deleter(_forget), _Destructor(_drop)


def _exported(tensor: DeviceTensor) -> Any:
    code, bits = _CODES[tensor.dtype]
    shape = (ctypes.c_int64 * tensor.ndim)(*tensor.shape)
    managed = _Managed()
    managed.tensor.data = tensor.address
    managed.tensor.device = _Device(*tensor.__dlpack_device__())
    managed.tensor.ndim = tensor.ndim
    managed.tensor.dtype = _DataType(code, bits, 1)
    managed.tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    number = next(_numbers)
    managed.context = number
    managed.deleter = _give_back
    with _lock:
        _shared[number] = (tensor, managed, shape)
    return _new_capsule(ctypes.addressof(managed), _CAPSULE, _drop_capsule)
