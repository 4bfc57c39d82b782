"""`tfc build-engine`: the optimized graph becomes an engine of a backend."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfc.artifact import Artifact, Change, graph_file
from tfc.build_cache import cache_of_user
from tfc.errors import BackendUnavailable, UsageError
from tfc.files import DATA_SUFFIX
from tfc.kernel_report import report_to_json
from tfc.manifest import MODEL, Engine, Graph, Step, Traffic
from tfc.matrix_check import Wanted, check_before_build, machine_of
from tfc.onnx_files import opset_of_onnx
from tfc.runtime.backends import backend as backend_of
from tfc.runtime.backends import choose_backend, why_no_kernels
from tfc.runtime.backends.base import (
    Availability,
    Backend,
    BuildOptions,
    Built,
    Inputs,
    Profile,
)
from tfc.runtime.backends.fp8 import FP8, options_for_fp8
from tfc.runtime.backends.tensorrt_flavors import check_plan_options
from tfc.steps.cached_build import Builder
from tfc.steps.engine_audit import audit_engine, kernels_file
from tfc.steps.int8.convert import quantized_graph
from tfc.steps.int8.forms import STATIC
from tfc.steps.int8.notes import int8_notes
from tfc.steps.int8.options import QUANTIZED, int8_options
from tfc.steps.int8.rows import check_reads_text
from tfc.steps.optimize import optimize, padding_note
from tfc.steps.precision import convert
from tfc.steps.precision_notes import pin_notes
from tfc.steps.profiles import profile_of
from tfc.steps.record import OnProgress, no_progress
from tfc.steps.traffic.draft import (
    check_asked,
    compiles_for_sizes,
    draft_of,
    measured_traffic,
    option_of,
)
from tfc.steps.traffic.lengths import Lengths, lengths_of_data
from tfc.steps.traffic.plan import Draft, profiles_as_json

AUTO = "auto"
RUNNABLE = "runnable"
NOT_RUN = "built, not run"
PADDING = "padding"  # in the options of the step's record: what became of it
_CPU = "CPU"
_FIXED_RANGES = "openvino"  # it is slow where ranges are those of each batch


@dataclass(frozen=True)
class BuildResult:
    """The engine, why its backend was chosen, and what is worth saying about the build.

    `cache` says what the build took from the cache, and what it left there.
    """

    artifact: Artifact
    name: str
    engine: Engine
    why: str
    notes: tuple[str, ...]
    skipped: bool
    cache: str = ""


def engine_name(backend: str, precision: str) -> str:
    """How the engine is called in the artifact and on the command line."""
    return f"{backend}-{precision}"


def build_engine(
    artifact: Artifact | str | Path,
    *,
    precision: str = "fp32",
    backend: str = AUTO,
    batch: tuple[int, int, int] | None = None,
    sequence: tuple[int, int, int] | None = None,
    profile_from: str | Path | None = None,
    buckets: int | None = None,
    compute_capabilities: Sequence[str] = (),
    calib: str | Path | None = None,
    calib_method: str | None = None,
    calib_limit: int | None = None,
    max_drop: float | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    int8_form: str | None = None,
    allow_missed: bool = False,
    passes: Sequence[str] = (),
    remove_padding: bool = False,
    refit: bool = False,
    version_compatible: bool = False,
    hardware_compatible: str | None = None,
    cache: bool = True,
    on_progress: OnProgress = no_progress,
) -> BuildResult:
    """Build an engine; the graph is optimized and converted first where that was not done yet.

    Args:
        artifact: an exported artifact, or its path.
        precision: `fp32`, `fp16`, `bf16`, `int8` or `fp8`.
        backend: `tensorrt`, `tensorrt-rtx`, `onnxruntime`, `openvino`, or `auto` for the best that
            runs here.
        batch: smallest, best and largest batch size.
        sequence: smallest, best and largest length in tokens.
        profile_from: a file of texts such as the engine will read (a file, folder or glob that a
            batch job takes); their lengths choose the sizes.
        buckets: how many optimization profiles; as many as pay if None.
        compute_capabilities: the GPUs, as `8.9`, that TensorRT-RTX builds for ahead of time; all
            that can share a plan if empty, and in fp8 8.9 and 12.0.
        calib: for int8 and fp8, a JSONL file with a text per row like those that the model will
            read.
        calib_method: how ranges are found there: `min-max`, `percentile`, `entropy`, `mse`, or
            `auto` (if None) for the one that changes the output least.
        calib_limit: read the first so many rows; 512 if None.
        max_drop: how far they may be below fp32 on these rows, in the task's main metric where
            they have labels, or else in agreement: 0.005, if None, is half a point.
        text_column: the field that holds the text; the task's own if None.
        pair_column: the field that holds the second text; the task's own, if it has one, if None.
        label_column: the field that holds the label; there are no labels if None.
        int8_form: for ONNX Runtime's CPU provider `dynamic`, `static`, or `auto` (if None) for the
            faster one that keeps the budget.
        allow_missed: build although a fusion was missed.
        passes: modules, or `.py` files, with passes of your own.
        remove_padding: for ONNX Runtime's CPU provider, in fp32 and fp16: linear layers on packed
            tokens, padding around attention only.
        refit: for TensorRT, an engine whose weights can be replaced: the next checkpoint of the
            same architecture takes it from the cache and puts its own weights in.
        version_compatible: for TensorRT, an engine that later versions run, too.
        hardware_compatible: for TensorRT, `ampere+` or `same-capability`: other GPUs run it, too.
        cache: take an engine that was built before, and keep this one for later builds, in
            `~/.cache/tfc` or the folder in `TFC_CACHE_DIR`.
        on_progress: called with what is under way.

    Raises:
        BackendUnavailable: the backend cannot build here, or not in this precision.
        ContractNotReached: a fusion was missed, the compiled kernels are not fused, or they
            compute in another precision; or the precision is not accurate enough; or padding
            cannot be removed.
        UsageError: the ranges are not in order, or beyond what the model takes; or int8 or
            fp8 has no data, or another precision has; or a GPU has no fp8.
        BadData: the data cannot be used.
    """
    artifact = Artifact.of(artifact)
    columns = (text_column, pair_column, label_column)
    given = (calib, calib_method, calib_limit, max_drop, int8_form, label_column)
    reads = any(value is not None for value in (*given, *(() if profile_from else columns)))
    int8 = None
    if precision in QUANTIZED:
        int8 = int8_options(
            precision,
            calib,
            method=calib_method,
            max_drop=max_drop,
            form=int8_form,
            columns=columns,
            limit=calib_limit,
        )
        check_reads_text(artifact, precision)
    elif reads:
        raise UsageError(
            f"calibration is for int8 and fp8, and the precision is {precision}",
            fix="Give --int8 or --fp8, or leave the options of the calibration out",
        )
    chosen, why = _choose(backend, precision)
    if int8 is not None and chosen.name == _FIXED_RANGES and int8.form == AUTO:
        int8 = dataclasses.replace(int8, form=STATIC)
    if remove_padding:
        _check_remove_padding(chosen, precision)
    available = chosen.availability()
    check_asked(chosen, profile_from, buckets, sequence)
    build = BuildOptions(
        tuple(compute_capabilities),
        on_progress=on_progress,
        refit=refit,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible or "",
    )
    check_plan_options(chosen.name, build)
    if precision == FP8:
        build = options_for_fp8(chosen.name, build)
    warned = _checked_machine(artifact, chosen)
    profile = profile_of(artifact, batch, sequence)
    draft = lengths = None
    if profile_from is not None:
        lengths = lengths_of_data(artifact, profile_from, text_column, pair_column, on_progress)
        draft = draft_of(
            artifact,
            chosen,
            available.hardware,
            profile,
            lengths,
            buckets=buckets,
            any_batch=batch is None,
        )
        profile, build = draft.profile, dataclasses.replace(build, profiles=draft.profiles)
    optimized = optimize(
        artifact,
        chosen.target,
        allow_missed=allow_missed,
        passes=passes,
        remove_padding=remove_padding,
        on_progress=on_progress,
    )
    on_progress("setting the precision", 0, 1)
    kept = cache_of_user(os.environ) if cache else None
    weights_only = chosen.name == "onnxruntime" and available.hardware == _CPU
    models = {
        graph: quantized_graph(artifact, chosen.target, graph, int8, on_progress)
        if int8 is not None
        else convert(
            artifact, chosen.target, graph, precision, weights_only=weights_only, cache=kept
        )
        for graph in artifact.manifest.graphs
    }
    name = engine_name(chosen.name, precision)
    padding = padding_note(optimized.report) if remove_padding else ""
    said = (padding,) if padding else ()
    notes = (*warned, *said, *_notes(artifact, models, precision, weights_only))
    files = {graph: f"engines/{name}/{graph}{chosen.suffix}" for graph in models}
    step = Step(
        name=f"build-engine:{name}",
        options={
            "profile": profile.as_json(),
            "allow_missed": allow_missed,
            **_for_gpus(build),
            **({PADDING: padding} if padding else {}),
            **(option_of(lengths, buckets) if lengths is not None else {}),
        },
        inputs={model: artifact.sha256(model) for model in models.values()},
        outputs=[*files.values(), *filter(None, [kernels_file(chosen, name)])],
        versions={chosen.name: available.version, "hardware": available.hardware},
        seconds=0.0,
    )
    earlier = artifact.up_to_date(step)
    whole = earlier is not None and earlier.outputs == step.outputs  # an older tfc wrote less
    if whole and name in artifact.manifest.engines:
        engine = artifact.manifest.engines[name]
        return BuildResult(artifact, name, engine, why, notes, skipped=True)
    on_progress(f"building with {chosen.name}", 0, 1)
    plan = _Plan(models, files, profile, precision, build, draft, lengths)
    kept = kept if compiles_for_sizes(chosen) else None
    engine, more, cached = _build(Builder(artifact, chosen, available, kept), step, plan)
    return BuildResult(artifact, name, engine, why, notes + more, skipped=False, cache=cached)


def _check_remove_padding(chosen: Backend, precision: str) -> None:
    """Raises UsageError where the passes, or those that set the precision, do not go with it."""
    if not chosen.name == chosen.target == "onnxruntime" or precision in QUANTIZED:
        raise UsageError(
            "padding is removed for ONNX Runtime's CPU provider in fp32 and fp16, and this is "
            f"{chosen.name} in {precision}",
            fix="Leave --remove-padding out, or add it to --backend onnxruntime in fp32 or fp16",
        )


def _checked_machine(artifact: Artifact, chosen: Backend) -> tuple[str, ...]:
    """Notes about what may stop a build here; raises BackendUnavailable for what will."""
    if not compiles_for_sizes(chosen):
        return ()
    graphs = [graph_file(graph) for graph in artifact.manifest.graphs]
    files = artifact.manifest.files
    names = [n for graph in graphs for n in (graph, graph + DATA_SUFFIX) if n in files]
    opset = max(opset_of_onnx(artifact.file(graph)) for graph in graphs)
    wanted = Wanted(opset, sum(files[name].bytes for name in names))
    return check_before_build(chosen.name, machine_of(artifact.path), wanted)


def _for_gpus(build: BuildOptions) -> dict[str, object]:
    """What the step's record says of chosen GPUs and kinds of plans; nothing where none were."""
    given: dict[str, object] = {
        "compute_capabilities": list(build.compute_capabilities),
        "refit": build.refit,
        "version_compatible": build.version_compatible,
        "hardware_compatible": build.hardware_compatible,
    }
    return {name: value for name, value in given.items() if value}


