"""The fp32 graph that int8 starts from: activations smoothed, and their values seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfc.artifact import Artifact
from tfc.errors import ContractNotReached
from tfc.manifest import Engine, Step
from tfc.runtime.backends import backend as backend_of
from tfc.steps.int8.calibration import channels_of, observed
from tfc.steps.int8.forms import forms_of
from tfc.steps.int8.options import INT8
from tfc.steps.int8.rows import CalibrationRows
from tfc.steps.int8.search import some_rows
from tfc.steps.optimize import optimized_file
from tfc.steps.record import OnProgress

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.observe import Observed
    from tfc.optimizers.precision.int8.sites import Site

SMOOTHED = ".smoothed"
_CPU_TARGET = "onnxruntime"


@dataclass(frozen=True)
class Prepared:
    """The graph, smoothed with `alphas`, its sites, and what those read.

    `sites` run for every token, `once` for each text.
    """

    model: ir.Model
    sites: list[Site]
    once: list[Site]
    seen: Observed
    alphas: dict[str, float]


def prepared(
    artifact: Artifact, target: str, graph: str, rows: CalibrationRows, on_progress: OnProgress
) -> Prepared:
    """Calibrate the graph, smooth it where that gains, and calibrate it again.

    Raises:
        ContractNotReached: it has nothing to quantise, or an activation is not finite.
    """
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.smooth import sample_vectors, searched_alphas

    model = ir.load(artifact.file(optimized_file(target, graph)))
    sites, once = _sites(model)
    if not sites:
        raise ContractNotReached(
            "the graph has no product of token vectors with a constant matrix to quantise",
            where=str(artifact.path),
            fix="Build in half precision: --fp16 or --bf16",
        )
    seen = observed(artifact, target, graph, model, sites, rows, on_progress)
    on_progress("smoothing", 0, 1)
    vectors = sample_vectors(model, sites, some_rows(rows).feeds)
    alphas = searched_alphas(model, sites, seen.channels, vectors)
    if not alphas:
        return Prepared(model, sites, once, seen, alphas)
    model = smoothed(model, seen.channels, alphas)
    sites, once = _sites(model)
    seen = observed(
        artifact, target, graph, model, sites, rows, on_progress, variant=SMOOTHED, alphas=alphas
    )
    return Prepared(model, sites, once, seen, alphas)


def smoothed(model: ir.Model, channels: dict[str, Any], alphas: dict[str, float]) -> ir.Model:
    """A copy of the graph with these activations scaled."""
    from tfc.optimizers.precision.int8.smooth import smooth

    sites, _ = _sites(model)
    copy = model.clone()
    smooth(copy, sites, channels, alphas)
    return copy


def rebuilt(artifact: Artifact, target: str, graph: str) -> ir.Model:
    """The fp32 graph with what the recorded step quantised in int8, made anew.

    Raises:
        BadArtifact: the calibration or the graph is not there any more.
    """
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.ranges import Range

    result = int8_step(artifact, target, graph).result
    model = ir.load(artifact.file(optimized_file(target, graph)))
    if result["alphas"]:
        model = smoothed(model, channels_of(artifact, target, graph), result["alphas"])
    ranges = {name: Range(*ends) for name, ends in result["ranges"].items()}
    quantized = set(result["quantized"])
    sites = [site for site in _sites(model)[0] if site.node in quantized]
    (form,) = forms_of(target, result["form"], model, ranges)
    return form.graph(sites)


def int8_step(artifact: Artifact, target: str, graph: str) -> Step:
    """The record of the conversion to int8."""
    step = artifact.manifest.step(f"precision:{optimized_file(target, graph, INT8)}")
    assert step is not None
    return step


def target_of(engine: Engine) -> str:
    """What an int8 engine's graph was optimized for; ONNX Runtime has int8 for the CPU only."""
    return _CPU_TARGET if engine.backend == _CPU_TARGET else backend_of(engine.backend).target


def int8_steps(artifact: Artifact, engine: Engine) -> list[Step | None]:
    """The records of an engine's conversions; None for a graph that came with Q/DQ."""
    target = target_of(engine)
    names = (f"precision:{optimized_file(target, graph, INT8)}" for graph in engine.files)
    return [artifact.manifest.step(name) for name in names]


def _sites(model: ir.Model) -> tuple[list[Site], list[Site]]:
    from tfc.optimizers.precision.int8.sites import sites_of

    every = sites_of(model)
    return [site for site in every if site.tokens], [site for site in every if not site.tokens]
