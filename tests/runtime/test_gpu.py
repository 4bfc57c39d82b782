"""Looking for GPUs, and waiting for one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from tfc.runtime import gpu
from tfc.runtime.gpu import Gpu, gpus, why_no_gpu


class Driver:
    """A stand-in for libcuda with one NVIDIA L4; `failing` names the call that fails."""

    def __init__(self, failing: str = "", count: int = 1) -> None:
        self.failing = failing
        self.count = count
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        answers: dict[str, Callable[..., int]] = {
            "cuDriverGetVersion": lambda *_: 12080,
            "cuDeviceGetCount": lambda *_: self.count,
            "cuDeviceGet": lambda index: index,
            "cuDeviceGetAttribute": lambda attribute, device: {75: 8, 76: 9}[attribute],
        }

        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == self.failing:
                return 999
            if name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA L4"
            elif name in answers:
                arguments[0]._obj.value = answers[name](*arguments[1:])
            return 0

        call.__name__ = name
        return call


def look_with(monkeypatch: pytest.MonkeyPatch, driver: object) -> None:
    monkeypatch.setattr(gpu, "_driver", lambda: driver)


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    look_with(monkeypatch, Driver())
    assert gpus() == (Gpu("NVIDIA L4", "8.9", "12.8"),)
    assert why_no_gpu() == ""


def test_a_driver_that_shows_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    look_with(monkeypatch, Driver(count=0))
    assert gpus() == ()
    assert why_no_gpu() == "the NVIDIA driver shows no GPU to this process"


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceGetName"])
def test_a_driver_that_fails(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    look_with(monkeypatch, Driver(failing=call))
    assert gpus() == ()
    assert why_no_gpu() == f"the NVIDIA driver refuses {call} (CUDA error 999)"


@pytest.mark.parametrize("failing", ["", "cuCtxSynchronize"])
def test_waiting_for_a_gpu_leaves_its_context_as_it_was(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    driver = Driver(failing)
    look_with(monkeypatch, driver)
    if failing:
        with pytest.raises(gpu.DriverError, match="refuses cuCtxSynchronize"):
            gpu.wait_for_gpu(0)
    else:
        gpu.wait_for_gpu(0)
    assert [name for name in driver.called if "Ctx" in name] == [
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent_v2",
        "cuCtxSynchronize",
        "cuCtxPopCurrent_v2",
        "cuDevicePrimaryCtxRelease_v2",
    ]


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpus() == ()
    assert why_no_gpu().startswith("no NVIDIA driver is installed here")