def _choose(asked: str, precision: str) -> tuple[Backend, str]:
    if asked == AUTO:
        return choose_backend(precision)
    chosen = backend_of(asked)
    found = chosen.availability()
    if not found.can_build:
        raise BackendUnavailable(
            f"{asked} cannot build engines here: {found.why_not_build}",
            fix="See what this machine can build and run with: tfc doctor",
        )
    if lacking := why_no_kernels(found, precision):
        raise BackendUnavailable(
            lacking,
            fix=f"Build for a GPU ahead of time: --{precision} --backend tensorrt-rtx, "
            "or for the CPU in fp32",
        )
    return chosen, f"{asked}: as asked"


@dataclass(frozen=True)
class _Plan:
    """What is built: graph → model, graph → engine file, for which sizes, how."""

    models: dict[str, str]
    files: dict[str, str]
    profile: Profile
    precision: str
    options: BuildOptions
    draft: Draft | None = None
    lengths: Lengths | None = None


def _build(builder: Builder, step: Step, plan: _Plan) -> tuple[Engine, tuple[str, ...], str]:
    artifact, chosen = builder.artifact, builder.chosen
    begun = time.perf_counter()
    with artifact.change() as change:
        built: list[Built] = []
        cached: dict[str, None] = {}
        for graph, model in plan.models.items():
            inputs = inputs_of_graph(artifact.manifest.graphs[graph])
            target = change.path(plan.files[graph])
            one, said = builder.build(model, target, inputs, plan.profile, plan.options)
            built.append(one)
            cached[said] = None
        name = engine_name(chosen.name, plan.precision)
        audit = audit_engine(
            artifact,
            chosen,
            plan.models,
            built,
            profile=plan.profile,
            precision=plan.precision,
            allow_missed=bool(step.options["allow_missed"]),
        )
        if audit.report is not None:
            text = report_to_json(audit.report)
            change.path(kernels_file(chosen, name)).write_text(text, encoding="utf-8")
        state, reason = _try_loading(
            chosen, builder.available, [*map(change.path, plan.files.values())]
        )
        engine = Engine(
            backend=chosen.name,
            precision=plan.precision,
            files=plan.files,
            state=state,
            state_reason=reason,
            profile=plan.profile.as_json(),
            versions=dict(built[0].versions),
            hardware=built[0].hardware,
            audit=audit.audit,
            profiles=profiles_as_json(plan.options.profiles),
            memory=list(built[0].memory),
            traffic=_traffic(artifact, chosen, change, plan),
        )
        seconds = time.perf_counter() - begun
        change.record(dataclasses.replace(step, seconds=seconds, result={"audit": audit.audit}))
        verdicts = {k: v for k, v in change.manifest.verdicts.items() if k != name}
        change.manifest = dataclasses.replace(
            change.manifest,
            engines={**change.manifest.engines, name: engine},
            verdicts=verdicts,
        )
    notes = (*dict.fromkeys(note for one in built for note in one.notes), *audit.notes)
    return engine, notes, "; ".join(cached)


