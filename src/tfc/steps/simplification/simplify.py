"""`tfc optimize --simplify`: heads, neurons and layers that the outputs do not need go."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfc.artifact import Artifact, graph_file
from tfc.errors import ContractNotReached, UsageError, require
from tfc.manifest import DECODER, MODEL, Step
from tfc.runtime.tasks import TEXT_TASKS
from tfc.simplified_graph import SIMPLIFIED, SIMPLIFY_STEP
from tfc.steps.int8.accuracy import Accuracy
from tfc.steps.int8.options import DEFAULT_MAX_DROP
from tfc.steps.int8.rows import DEFAULT_ROWS, RowSource
from tfc.steps.optimize import exported_graph
from tfc.steps.probes import probe_feeds
from tfc.steps.profiles import profile_of
from tfc.steps.record import OnProgress, no_progress, onnxruntime_version, versions_of
from tfc.steps.simplification.rows import Halves, halves_of
from tfc.steps.simplification.search import Bench, Found, searched

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.simplification.fitting import Path as UnitPath
    from tfc.optimizers.simplification.sites import LeftAlone, Site

# What was made from the graph before it was simplified.
_MADE = ("optimized/", "calibration/", "engines/", "reports/")
_SECONDS = 1.5  # of measuring, for each of the two graphs
_WHOLE, _LESS = "whole", "simplified"


@dataclass(frozen=True)
class SimplifyResult:
    """The step's record: its `result` is the report (docs/artifact.md)."""

    artifact: Artifact
    report: dict[str, Any]
    skipped: bool


def simplify(
    artifact: Artifact | str | Path,
    calib: str | Path | None,
    *,
    max_drop: float | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    on_progress: OnProgress = no_progress,
) -> SimplifyResult:
    """Take out of a graph what the outputs do not need on calibration data.

    The artifact's later steps start from the new graph, `simplified/model.onnx`. What was made from
    the old one (optimized graphs, engines, reports) is removed.

    Args:
        artifact: an exported artifact, or its path.
        calib: JSON lines with texts like those that the model will read.
        max_drop: how far the outputs may move on either half of the rows: in the task's main metric
            with `label_column`, or else in agreement with the whole graph; 0.005 if None.
        text_column: the field with the text; the task's if None.
        pair_column: the field with the second text; the task's if None.
        label_column: the field with the label, if rows have one.
        limit: read the first so many rows; 512 if None.
        on_progress: called with what is under way.

    Raises:
        UsageError: there is no data, or the model is not one that text simplifies.
        BadData: the data cannot be used, or has too few rows.
        ContractNotReached: the graph has nothing that could go, or nothing may.
    """
    artifact = Artifact.of(artifact)
    source, budget = _source(calib, max_drop, text_column, pair_column, label_column, limit)
    _check_kind(artifact)
    for package in ("onnx", "onnx_ir", "onnxscript"):
        require(package, "compile")
    halves = halves_of(artifact, source)
    step = Step(
        name=SIMPLIFY_STEP,
        options={
            "max_drop": budget,
            "rows": [halves.choosing.sha256(), halves.judging.sha256()],
            "data": [halves.choosing.cases.sha256, halves.judging.cases.sha256],
            "label": label_column or "",
        },
        inputs={graph_file(MODEL): artifact.sha256(graph_file(MODEL))},
        outputs=[SIMPLIFIED],
        versions={**versions_of("onnx-ir", "onnxscript"), **onnxruntime_version()},
        seconds=0.0,
    )
    earlier = artifact.up_to_date(step)
    if earlier is not None:
        return SimplifyResult(artifact, earlier.result, skipped=True)
    begun = time.perf_counter()
    job = job_of(artifact, halves, budget, on_progress)
    found = searched(job.bench, job.sequence)
    if not any(found.steps.values()):
        raise ContractNotReached(
            f"nothing can go: any head or neuron costs more than {budget:.2%} on these rows",
            where=str(artifact.path),
            fix="Allow more with --max-drop, or leave the graph as it is",
        )
    model = job.bench.graph(found.steps)
    report = _report(job, found, model)
    seconds = time.perf_counter() - begun
    _write(artifact, model, dataclasses.replace(step, seconds=seconds, result=report))
    return SimplifyResult(artifact, report, skipped=False)


