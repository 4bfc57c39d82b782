"""An encoder layer in fp16, and what must hold of whatever runs it: with a GPU and without.

The checks take a runner. Tests run them on ONNX Runtime on the CPU everywhere, so that they are
known to work, and on each backend where there is a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.runtime.backends.base import Inputs, Profile, Range

LAYER = (Path(__file__).parent / "data" / "encoder_layer.onnxtxt").read_text()
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
AXES = ("batch", "sequence")
INPUTS = Inputs({"x": ("float16", (*AXES, 64)), "mask": ("int64", AXES)})
PROFILE = Profile(Range(1, 4, 8), Range(1, 16, 64))
# Smallest, best, largest; then smaller again: buffers have grown, and are reused.
SIZES = ((1, 1), (4, 16), (8, 64), (1, 3), (2, 16))
_CALLERS, _CALLS = 4, 12
_MANY_CALLS = 60
_SLACK = 4 << 20  # bytes: what drivers and allocators round up to, and one caller's arrays

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]


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


def check_sizes(run: Run, folder: Path) -> None:
    """At the smallest, best and largest sizes the outputs are ONNX Runtime's on the CPU."""
    for size in SIZES:
        batch = batch_of(*size)
        found = np.asarray(run(batch)["y"], np.float64)
        np.testing.assert_allclose(found, reference(folder, batch), atol=TOLERANCE, rtol=0)


def check_threads(run: Run, tolerance: float = 0.0) -> None:
    """Callers at once get what each gets alone, and keep it when the next batch runs."""
    batches = [batch_of(*size) for size in SIZES]
    alone = [np.array(run(batch)["y"], np.float64) for batch in batches]

    def caller(number: int) -> float:
        worst = 0.0
        for call in range(_CALLS):
            which = (number + call) % len(batches)
            found = run(batches[which])["y"]
            run(batches[which - 1])
            worst = max(worst, float(np.abs(found - alone[which]).max()))
        return worst

    with ThreadPoolExecutor(_CALLERS) as pool:
        assert max(pool.map(caller, range(_CALLERS))) <= tolerance


def check_memory(run: Run, used: Callable[[], int]) -> None:
    """Once every size has run, further batches take no further memory."""
    batches = [batch_of(*size) for size in SIZES]
    for batch in batches * 3:
        run(batch)
    before = used()
    for call in range(_MANY_CALLS):
        run(batches[call % len(batches)])
    gc.collect()
    assert used() - before <= _SLACK


def check_repeats(run: Run, other: Run, tolerance: float = 0.0) -> None:
    """Two ways of running give the same, the first time and when a batch comes again."""
    for size in SIZES:
        batch = batch_of(*size)
        for _ in range(4):
            one, two = (np.asarray(each(batch)["y"], np.float64) for each in (run, other))
            assert np.abs(one - two).max() <= tolerance
