"""The fp32 graph that int8 and fp8 start from: activations smoothed, and their values seen."""

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
    artifact: Artifact,
    target: str,
    graph: str,
    precision: str,
    rows: CalibrationRows,
    on_progress: OnProgress,
) -> Prepared:
    """Calibrate the graph, smooth it where that gains, and calibrate it again.

    Raises:
        ContractNotReached: it has nothing to quantise, or an activation is not finite.
    """
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.narrow import NARROW_TYPES
    from tfc.optimizers.precision.int8.smooth import sample_vectors, searched_alphas

    model = ir.load(artifact.file(optimized_file(target, graph)))
    sites, once = _sites(model)
    if not sites:
        raise ContractNotReached(
            "the graph has no product of token vectors with a constant matrix to quantise",
            where=str(artifact.path),
            fix="Build in half precision: --fp16 or --bf16",
        )
    own = variant_of(precision)
    seen = observed(artifact, target, graph, model, sites, rows, on_progress, variant=own)
    on_progress("smoothing", 0, 1)
    vectors = sample_vectors(model, sites, some_rows(rows).feeds)
    alphas = searched_alphas(model, sites, seen.channels, vectors, NARROW_TYPES[precision])
    if not alphas:
        return Prepared(model, sites, once, seen, alphas)
    model = smoothed(model, seen.channels, alphas)
    sites, once = _sites(model)
    own += SMOOTHED
    seen = observed(
        artifact, target, graph, model, sites, rows, on_progress, variant=own, alphas=alphas
    )
    return Prepared(model, sites, once, seen, alphas)


def variant_of(precision: str) -> str:
    """What tells the calibration of fp8 from that of int8, which may have had other rows."""
    return "" if precision == INT8 else f".{precision}"


def smoothed(model: ir.Model, channels: dict[str, Any], alphas: dict[str, float]) -> ir.Model:
    """A copy of the graph with these activations scaled."""
    from tfc.optimizers.precision.int8.smooth import smooth

    sites, _ = _sites(model)
    copy = model.clone()
    smooth(copy, sites, channels, alphas)
    return copy


def rebuilt(artifact: Artifact, target: str, graph: str, precision: str) -> ir.Model:
    """The fp32 graph with what the recorded step quantised, made anew.

    Raises:
        BadArtifact: the calibration or the graph is not there any more.
    """
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.narrow import NARROW_TYPES
    from tfc.optimizers.precision.int8.ranges import Range

    result = int8_step(artifact, target, graph, precision).result
    model = ir.load(artifact.file(optimized_file(target, graph)))
    if result["alphas"]:
        channels = channels_of(artifact, target, graph, variant_of(precision))
        model = smoothed(model, channels, result["alphas"])
    ranges = {name: Range(*ends) for name, ends in result["ranges"].items()}
    quantized = set(result["quantized"])
    sites = [site for site in _sites(model)[0] if site.node in quantized]
    (form,) = forms_of(target, result["form"], model, ranges, NARROW_TYPES[precision])
    return form.graph(sites)


def int8_step(artifact: Artifact, target: str, graph: str, precision: str = INT8) -> Step:
    """The record of the conversion to int8 or fp8."""
    step = artifact.manifest.step(f"precision:{optimized_file(target, graph, precision)}")
    assert step is not None
    return step


def target_of(engine: Engine) -> str:
    """What a quantised engine's graph was optimized for; ONNX Runtime has int8 for the CPU only."""
    return _CPU_TARGET if engine.backend == _CPU_TARGET else backend_of(engine.backend).target


def int8_steps(artifact: Artifact, engine: Engine) -> list[Step | None]:
    """The records of an engine's conversions; None for a graph that came with Q/DQ."""
    target = target_of(engine)
    files = (optimized_file(target, graph, engine.precision) for graph in engine.files)
    return [artifact.manifest.step(f"precision:{file}") for file in files]


def _sites(model: ir.Model) -> tuple[list[Site], list[Site]]:
    from tfc.optimizers.precision.int8.sites import sites_of

    every = sites_of(model)
    return [site for site in every if site.tokens], [site for site in every if not site.tokens]