def undo_simplify(artifact: Artifact | str | Path) -> bool:
    """Go back to the exported graph; False if it was not simplified."""
    artifact = Artifact.of(artifact)
    if artifact.manifest.step(SIMPLIFY_STEP) is None:
        return False
    with artifact.change() as change:
        _forget(change, (*_MADE, SIMPLIFIED))
    return True


def _source(
    calib: str | Path | None,
    max_drop: float | None,
    text: str | None,
    pair: str | None,
    label: str | None,
    limit: int | None,
) -> tuple[RowSource, float]:
    if calib is None:
        raise UsageError(
            "what a model can do without is told by real text, and none was given",
            fix="Name a file of JSON lines like those that the model will read: --calib data.jsonl",
        )
    budget = DEFAULT_MAX_DROP if max_drop is None else max_drop
    if not 0 <= budget < 1:
        raise UsageError(f"max_drop {budget} is not possible", fix="Give a share: 0.005 is 0.5 %")
    return RowSource(Path(calib), text, pair, label, limit or DEFAULT_ROWS), budget


def _check_kind(artifact: Artifact) -> None:
    manifest = artifact.manifest
    if manifest.task.name not in TEXT_TASKS or DECODER in manifest.graphs:
        raise UsageError(
            "models that read text and answer at once can be simplified, and this one's task is "
            f"{manifest.task.name}",
            where=str(artifact.path),
            fix="Leave --simplify out",
        )


@dataclass(frozen=True)
class Job:
    """What is simplified, and with what it is judged. `sequence` is the tokens of a usual text."""

    artifact: Artifact
    bench: Bench
    left: list[LeftAlone]
    sequence: int

    @property
    def sites(self) -> list[Site]:
        """In the order of the graph."""
        return [path.site for path in self.bench.paths.values()]


def job_of(artifact: Artifact, halves: Halves, max_drop: float, on_progress: OnProgress) -> Job:
    """Find the sites of the exported graph, and run it for what their units say.

    Raises:
        ContractNotReached: it has none.
    """
    from tfc.optimizers.simplification.fitting import moments_of, path_of
    from tfc.optimizers.simplification.sites import sites_of

    model = recognised_graph(artifact, on_progress)
    sites, left = sites_of(model)
    if not sites:
        reasons = "; ".join(f"{each.module}: {each.reason}" for each in left[:3])
        raise ContractNotReached(
            "the graph has no head or neuron that could go" + (f" ({reasons})" if reasons else ""),
            where=str(artifact.path),
            fix="Leave --simplify out",
        )
    on_progress("reading what units say", 0, 1)
    seen = moments_of(model, sites, halves.choosing.feeds)
    paths: dict[str, UnitPath] = {}
    for number, site in enumerate(sites):
        on_progress("ordering units", number, len(sites))
        paths[site.name] = path_of(site, seen[site.name])
    bench = Bench(model, paths, artifact.manifest.task, halves, max_drop, on_progress)
    return Job(artifact, bench, left, profile_of(artifact, None, None).sequence.opt)


def recognised_graph(artifact: Artifact, on_progress: OnProgress) -> ir.Model:
    """The exported graph in standard operators, every attention one `Attention`."""
    from tfc.optimizers import optimize as optimize_graph
    from tfc.optimizers.passes import FusionPass
    from tfc.optimizers.raising.attention import Attention
    from tfc.optimizers.stages import CLEAN, RECOGNISE, Selection

    names = [step.name for step in (*CLEAN, *RECOGNISE, FusionPass(Attention()))]
    model, _ = optimize_graph(
        exported_graph(artifact, MODEL),
        "onnxruntime",
        probe_feeds(artifact, MODEL),
        allow_missed=True,
        selection=Selection(only=tuple(names)),
        on_pass=on_progress,
    )
    return model


