"""`tfc optimize`: fuse and lower the exported graph for a target."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from tfc.artifact import MODEL, Artifact
from tfc.errors import BadArtifact, require
from tfc.manifest import Step
from tfc.steps.record import OnProgress, no_progress, onnxruntime_version, probe_feeds, versions_of


@dataclass(frozen=True)
class OptimizeResult:
    """The step's record (its `result` is the fusion report) and whether it was there already."""

    artifact: Artifact
    target: str
    file: str
    report: dict[str, Any]
    skipped: bool


def optimized_file(target: str, precision: str = "fp32") -> str:
    """The name of an optimized graph in the artifact."""
    suffix = "" if precision == "fp32" else f".{precision}"
    return f"optimized/{target}{suffix}.onnx"


def step_name(target: str) -> str:
    """The name of the step for one target."""
    return f"optimize:{target}"


def optimize(
    artifact: Artifact,
    target: str,
    *,
    allow_missed: bool = False,
    on_progress: OnProgress = no_progress,
) -> OptimizeResult:
    """Fuse residual add+LayerNorm and attention, lower for the target, check every pass.

    Args:
        artifact: an exported artifact.
        target: `onnxruntime` or `tensorrt`.
        allow_missed: keep the graph although a fusion was missed.
        on_progress: called with the pass under way.

    Raises:
        ContractNotReached: a fusion was missed.
        BadArtifact: the artifact's model is damaged.
    """
    for package in ("onnx", "onnx_ir", "onnxscript"):
        require(package, "compile")
    step = Step(
        name=step_name(target),
        options={"allow_missed": allow_missed},
        inputs={MODEL: artifact.sha256(MODEL)},
        outputs=[optimized_file(target)],
        versions={**versions_of("onnx-ir", "onnxscript"), **onnxruntime_version()},
        seconds=0.0,
    )
    file = optimized_file(target)
    earlier = artifact.up_to_date(step)
    if earlier is not None:
        return OptimizeResult(artifact, target, file, earlier.result, skipped=True)
    report = _run(artifact, step, target, allow_missed, on_progress)
    return OptimizeResult(artifact, target, file, report, skipped=False)


def _run(
    artifact: Artifact, step: Step, target: str, allow_missed: bool, on_progress: OnProgress
) -> dict[str, Any]:
    import onnx_ir as ir

    from tfc.optimizers import optimize as optimize_graph

    begun = time.perf_counter()
    path = artifact.file(MODEL)
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir have no common error for a broken file
        raise BadArtifact(
            "the file is not an ONNX model",
            where=str(path),
            fix="Export the checkpoint again with: tfc export --overwrite",
        ) from error
    graph, report = optimize_graph(
        model,
        target,
        probe_feeds(artifact),
        fusion_sites=artifact.manifest.fusion_sites,
        allow_missed=allow_missed,
        on_pass=on_progress,
    )
    result = report.as_json()
    with artifact.change() as change:
        ir.save(graph, change.path(step.outputs[0]))
        seconds = time.perf_counter() - begun
        change.record(dataclasses.replace(step, seconds=seconds, result=result))
    return result
