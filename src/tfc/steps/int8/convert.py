"""The optimized graph of a target in int8: calibrated, searched, and checked against fp32."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfc.artifact import Artifact
from tfc.errors import ContractNotReached
from tfc.manifest import Step
from tfc.steps.flops import products_of_graph
from tfc.steps.int8.calibration import calibration_file, movement
from tfc.steps.int8.forms import AUTO, DYNAMIC, Form, forms_of, qdq
from tfc.steps.int8.options import COMPARED, INT8, Int8Options
from tfc.steps.int8.prepare import Prepared, prepared
from tfc.steps.int8.rows import CalibrationRows, calibration_rows
from tfc.steps.int8.search import Bench, Chosen, bench_of, chosen_sites, settled
from tfc.steps.int8.speed import faster_first
from tfc.steps.optimize import optimized_file
from tfc.steps.precision import checked_half
from tfc.steps.profiles import profile_of
from tfc.steps.record import OnProgress, onnxruntime_version, versions_of

if TYPE_CHECKING:
    from tfc.optimizers.precision.int8.ranges import Range
    from tfc.optimizers.precision.int8.sites import Site

_BASE = "fp16"  # what runs beside int8 on a GPU
# Its error may be this share of int8's: independent errors add up in squares, to 5 % more. Pinning
# nodes to fp32 for less would cost speed and change nothing.
_BESIDE = 1 / 3
# Why a site is left alone: a pooler or classifier costs next to nothing and decides the result.
BUDGET, ONCE = "the budget", "once for each text"


@dataclass(frozen=True)
class _Job:
    """One conversion: of what, with what, and the fp32 graph made ready for it."""

    artifact: Artifact
    target: str
    graph: str
    options: Int8Options
    rows: CalibrationRows
    given: Prepared
    flops: dict[str, int]
    on_progress: OnProgress


@dataclass(frozen=True)
class _Made:
    """What was chosen, with which ranges by which method, and what else the manifest tells."""

    chosen: Chosen
    method: str
    ranges: dict[str, Range]
    more: dict[str, Any]


def convert_to_int8(
    artifact: Artifact, target: str, graph: str, options: Int8Options, on_progress: OnProgress
) -> str:
    """Write an optimized graph of `target` in int8; returns its file's name.

    A graph that another tool has quantised already is left as it is.

    Raises:
        UsageError: the target has no such form.
        BadData: the data cannot be used.
        ContractNotReached: there is no product to quantise, or the budget does not hold.
    """
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.qdq import has_quantized

    source = optimized_file(target, graph)
    if has_quantized(ir.load(artifact.file(source))):
        return source
    rows = calibration_rows(artifact, options.rows)
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
        inputs={source: artifact.sha256(source)},
        outputs=[output],
        versions={**versions_of("onnx-ir"), **onnxruntime_version()},
        seconds=0.0,
    )
    if artifact.up_to_date(step) is None:
        begun = time.perf_counter()
        given = prepared(artifact, target, graph, rows, on_progress)
        flops = _flops(artifact, given)
        job = _Job(artifact, target, graph, options, rows, given, flops, on_progress)
        _write(job, _made(job), step, begun)
    return output


def _flops(artifact: Artifact, given: Prepared) -> dict[str, int]:
    """The operations of each site at the profile's best sizes, by the name of its node."""
    products = products_of_graph(given.model, profile_of(artifact, None, None))
    known = {product.node: product.flops for product in products}
    every = (*given.sites, *given.once)
    return {site.node: known.get(site.node) or 2 * site.elements for site in every}


def _made(job: _Job) -> _Made:
    given, options = job.given, job.options
    task = job.artifact.manifest.task
    bench = bench_of(given.model, task, job.rows, options.max_drop, job.on_progress)
    method, ranges = _ranges(job, bench)
    forms = forms_of(job.target, options.form, given.model, ranges)
    if not job.target.startswith("onnxruntime"):
        found = chosen_sites(forms[0], given.model, given.sites, job.flops, bench)
        beside = _BESIDE * found.accuracy.rms
        base, half = checked_half(job.artifact, given.model, job.graph, _BASE, beside)
        chosen = settled(found, qdq(base, ranges), given.model, job.flops, bench)
        return _Made(chosen, method, ranges, {"kept": half["kept"], _BASE: half})
    speed: dict[str, Any] = {}
    if len(forms) > 1:
        forms, speed = faster_first(job.artifact, given, forms, job.on_progress)
    chosen = _first_that_holds(forms, given, job.flops, bench)
    return _Made(chosen, method, ranges, {"forms": speed} if speed else {})


