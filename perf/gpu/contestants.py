"""Who is measured: each takes a batch of numpy arrays and gives the outputs as numpy arrays.

Copies to the GPU and back are part of it for everybody: that is what a batch job pays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import rtx
from models import Feed, Model
from results import Skip

EAGER, SDPA, COMPILE = "torch-eager", "torch-sdpa", "torch-compile"
ORT_RAW, ORT_FUSED, RTX, TENSORRT = "onnxruntime-raw", "onnxruntime-fused", "rtx", "tensorrt"
WITHOUT_GRAPHS = "-without-graphs"  # the ending of a contestant's name
NAMES = (EAGER, SDPA, COMPILE, ORT_RAW, ORT_FUSED, RTX, TENSORRT)
TORCH = (EAGER, SDPA, COMPILE)


@dataclass(frozen=True)
class Where:
    """The device and the precision that contestants run in."""

    device: str
    precision: str
    work: Path


@dataclass(frozen=True)
class Opened:
    """A loaded contestant."""

    run: Callable[[Feed], Mapping[str, np.ndarray]]
    close: Callable[[], None]


def opened(name: str, model: Model, where: Where) -> Opened:
    """Load a contestant. Raises Skip where it cannot run here."""
    if name in TORCH:
        return Opened(torch_call(model, where, name), _nothing)
    if name in (ORT_RAW, ORT_FUSED):
        return _onnxruntime(name, model, where)
    return rtx_opened(name, model, where)


def torch_call(
    model: Model, where: Where, form: str, precision: str | None = None
) -> Callable[[Feed], Mapping[str, np.ndarray]]:
    """The checkpoint in PyTorch, on the device, in the precision."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[precision or where.precision]
    attention = "eager" if form == EAGER else "sdpa"
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        model.checkpoint, dtype=dtype, attn_implementation=attention
    )
    module: Any = loaded.to(where.device).eval()
    if form == COMPILE:
        module = torch.compile(module, dynamic=False)

    def call(feed: Feed) -> Mapping[str, np.ndarray]:
        with torch.inference_mode():
            given = {
                name: torch.from_numpy(array).to(where.device, non_blocking=True)
                for name, array in feed.items()
            }
            return {"logits": module(**given).logits.float().cpu().numpy()}

    return call


def _onnxruntime(name: str, model: Model, where: Where) -> Opened:
    from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend
    from tfc.runtime.backends.onnxruntime_provider import CPU, best_provider

    if where.device != "cpu" and best_provider().name == CPU:
        raise Skip("ONNX Runtime's CUDA provider does not work here: see the stage environment")
    backend = OnnxRuntimeBackend()
    if name == ORT_RAW:
        graph = models.raw_graph(model, where.precision)
    else:
        graph = models.graph_in(model, backend.target, where.precision)
    runner = backend.load(graph)
    return Opened(runner.run, runner.close)


def rtx_opened(name: str, model: Model, where: Where) -> Opened:
    """TensorRT or TensorRT-RTX, in the form of a plan that the stage `rtx` found to work."""
    flavor = name.removesuffix(WITHOUT_GRAPHS)
    form = rtx.working_form(where.work / "results", flavor)
    plan = rtx.built(flavor, form, model, where.precision)
    runner = rtx.load(plan, graphs=name == flavor)
    return Opened(runner.run, runner.close)


def _nothing() -> None:
    """PyTorch has no call that gives a model back."""


def distance(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How far two outputs are from each other, as floats; NaN never passes for a number."""
    one, other = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    return {
        "max_abs": float(np.abs(one - other).max()),
        "relative": float(np.linalg.norm(one - other) / np.linalg.norm(other)),
        "cosine": float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other))),
        "finite": bool(np.isfinite(one).all()),
    }