def _report(job: Job, found: Found, model: ir.Model) -> dict[str, Any]:
    """What the manifest records."""
    whole = job.bench.model
    sites = [_site_report(job, site, found) for site in job.sites]
    dropped = [each for each in sites if not each["kept"]]
    return {
        "max_drop": job.bench.max_drop,
        "rows": {
            "choosing": job.bench.halves.choosing.cases.rows,
            "judging": job.bench.halves.judging.cases.rows,
        },
        "choosing": accuracy_record(found.choosing),
        "judging": accuracy_record(found.judging),
        "sites": sites,
        "layers_dropped": layers_dropped(sites),
        "dropped_sites": {
            "attention": sum(each["kind"] == "heads" for each in dropped),
            "add_layernorm": len(dropped),
        },
        "left_alone": [vars(each) for each in job.left],
        "flops": {_WHOLE: _flops(whole, job), _LESS: _flops(model, job)},
        "parameters": {_WHOLE: _parameters(whole), _LESS: _parameters(model)},
        "speed": _speed(job, model),
        "trials": len(job.bench.trials),
    }


def _site_report(job: Job, site: Site, found: Found) -> dict[str, Any]:
    path, count = job.bench.paths[site.name], found.steps[site.name]
    gone = [unit for group in path.groups[:count] for unit in group]
    return {
        "module": site.module or site.name,
        "layer": site.layer,
        "kind": site.kind,
        "units": site.units,
        "kept": site.units - len(gone),
        "removed": sorted(gone) if site.kind == "heads" else [],
        "flops_share": len(gone) / site.units,
        "weight": found.weights[site.name],
    }


def layers_dropped(sites: list[dict[str, Any]]) -> list[int]:
    """The layers of which no sublayer has a unit left."""
    layers = {each["layer"] for each in sites if each["layer"] is not None}
    return sorted(
        layer
        for layer in layers
        if not any(each["kept"] for each in sites if each["layer"] == layer)
    )


def accuracy_record(accuracy: Accuracy) -> dict[str, Any]:
    """An accuracy as the manifest holds it."""
    return dataclasses.asdict(accuracy) | {"drop": accuracy.drop}


def _flops(model: ir.Model, job: Job) -> int:
    """Of the products and attentions, for a batch at the profile's best sizes."""
    from tfc.steps.flops import products_of_graph

    profile = profile_of(job.artifact, None, None)
    return sum(each.flops or 0 for each in products_of_graph(model, profile))


def _parameters(model: ir.Model) -> int:
    import onnx_ir as ir

    tensors = (value.const_value for value in model.graph.initializers.values())
    floats = (t for t in tensors if t is not None and t.dtype == ir.DataType.FLOAT)
    return sum(int(tensor.size) for tensor in floats)


def _speed(job: Job, model: ir.Model) -> dict[str, Any]:
    """How many times as fast as the whole graph, both in turn on ONNX Runtime's CPU provider."""
    from tfc.onnx_files import save_onnx
    from tfc.runtime.backends import backend
    from tfc.runtime.throughput import Workload, measure
    from tfc.steps.benchmark.workloads import full_batch

    profile = profile_of(job.artifact, None, None)
    batch, length = profile.batch.opt, profile.sequence.opt
    feeds = (full_batch(job.artifact, batch, length),)
    tokens = batch * length
    workload = Workload(f"{batch}×{length}", feeds, batch, tokens, tokens)
    engine, runs = backend("onnxruntime"), {}
    job.bench.on_progress("measuring the speed", 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in ((_WHOLE, job.bench.model), (_LESS, model)):
            path = Path(folder) / f"{name}.onnx"
            save_onnx(graph, path)
            runs[name] = engine.load(path).run
        cell = measure(runs, workload, seconds=_SECONDS, baseline=_WHOLE)
    return {"batch": batch, "sequence": length, "times_whole": cell.ratios[_LESS]}


def _write(artifact: Artifact, model: ir.Model, step: Step) -> None:
    from tfc.onnx_files import save_onnx

    with artifact.change() as change:
        _forget(change, _MADE)
        save_onnx(model, change.path(SIMPLIFIED))
        change.record(step)


def _forget(change: Any, folders: tuple[str, ...]) -> None:
    """Take out the files of these folders, and the steps that wrote them."""
    gone = [name for name in change.manifest.files if name.startswith(folders)]
    for name in gone:
        change.drop(name)
    steps = [
        step
        for step in change.manifest.steps
        if not any(name.startswith(folders) for name in step.outputs)
    ]
    change.manifest = dataclasses.replace(change.manifest, steps=steps, engines={}, verdicts={})
