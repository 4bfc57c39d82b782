"""The table of backends, and which of them is the best that runs here.

A backend's module is imported when it is asked for, and its library only when it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from tfc.errors import BackendUnavailable, UsageError
from tfc.runtime.backends.fp8 import FP8, why_no_fp8

if TYPE_CHECKING:
    from tfc.runtime.backends.base import Availability, Backend


def _tensorrt() -> Backend:
    from tfc.runtime.backends.tensorrt import TENSORRT

    return TENSORRT


def _tensorrt_rtx() -> Backend:
    from tfc.runtime.backends.tensorrt import TENSORRT_RTX

    return TENSORRT_RTX


def _onnxruntime() -> Backend:
    from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend()


def _openvino() -> Backend:
    from tfc.runtime.backends.openvino import OpenVinoBackend

    return OpenVinoBackend()


# Best first: TensorRT times its kernels on the GPU that it builds for, TensorRT-RTX finishes
# portable ones on it, and ONNX Runtime's GPU kernels are fixed. OpenVINO, for CPUs, is last: it is
# taken where it is asked for, and for precisions that ONNX Runtime has no CPU kernels for.
_MAKERS: dict[str, Callable[[], Backend]] = {
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
BACKEND_NAMES = tuple(_MAKERS)

# (backend, hardware) → precisions that it has no kernels for. ONNX Runtime's CPU provider has
# neither MatMul nor LayerNormalization in bfloat16.
_NO_KERNELS = {("onnxruntime", "CPU"): frozenset({"bf16"})}


def backends() -> dict[str, Backend]:
    """Every backend by name, the preferred one first."""
    return {name: backend(name) for name in BACKEND_NAMES}


@functools.cache
def backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        UsageError: there is no backend of that name.
    """
    if name not in _MAKERS:
        raise UsageError(
            f"there is no backend '{name}'", fix=f"Choose one of: {', '.join(BACKEND_NAMES)}"
        )
    return _MAKERS[name]()


def choose_backend(precision: str) -> tuple[Backend, str]:
    """The best backend that can run graphs of `precision` here, and why it is that one.

    Raises:
        BackendUnavailable: none can.
    """
    passed_over: list[str] = []
    for name, candidate in backends().items():
        found = candidate.availability()
        reason = _why_not(found, precision)
        if reason:
            passed_over.append(reason)
            continue
        return candidate, _sentence(name, found, passed_over)
    raise BackendUnavailable(
        f"no backend can run {precision} engines here: {', '.join(passed_over)}",
        fix="See what is missing with: tfc doctor",
    )


def _why_not(found: Availability, precision: str) -> str:
    """Why the backend is passed over; empty where it can run graphs of `precision` here."""
    if not found.can_run:
        reason = found.why_not_run.partition(". ")[0]  # the second sentence is the fix
        reason = reason.rpartition(": ")[2]
        can = "builds here but cannot run" if found.can_build else "cannot run here"
        return f"{found.name} {can} ({reason})"
    return why_no_kernels(found, precision)


def why_no_kernels(found: Availability, precision: str) -> str:
    """Why the backend cannot compute in `precision` here; empty where it can."""
    if precision in _NO_KERNELS.get((found.name, found.hardware), ()):
        return f"{found.name} has no {precision} kernels for the {found.hardware}"
    if precision == FP8:
        return why_no_fp8(found)
    if precision == "int8" and found.name == "onnxruntime" and found.hardware != "CPU":
        return "onnxruntime has int8 kernels for the CPU only"
    return ""


def _sentence(name: str, found: Availability, passed_over: list[str]) -> str:
    place = "the CPU" if found.hardware == "CPU" else found.hardware
    chosen = f"{name} on {place}"
    return f"{chosen}: {', '.join(passed_over)}" if passed_over else f"{chosen}: the first choice"
