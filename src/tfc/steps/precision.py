"""The optimized graph of a target in another precision, checked against fp32."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tfc.artifact import Artifact
from tfc.errors import ContractNotReached, UsageError
from tfc.manifest import Step
from tfc.steps.cases import real_values
from tfc.steps.flops import products_of_graph
from tfc.steps.optimize import optimized_file
from tfc.steps.precision_plans import PrecisionPlans
from tfc.steps.probes import probe_feeds
from tfc.steps.profiles import profile_of
from tfc.steps.record import onnxruntime_version, versions_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.build_cache import BuildCache
    from tfc.optimizers.precision.repair import Pin
    from tfc.optimizers.precision.types import HalfType
    from tfc.runtime.backends.base import Profile
    from tfc.runtime.padding import Feed

PRECISIONS = ("fp32", "fp16", "bf16")
Axes = dict[str, list[int | str]]


def convert(
    artifact: Artifact,
    target: str,
    graph: str,
    precision: str,
    *,
    weights_only: bool,
    cache: BuildCache | None = None,
) -> str:
    """Write an optimized graph of `target` in `precision`; returns its file's name.

    With `weights_only` the matrices are stored in half and the arithmetic stays in fp32: that is
    for ONNX Runtime's CPU provider, which has no half-precision products. What another checkpoint
    of the same architecture had to keep in fp32 is tried first, if `cache` has it.

    Raises:
        UsageError: there is no such precision.
        ContractNotReached: the converted graph is further from the fp32 one than its gate allows
            (`tfc.optimizers.precision.repair`), whatever is kept in fp32.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"there is no precision '{precision}'", fix=f"Choose one of: {', '.join(PRECISIONS)}"
        )
    source = optimized_file(target, graph)
    if precision == "fp32":
        return source
    output = optimized_file(target, graph, f"{precision}-weights" if weights_only else precision)
    step = Step(
        name=f"precision:{output}",
        options={"precision": precision, "weights_only": weights_only},
        inputs={source: artifact.sha256(source)},
        outputs=[output],
        versions={**versions_of("onnx-ir"), **onnxruntime_version()},
        seconds=0.0,
    )
    if artifact.up_to_date(step) is None:
        _run(artifact, step, graph, cache)
    return output


def _run(artifact: Artifact, step: Step, graph: str, cache: BuildCache | None) -> None:
    import onnx_ir as ir

    from tfc.onnx_files import save_onnx
    from tfc.optimizers.precision.types import HALF_TYPES

    begun = time.perf_counter()
    (source,) = step.inputs
    model = ir.load(artifact.file(source))
    axes = {s.name: s.shape for s in artifact.manifest.graphs[graph].signature.outputs}
    feeds = probe_feeds(artifact, graph, exact=False)
    half = HALF_TYPES[str(step.options["precision"])]
    if step.options["weights_only"]:
        converted, result = _weights(model, half, feeds, axes)
    else:
        plans = PrecisionPlans(cache, model, half.name)
        converted, result = _arithmetic(model, half, feeds, axes, first=plans.first())
        plans.keep(result["pins"])
        result["fp32_share"] = _fp32_share(converted, profile_of(artifact, None, None))
    fix = f"Build in fp32: leave --{half.name} out" + ("" if half.wide else ", or try --bf16")
    _refuse_unless_held(artifact, half.name, result, fix)
    with artifact.change() as change:
        save_onnx(converted, change.path(step.outputs[0]))
        seconds = time.perf_counter() - begun
        change.record(dataclasses.replace(step, seconds=seconds, result=result))


def _weights(
    model: ir.Model, half: HalfType, feeds: list[Feed], axes: Axes
) -> tuple[ir.Model, dict[str, Any]]:
    """The graph with its weights stored in half, and what the manifest records of it."""
    from tfc.optimizers.precision.half_weights import half_weights_from_fp32
    from tfc.optimizers.precision.repair import measured

    converted, stored = half_weights_from_fp32(model)
    gate = measured(model, converted, half, feeds, partial(_meaningful, axes, feeds))
    return converted, {
        "arithmetic": "fp32",
        "matrices_in_half": stored,
        "gate": dataclasses.asdict(gate),
    }


def _arithmetic(
    model: ir.Model,
    half: HalfType,
    feeds: list[Feed],
    axes: Axes,
    at_least: float = 0.0,
    first: Sequence[Pin] = (),
) -> tuple[ir.Model, dict[str, Any]]:
    """The graph computing in half, and what the manifest records of it."""
    from tfc.optimizers.precision.ranges import overflowing
    from tfc.optimizers.precision.repair import repaired_half
    from tfc.optimizers.precision.scores import overflowing_scores

    too_large: dict[str, str] = {}
    if not half.wide:
        too_large = overflowing(model, feeds) | overflowing_scores(model, feeds)
    select = partial(_meaningful, axes, feeds)
    begin = [pin for pin in first if pin.value not in too_large]
    found = repaired_half(model, half, feeds, too_large, select, at_least=at_least, first=begin)
    return found.model, {
        "arithmetic": half.name,
        "half": found.report.half,
        "fp32": found.report.fp32,
        "kept": list(found.report.kept),
        "overflows_in": sorted(set(too_large.values())),
        "pins": [dataclasses.asdict(pin) for pin in found.pins],
        "rounds": found.rounds,
        "pins_tried_first": len(begin),
        "gate": dataclasses.asdict(found.gate),
    }


def checked_half(
    artifact: Artifact, model: ir.Model, graph: str, precision: str, at_least: float
) -> tuple[ir.Model, dict[str, Any]]:
    """A graph made of one of the artifact's computing in half, and what was found about it.

    An error of `at_least` (root mean square) is allowed whatever the noise floor is.

    Raises:
        ContractNotReached: it is further from the given one than its gate allows.
    """
    from tfc.optimizers.precision.types import HALF_TYPES

    axes = {s.name: s.shape for s in artifact.manifest.graphs[graph].signature.outputs}
    feeds = probe_feeds(artifact, graph, exact=False)
    converted, result = _arithmetic(model, HALF_TYPES[precision], feeds, axes, at_least)
    fix = f"What is not quantised runs in {precision}: build in fp32 or --bf16 instead"
    _refuse_unless_held(artifact, precision, result, fix)
    return converted, result


def _refuse_unless_held(
    artifact: Artifact, precision: str, result: dict[str, Any], fix: str
) -> None:
    gate = result["gate"]
    if gate["error"] <= gate["allowed"]:
        return
    tried = f" after {result['rounds']} rounds of repair" if result.get("pins") else ""
    raise ContractNotReached(
        f"the {precision} graph's {gate['output']} is off by {gate['error']:.3g} (rms){tried}; "
        f"rounding its matrix products to {precision} gives {gate['floor']:.3g}, and "
        f"{gate['allowed']:.3g} is allowed",
        where=str(artifact.path),
        fix=fix,
    )


def _fp32_share(converted: ir.Model, profile: Profile) -> float:
    """The share of the matrix arithmetic on token tensors that stays in fp32."""
    products = [p for p in products_of_graph(converted, profile) if p.of_tokens]
    total = sum(product.flops or 0 for product in products)
    wide = sum(product.flops or 0 for product in products if product.precision == "fp32")
    return wide / total if total else 0.0


def _meaningful(
    axes: Axes, feeds: list[Feed], found: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Of the outputs for each feed, what is not padding."""
    return [
        {name: real_values(array, axes[name], feed) for name, array in outputs.items()}
        for outputs, feed in zip(found, feeds, strict=True)
    ]
