"""`tfc optimize`: fuse and lower the exported graph for a target."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfc.artifact import Artifact, graph_file
from tfc.errors import BadArtifact, require
from tfc.manifest import MODEL, Step
from tfc.simplified_graph import source_file, source_sites
from tfc.steps.probes import probe_feeds
from tfc.steps.record import OnProgress, no_progress, onnxruntime_version, versions_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.stages import Selection


# The pass and its refusals (`tfc.optimizers.lowering.remove_padding`).
_REMOVE_PADDING, _PADDING_KIND = "remove padding", "remove_padding"


@dataclass(frozen=True)
class OptimizeResult:
    """The step's record (its `result` is the fusion report) and whether it was there already."""

    artifact: Artifact
    target: str
    files: dict[str, str]
    report: dict[str, Any]
    skipped: bool


def optimized_file(target: str, graph: str = MODEL, precision: str = "fp32") -> str:
    """The name of an optimized graph in the artifact."""
    suffix = "" if precision == "fp32" else f".{precision}"
    return f"optimized/{target}{suffix}/{graph_file(graph)}"


def step_name(target: str) -> str:
    """The name of the step for one target."""
    return f"optimize:{target}"


def optimize(
    artifact: Artifact | str | Path,
    target: str,
    *,
    allow_missed: bool = False,
    passes: Sequence[str] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    remove_padding: bool = False,
    on_progress: OnProgress = no_progress,
) -> OptimizeResult:
    """Fuse residual add+LayerNorm and attention, lower for the target, check every pass.

    Args:
        artifact: an exported artifact, or its path.
        target: `onnxruntime` (its CPU provider), `onnxruntime-cuda` or `tensorrt`.
        allow_missed: keep the graph although a fusion was missed.
        passes: modules, or `.py` files, with passes of your own (`tfc.optimizers.user_passes`);
            those of installed packages run too.
        only: run the passes of these names only.
        skip: leave out the passes of these names.
        remove_padding: run linear layers on packed tokens, with padding around attention only; for
            the target `onnxruntime`.
        on_progress: called with the pass under way.

    Raises:
        ContractNotReached: a fusion was missed, or padding cannot be removed.
        UsageError: there is no pass of such a name, or a module has none; or padding is not removed
            for the target.
        BadArtifact: the artifact's model is damaged.
    """
    artifact = Artifact.of(artifact)
    for package in ("onnx", "onnx_ir", "onnxscript"):
        require(package, "compile")
    files = {graph: optimized_file(target, graph) for graph in artifact.manifest.graphs}
    selection = selection_of(passes, only, skip, remove_padding)
    given = {
        "passes": [*passes],
        "only": [*only],
        "skip": [*skip],
        "remove_padding": remove_padding,
    }
    named = {key: value for key, value in given.items() if value}
    installed = [step.name for step in selection.extra] if not passes else []
    step = Step(
        name=step_name(target),
        options={
            "allow_missed": allow_missed,
            **named,
            **({"installed_passes": installed} if installed else {}),
        },
        inputs=_inputs(artifact),
        outputs=list(files.values()),
        versions={**versions_of("onnx-ir", "onnxscript"), **onnxruntime_version()},
        seconds=0.0,
    )
    earlier = artifact.up_to_date(step)
    if earlier is not None and not passes:  # a module of the user's may have changed
        return OptimizeResult(artifact, target, files, earlier.result, skipped=True)
    report = _run(artifact, step, target, selection, on_progress)
    return OptimizeResult(artifact, target, files, report, skipped=False)


def selection_of(
    passes: Sequence[str] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    remove_padding: bool = False,
) -> Selection:
    """The passes of installed packages and of the named modules, and which passes are to run.

    Raises:
        UsageError: a module cannot be loaded, or has no passes.
    """
    from tfc.optimizers.stages import Selection
    from tfc.optimizers.user_passes import installed_passes, passes_from_module

    own = [step for name in passes for step in passes_from_module(name)]
    return Selection((*installed_passes(), *own), tuple(only), tuple(skip), remove_padding)


