"""Looking for GPUs, and, where there is one, running an engine on it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.errors import UsageError
from tfc.runtime import gpu
from tfc.runtime.backends.base import Inputs, Profile, Range
from tfc.runtime.backends.tensorrt import TENSORRT, TENSORRT_RTX, TensorRTBackend
from tfc.runtime.gpu import Gpu, gpus, why_no_gpu

LAYER = (Path(__file__).parent.parent / "data" / "encoder_layer.onnxtxt").read_text()
WEIGHTS = {
    "w_qkv": (64, 192),
    "b_qkv": (192,),
    "w_out": (64, 64),
    "b_out": (64,),
    "w_up": (64, 256),
    "b_up": (256,),
    "w_down": (256, 64),
    "b_down": (64,),
    **dict.fromkeys(("g_1", "b_1", "g_2", "b_2"), (64,)),
}
# ONNX Runtime's Attention on the CPU wants a row of the mask for each query: all rows are alike.
ONE_ROW = "keep = Unsqueeze (allowed, middle)"
ALL_ROWS = """
    row = Unsqueeze (allowed, middle)
    never = Not (row)
    ones = Or (row, never)
    column = Transpose <perm = [0, 1, 3, 2]> (ones)
    keep = And (row, column)
"""
# Both sides round to fp16 after each operation, in different orders: a few units in the last
# place of values near 1, where one unit is 0.001.
TOLERANCE = 5e-3


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


def save_layer(path: Path, text: str, dtype: str = "float16") -> Path:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(text.replace("float16", dtype.replace("float32", "float")))
    random = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        values = (random.standard_normal(shape) * 0.1).astype(np.float16).astype(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


def batch_of(batch: int, tokens: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(batch)
    mask = np.ones((batch, tokens), np.int64)
    mask[0, tokens // 2 :] = 0
    return {"x": random.standard_normal((batch, tokens, 64)).astype(np.float16), "mask": mask}


def reference(folder: Path, batch: dict[str, np.ndarray], dtype: str = "float16") -> np.ndarray:
    """What ONNX Runtime computes for the batch on the CPU."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = save_layer(folder / "reference.onnx", LAYER.replace(ONE_ROW, ALL_ROWS), dtype)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (output,) = session.run(["y"], {"x": batch["x"].astype(dtype), "mask": batch["mask"]})
    return np.asarray(output)


@pytest.mark.ort
def test_the_tolerance_is_that_of_half_precision(tmp_path: Path) -> None:
    batch = batch_of(8, 64)
    half, single = (reference(tmp_path, batch, dtype) for dtype in ("float16", "float32"))
    worst = np.abs(half - single).max()
    assert TOLERANCE / 10 < worst < TOLERANCE


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason=f"needs a GPU: {why_no_gpu()}")
@pytest.mark.parametrize("backend", [TENSORRT, TENSORRT_RTX], ids=lambda backend: backend.name)
def test_an_engine_computes_what_onnx_runtime_computes(
    backend: TensorRTBackend, tmp_path: Path
) -> None:
    if problem := backend.availability().why_not_run:
        pytest.skip(problem)
    model = save_layer(tmp_path / "layer.onnx", LAYER)
    axes = ("batch", "sequence")
    inputs = Inputs({"x": ("float16", (*axes, 64)), "mask": ("int64", axes)})
    backend.build(model, tmp_path / "plan", inputs, Profile(Range(1, 4, 8), Range(1, 16, 64)))
    runner = backend.load(tmp_path / "plan")
    # A larger batch after a smaller one makes the buffers grow; then they are reused.
    for batch in (batch_of(2, 16), batch_of(8, 64), batch_of(1, 3)):
        expected = reference(tmp_path, batch)
        np.testing.assert_allclose(runner.run(batch)["y"], expected, atol=TOLERANCE, rtol=0)
    with pytest.raises(UsageError, match="this engine takes"):
        runner.run(batch_of(9, 16))
    runner.close()
    runner.close()
