"""Which of several int8 graphs ONNX Runtime runs fastest here, measured in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfc.artifact import Artifact
from tfc.runtime.backends import backend
from tfc.runtime.throughput import measure
from tfc.steps.bench import full_batch
from tfc.steps.int8_search import Chosen
from tfc.steps.profiles import profile_of
from tfc.steps.record import OnProgress

if TYPE_CHECKING:
    import onnx_ir as ir

_FP32 = "fp32"
# For each graph, in five blocks. Forms differ by a tenth and more, or it does not matter which.
_SECONDS = 2.5


def fastest(
    artifact: Artifact, model: ir.Model, found: Sequence[Chosen], on_progress: OnProgress
) -> tuple[Chosen, dict[str, Any]]:
    """The fastest of the graphs at the profile's best sizes, and how much faster than fp32 each is.

    Args:
        artifact: gives the tokens and the profile.
        model: the fp32 graph.
        found: what to choose from.
        on_progress: called with what is under way.
    """
    from tfc.onnx_files import save_onnx

    profile = profile_of(artifact, None, None)
    batch, length = profile.batch.opt, profile.sequence.opt
    feed = full_batch(artifact, batch, length)
    runs: dict[str, Callable[[], object]] = {}
    engine = backend("onnxruntime")
    on_progress("measuring the forms", 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        graphs = {_FP32: model, **{one.form.name: one.form.graph(one.quantized) for one in found}}
        for name, graph in graphs.items():
            path = Path(folder) / f"{name}.onnx"
            save_onnx(graph, path)
            runs[name] = partial(engine.load(path).run, feed)
        cell = measure(runs, batch=batch, sequence=length, seconds=_SECONDS, baseline=_FP32)
    on_progress("measuring the forms", 1, 1)
    best = max(found, key=lambda one: cell.ratios[one.form.name])
    return best, {
        "batch": batch,
        "sequence": length,
        "times_fp32": {one.form.name: cell.ratios[one.form.name] for one in found},
    }