def padding_note(report: dict[str, Any]) -> str:
    """What became of padding that was to be removed, from the report of the step."""
    entries = [e for e in report["passes"] if e["name"].endswith(_REMOVE_PADDING)]
    if any(entry["changed"] and not entry["reverted"] for entry in entries):
        return "linear layers run on packed tokens; padding is around attention only"
    reasons = [site["reason"] for site in report["left_alone"] if site["kind"] == _PADDING_KIND]
    return f"padding stays in the graph: {'; '.join(reasons) or 'the pass was undone'}"


def _run(
    artifact: Artifact, step: Step, target: str, selection: Selection, on_progress: OnProgress
) -> dict[str, Any]:
    from tfc.onnx_files import save_onnx
    from tfc.optimizers import optimize as optimize_graph
    from tfc.optimizers.stand_ins import with_stand_ins

    begun = time.perf_counter()
    reports: dict[str, dict[str, Any]] = {}
    with artifact.change() as change:
        for name in artifact.manifest.graphs:
            lowered, report = optimize_graph(
                with_stand_ins(loaded_graph(artifact, name)),
                target,
                probe_feeds(artifact, name),
                fusion_sites=source_sites(artifact, name),
                allow_missed=bool(step.options["allow_missed"]),
                selection=selection,
                on_pass=on_progress,
            )
            save_onnx(lowered, change.path(optimized_file(target, name)))
            reports[name] = report.as_json()
        result = _merged(reports)
        seconds = time.perf_counter() - begun
        change.record(dataclasses.replace(step, seconds=seconds, result=result))
    return result


def _inputs(artifact: Artifact) -> dict[str, str]:
    files = [source_file(artifact, graph) for graph in artifact.manifest.graphs]
    return {file: artifact.sha256(file) for file in files}


def loaded_graph(artifact: Artifact, graph: str) -> ir.Model:
    """A graph as export wrote it, or simplified if it was.

    Raises:
        BadArtifact: the file is not an ONNX model.
    """
    return _loaded(artifact, source_file(artifact, graph))


def exported_graph(artifact: Artifact, graph: str) -> ir.Model:
    """A graph as export wrote it.

    Raises:
        BadArtifact: the file is not an ONNX model.
    """
    return _loaded(artifact, graph_file(graph))


def _loaded(artifact: Artifact, file: str) -> ir.Model:
    import onnx_ir as ir

    path = artifact.file(file)
    try:
        return ir.load(path)
    except Exception as error:  # protobuf and onnx_ir have no common error for a broken file
        raise BadArtifact(
            "the file is not an ONNX model",
            where=str(path),
            fix="Export the checkpoint again with: tfc export --overwrite",
        ) from error


def _merged(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One report: that of the only graph, or those of several with the graph's name before each."""
    if len(reports) == 1:
        return next(iter(reports.values()))
    every = list(reports.values())
    fusions: dict[str, dict[str, int]] = {}
    for report in every:
        for kind, count in report["fusions"].items():
            total = fusions.setdefault(kind, {"found": 0, "expected": 0})
            for key in total:
                total[key] += count[key]
    stand_ins = sum(report.get("stand_in_bytes", 0) for report in every)
    return {
        **every[0],
        **({"stand_in_bytes": stand_ins} if stand_ins else {}),
        "fusions": fusions,
        "passes": [
            {**entry, "name": f"{graph}: {entry['name']}"}
            for graph, report in reports.items()
            for entry in report["passes"]
        ],
        "missed": [miss for report in every for miss in report["missed"]],
        "left_alone": [site for report in every for site in report["left_alone"]],
        "reverted": [
            f"{g}: {name}" for g, report in reports.items() for name in report["reverted"]
        ],
        "nodes": {
            key: sum(report["nodes"][key] for report in every) for key in ("before", "after")
        },
    }