def _traffic(artifact: Artifact, chosen: Backend, change: Change, plan: _Plan) -> Traffic | None:
    """How texts are batched; where the cost was not counted, it is measured on the engine."""
    if plan.draft is None or plan.lengths is None:
        return None
    traffic = plan.draft.traffic
    if traffic.cost:
        return traffic
    file = change.path(plan.files[MODEL])
    return measured_traffic(artifact, chosen, file, traffic, plan.lengths)


def inputs_of_graph(graph: Graph) -> Inputs:
    """A graph's inputs, as a backend takes them."""
    return Inputs({spec.name: (spec.dtype, tuple(spec.shape)) for spec in graph.signature.inputs})


def _try_loading(
    chosen: Backend, available: Availability, files: Sequence[Path]
) -> tuple[str, str]:
    """Whether the engine runs here; one that was built for elsewhere is said to be just that."""
    if not available.can_run:
        return NOT_RUN, available.why_not_run
    for file in files:
        chosen.load(file).close()
    return RUNNABLE, ""


def _notes(
    artifact: Artifact, models: dict[str, str], precision: str, weights_only: bool
) -> tuple[str, ...]:
    if precision == "fp32":
        return ()
    if weights_only and precision not in QUANTIZED:
        return (
            "the CPU has no half-precision kernels here: weights are stored in fp16, "
            "arithmetic stays in fp32",
        )
    steps = [artifact.manifest.step(f"precision:{model}") for model in models.values()]
    if precision in QUANTIZED:
        return tuple(note for step in steps for note in int8_notes(step))
    return tuple(note for step in steps if step is not None for note in pin_notes(step))
