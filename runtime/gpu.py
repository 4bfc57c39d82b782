"""The NVIDIA GPUs of this machine, asked of the driver itself.

The driver's library is reached through `ctypes`, so that looking needs no CUDA toolkit, no torch
and no subprocess. Asking initialises the driver in this process: a child forked afterwards cannot
use the GPU, so start workers with the `spawn` method.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NAME_BYTES = 256  # longer than any product name; the driver cuts a longer one
# Values of CUdevice_attribute in cuda.h; they have not changed since CUDA 5.
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use.

    Attributes:
        name: the product name, for example ``NVIDIA L4``.
        compute_capability: what its instruction set is, for example ``8.9``.
        driver_version: the newest CUDA version that the driver serves, for example ``13.0``.
    """

    name: str
    compute_capability: str
    driver_version: str


class DriverError(Exception):
    """The driver is absent or answers with an error; its text is the reason."""


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that this process may use, in CUDA's order; empty where there are none."""
    try:
        return _gpus_of_driver(_driver())
    except DriverError:
        return ()


def why_no_gpu() -> str:
    """Why `gpus` is empty, as a sentence without its final full stop; empty where it is not."""
    try:
        found = _gpus_of_driver(_driver())
    except DriverError as reason:
        return str(reason)
    return "" if found else "the NVIDIA driver shows no GPU to this process"


def free_memory(index: int) -> int | None:
    """The bytes that are free on a GPU; None where the driver does not tell."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        with _context_of(index) as driver:
            _ask(driver.cuMemGetInfo_v2, ctypes.byref(free), ctypes.byref(total))
    except DriverError:
        return None
    return free.value


def wait_for_gpu(index: int) -> None:
    """Wait until everything that this process has queued for a GPU is done, in every stream.

    Raises:
        DriverError: the driver is absent, or something that was queued has failed.
    """
    with _context_of(index) as driver:
        _ask(driver.cuCtxSynchronize)


@contextlib.contextmanager
def _context_of(index: int) -> Iterator[Any]:
    """The driver, with the primary context of a GPU as the thread's."""
    driver = _driver()
    _ask(driver.cuInit, 0)
    device = _integer(driver.cuDeviceGet, index)
    context, before = ctypes.c_void_p(), ctypes.c_void_p()
    _ask(driver.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    try:
        _ask(driver.cuCtxPushCurrent_v2, context)
        try:
            yield driver
        finally:
            _ask(driver.cuCtxPopCurrent_v2, ctypes.byref(before))
    finally:
        _ask(driver.cuDevicePrimaryCtxRelease_v2, device)


def _driver() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise DriverError("no NVIDIA driver is installed here") from error


def _gpus_of_driver(driver: Any) -> tuple[Gpu, ...]:
    _ask(driver.cuInit, 0)
    version = _integer(driver.cuDriverGetVersion)
    served = f"{version // 1000}.{version % 1000 // 10}"  # cuda.h: 1000 * major + 10 * minor
    count = _integer(driver.cuDeviceGetCount)
    return tuple(_gpu(driver, index, served) for index in range(count))


def _gpu(driver: Any, index: int, served: str) -> Gpu:
    device = _integer(driver.cuDeviceGet, index)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _ask(driver.cuDeviceGetName, name, _NAME_BYTES, device)
    major = _integer(driver.cuDeviceGetAttribute, _CAPABILITY_MAJOR, device)
    minor = _integer(driver.cuDeviceGetAttribute, _CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(errors="replace"), f"{major}.{minor}", served)


def _integer(function: Any, *arguments: int) -> int:
    """The integer that a driver function writes through its first argument."""
    value = ctypes.c_int()
    _ask(function, ctypes.byref(value), *arguments)
    return value.value


def _ask(function: Any, *arguments: Any) -> None:
    code = function(*arguments)
    if code != 0:
        raise DriverError(f"the NVIDIA driver refuses {function.__name__} (CUDA error {code})")
