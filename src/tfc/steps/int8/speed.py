"""Which of several int8 graphs ONNX Runtime runs fastest here, measured in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfc.artifact import Artifact
from tfc.runtime.backends import backend
from tfc.runtime.throughput import Call, Workload, measure
from tfc.steps.benchmark.workloads import full_batch
from tfc.steps.int8.forms import DYNAMIC, Form
from tfc.steps.int8.prepare import Prepared
from tfc.steps.profiles import profile_of
from tfc.steps.record import OnProgress

_FP32 = "fp32"
_SECONDS = 1.5  # for each graph, in five blocks
# `dynamic` has to be faster by this factor: less is within what the machine drifts, and with fixed
# ranges what is said of a text does not depend on the texts beside it in the batch.
_CLEARLY = 1.1


def faster_first(
    artifact: Artifact, given: Prepared, forms: Sequence[Form], on_progress: OnProgress
) -> tuple[list[Form], dict[str, Any]]:
    """The forms, the one to prefer first, by their speed with all sites at the best sizes.

    And how many times as fast as fp32 each is, for the manifest.
    """
    from tfc.onnx_files import save_onnx

    profile = profile_of(artifact, None, None)
    batch, length = profile.batch.opt, profile.sequence.opt
    tokens = batch * length
    feeds = (full_batch(artifact, batch, length),)
    workload = Workload(f"{batch}×{length}", feeds, batch, tokens, tokens)
    engine = backend("onnxruntime")
    runs: dict[str, Call] = {}
    on_progress("measuring the forms", 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        graphs = {_FP32: given.model, **{form.name: form.graph(given.sites) for form in forms}}
        for name, graph in graphs.items():
            path = Path(folder) / f"{name}.onnx"
            save_onnx(graph, path)
            runs[name] = engine.load(path).run
        cell = measure(runs, workload, seconds=_SECONDS, baseline=_FP32)
    on_progress("measuring the forms", 1, 1)
    ratios = {form.name: cell.ratios[form.name] for form in forms}
    handicap = {DYNAMIC: _CLEARLY}
    ordered = sorted(forms, key=lambda form: -ratios[form.name] / handicap.get(form.name, 1.0))
    return ordered, {"batch": batch, "sequence": length, "times_fp32": ratios}
