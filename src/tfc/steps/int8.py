"""The optimized graph of a target in int8: calibrated, searched, and checked against fp32."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfc.artifact import Artifact
from tfc.errors import ContractNotReached, UsageError
from tfc.manifest import Step
from tfc.steps.calibration import Movement, calibration_file, movement, observed
from tfc.steps.calibration_rows import CalibrationRows, RowSource, calibration_rows
from tfc.steps.flops import products_of_graph
from tfc.steps.int8_forms import AUTO, CPU_FORMS, Form, forms_of, qdq
from tfc.steps.int8_search import Bench, Chosen, bench_of, chosen_sites, settled
from tfc.steps.int8_speed import fastest
from tfc.steps.optimize import optimized_file
from tfc.steps.precision import convert
from tfc.steps.profiles import profile_of
from tfc.steps.record import OnProgress, onnxruntime_version, versions_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.observe import Observed
    from tfc.optimizers.precision.int8.sites import Site

INT8 = "int8"
DEFAULT_METHOD = "percentile"
METHODS = ("min-max", "percentile", "entropy", "mse")
FORMS = (AUTO, *CPU_FORMS)
# Half a point: what a classifier may lose before anyone asks why.
DEFAULT_MAX_DROP = 0.005
_BASE = "fp16"
# Why a site is left alone: a pooler or classifier costs next to nothing and decides the result.
_BUDGET, _ONCE = "the budget", "once for each text"


@dataclass(frozen=True)
class Int8Options:
    """How int8 is calibrated, and what it may cost.

    Attributes:
        rows: the data.
        method: how ranges are chosen: one of `METHODS`.
        max_drop: how far the task's main metric may fall, or where rows have no labels the
            agreement with fp32: 0.005 is half a point.
        form: for ONNX Runtime's CPU provider, one of `FORMS`.
    """

    rows: RowSource
    method: str = DEFAULT_METHOD
    max_drop: float = DEFAULT_MAX_DROP
    form: str = AUTO


def int8_options(
    calib: str | Path | None,
    *,
    method: str | None,
    max_drop: float | None,
    form: str | None,
    columns: tuple[str | None, str | None, str | None],
    limit: int | None,
) -> Int8Options:
    """The options as a caller gives them: None is the default, `columns` text, pair and label.

    Raises:
        UsageError: there is no data, or no such method or form, or the budget is no share.
    """
    if calib is None:
        raise UsageError(
            "int8 needs real text to find the ranges of its activations, and none was given",
            fix="Name a file of JSON lines like those that the model will read: --calib data.jsonl."
            " Random tokens are no substitute: their ranges do not fit",
        )
    method, form = method or DEFAULT_METHOD, form or AUTO
    for kind, value, known in (("method", method, METHODS), ("form", form, FORMS)):
        if value not in known:
            raise UsageError(
                f"there is no {kind} '{value}' of int8", fix=f"Choose one of: {', '.join(known)}"
            )
    budget = DEFAULT_MAX_DROP if max_drop is None else max_drop
    if not 0 <= budget < 1:
        raise UsageError(f"max_drop {budget} is not possible", fix="Give a share: 0.005 is 0.5 %")
    text, pair, label = columns
    rows = RowSource(Path(calib), text, pair, label)
    rows = rows if limit is None else dataclasses.replace(rows, limit=limit)
    return Int8Options(rows, method, budget, form)


def convert_to_int8(
    artifact: Artifact, target: str, graph: str, options: Int8Options, on_progress: OnProgress
) -> str:
    """Write an optimized graph of `target` in int8; returns its file's name.

    A graph that another tool has quantised already is left as it is.

    Raises:
        UsageError: the artifact cannot be calibrated with text, or the target has no such form.
        BadData: the data cannot be used.
        ContractNotReached: there is no product to quantise, or the budget does not hold.
    """
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.qdq import has_quantized

    source = optimized_file(target, graph)
    model = ir.load(artifact.file(source))
    if has_quantized(model):
        return source
    rows = calibration_rows(artifact, options.rows)
    base = _base(artifact, target, graph)
    output = optimized_file(target, graph, INT8)
    step = Step(
        name=f"precision:{output}",
        options={
            "precision": INT8,
            "method": options.method,
            "max_drop": options.max_drop,
            "form": options.form,
            "rows": rows.sha256(),
            "data": rows.cases.sha256,
            "label": options.rows.label or "",
        },
        inputs={name: artifact.sha256(name) for name in dict.fromkeys((source, base))},
        outputs=[output],
        versions={**versions_of("onnx-ir"), **onnxruntime_version()},
        seconds=0.0,
    )
    if artifact.up_to_date(step) is None:
        _run(_Job(artifact, target, graph, model, base, rows, options, on_progress), step)
    return output


def _base(artifact: Artifact, target: str, graph: str) -> str:
    """The file of the graph whose products are quantised: TensorRT's has the rest of it in fp16."""
    if target.startswith("onnxruntime"):
        return optimized_file(target, graph)
    return convert(artifact, target, graph, _BASE, weights_only=False)