def _ranges(job: _Job, bench: Bench) -> tuple[str, dict[str, Range]]:
    """The ranges by the method that was asked for, or that changes the output least."""
    from tfc.optimizers.precision.int8.ranges import ranges_from

    given, asked = job.given, job.options.method
    histograms = given.seen.histograms()
    if asked != AUTO:
        return asked, ranges_from(histograms, asked)
    if job.options.form == DYNAMIC:
        return COMPARED[0], ranges_from(histograms, COMPARED[0])
    found = {method: ranges_from(histograms, method) for method in COMPARED}
    errors = {}
    for method, ranges in found.items():
        form = forms_of(job.target, job.options.form, given.model, ranges)[-1]
        errors[method] = bench.accuracy(form.graph(given.sites), f"ranges by {method}").error
    best = min(errors, key=lambda method: errors[method])
    return best, found[best]


def _first_that_holds(
    forms: Sequence[Form], given: Prepared, flops: dict[str, int], bench: Bench
) -> Chosen:
    """The first form that keeps the budget with all sites, or else the one that has most in int8.

    Raises:
        ContractNotReached: none keeps it.
    """
    passed: list[Chosen] = []
    refused: list[ContractNotReached] = []
    for form in forms:
        try:
            passed.append(chosen_sites(form, given.model, given.sites, flops, bench))
        except ContractNotReached as error:
            refused.append(error)
            continue
        if not passed[-1].left:
            break
    if not passed:
        raise refused[0]
    return max(passed, key=lambda one: sum(flops[site.node] for site in one.quantized))


def _write(job: _Job, made: _Made, step: Step, begun: float) -> None:
    from tfc.onnx_files import save_onnx

    chosen = made.chosen
    with job.artifact.change() as change:
        save_onnx(chosen.form.graph(chosen.quantized), change.path(step.outputs[0]))
        seconds = time.perf_counter() - begun
        result = _result(job, made)
        change.record(dataclasses.replace(step, seconds=seconds, result=result))


def _result(job: _Job, made: _Made) -> dict[str, Any]:
    """What the manifest records."""
    given, chosen, flops = job.given, made.chosen, job.flops
    total = sum(flops.values())
    return {
        "arithmetic": INT8,
        "form": chosen.form.name,
        "method": made.method,
        "alphas": given.alphas,
        "ranges": {name: [found.low, found.high] for name, found in made.ranges.items()},
        "calibration": {
            "file": calibration_file(job.target, job.graph),
            "rows": given.seen.rows,
            "tokens": given.seen.tokens,
            "movement": dataclasses.asdict(movement(given.seen, made.method)),
        },
        "accuracy": dataclasses.asdict(chosen.accuracy) | {"drop": chosen.accuracy.drop},
        "max_drop": job.options.max_drop,
        "sites": {
            "quantized": len(chosen.quantized),
            "all": len(flops),
            "flops_share": sum(flops[site.node] for site in chosen.quantized) / total,
        },
        "quantized": [site.node for site in chosen.quantized],
        "left": [_left(site, BUDGET, job, chosen) for site in chosen.left]
        + [_left(site, ONCE, job, chosen) for site in given.once],
        "sensitivity": chosen.errors,
        "trials": chosen.trials,
        **made.more,
    }


def _left(site: Site, why: str, job: _Job, chosen: Chosen) -> dict[str, Any]:
    return {
        "node": site.node,
        "module": site.module,
        "why": why,
        "error": chosen.errors.get(site.node, 0.0),
        "flops_share": job.flops[site.node] / sum(job.flops.values()),
    }