@dataclass(frozen=True)
class _Job:
    artifact: Artifact
    target: str
    graph: str
    model: ir.Model
    base: str
    rows: CalibrationRows
    options: Int8Options
    on_progress: OnProgress


def _run(job: _Job, step: Step) -> None:
    from tfc.onnx_files import save_onnx
    from tfc.optimizers.precision.int8.sites import sites_of

    begun = time.perf_counter()
    every = sites_of(job.model)
    sites = [site for site in every if site.tokens]
    if not sites:
        raise ContractNotReached(
            "the graph has no product of token vectors with a constant matrix to quantise",
            where=str(job.artifact.path),
            fix="Build in half precision: --fp16 or --bf16",
        )
    seen = observed(
        job.artifact, job.target, job.graph, job.model, sites, job.rows, job.on_progress
    )
    flops = _flops(job, every)
    found, speed = _chosen(job, sites, seen, flops)
    once = [site for site in every if not site.tokens]
    result = _result(job, seen, found, once, flops) | ({"forms": speed} if speed else {})
    with job.artifact.change() as change:
        save_onnx(found.form.graph(found.quantized), change.path(step.outputs[0]))
        seconds = time.perf_counter() - begun
        change.record(dataclasses.replace(step, seconds=seconds, result=result))


def _chosen(
    job: _Job, sites: Sequence[Site], seen: Observed, flops: dict[str, int]
) -> tuple[Chosen, dict[str, Any]]:
    """The form and its sites; and of several forms how fast each one is."""
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.ranges import ranges_from

    ranges = ranges_from(seen.histograms(), job.options.method)
    forms = forms_of(job.target, job.options.form, job.model, ranges)
    task = job.artifact.manifest.task
    bench = bench_of(job.model, task, job.rows, job.options.max_drop, job.on_progress)
    if job.base != optimized_file(job.target, job.graph):
        found = chosen_sites(forms[0], job.model, sites, flops, bench)
        base = ir.load(job.artifact.file(job.base))
        return settled(found, qdq(base, ranges), flops, bench), {}
    passed, refused = _each(forms, job.model, sites, flops, bench)
    if not passed:
        raise refused[0]
    if len(forms) == 1:
        return passed[0], {}
    return fastest(job.artifact, job.model, passed, job.on_progress)


def _each(
    forms: Sequence[Form],
    model: ir.Model,
    sites: Sequence[Site],
    flops: dict[str, int],
    bench: Bench,
) -> tuple[list[Chosen], list[ContractNotReached]]:
    """Every form that keeps the budget, and why others do not."""
    passed, refused = [], []
    for form in forms:
        try:
            passed.append(chosen_sites(form, model, sites, flops, bench))
        except ContractNotReached as error:
            refused.append(error)
    return passed, refused


def _flops(job: _Job, sites: Sequence[Site]) -> dict[str, int]:
    """The operations of each site at the profile's best sizes, by the name of its node."""
    products = products_of_graph(job.model, profile_of(job.artifact, None, None))
    known = {product.node: product.flops for product in products}
    return {site.node: known.get(site.node) or 2 * site.elements for site in sites}


def _result(
    job: _Job, seen: Observed, found: Chosen, once: Sequence[Site], flops: dict[str, int]
) -> dict[str, Any]:
    """What the manifest records; `once` are the sites that run once for each text."""
    total = sum(flops.values())
    moved: Movement = movement(seen, job.options.method)
    return {
        "arithmetic": INT8,
        "form": found.form.name,
        "method": job.options.method,
        "calibration": {
            "file": calibration_file(job.target, job.graph),
            "rows": seen.rows,
            "tokens": seen.tokens,
            "movement": dataclasses.asdict(moved),
        },
        "accuracy": dataclasses.asdict(found.accuracy) | {"drop": found.accuracy.drop},
        "max_drop": job.options.max_drop,
        "sites": {
            "quantized": len(found.quantized),
            "all": len(flops),
            "flops_share": sum(flops[site.node] for site in found.quantized) / total,
        },
        "left": [
            {
                "node": site.node,
                "module": site.module,
                "why": _ONCE if site in once else _BUDGET,
                "error": found.errors.get(site.node, 0.0),
                "flops_share": flops[site.node] / total,
            }
            for site in (*found.left, *once)
        ],
        "sensitivity": found.errors,
        "trials": found.trials,
        "kept": _kept(job),
    }


def _kept(job: _Job) -> list[str]:
    """The nodes that the conversion to half left in fp32."""
    step = job.artifact.manifest.step(f"precision:{job.base}")
    return list(step.result.get("kept", ())) if step is not None else []
