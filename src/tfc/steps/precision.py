"""The optimized graph of a target in another precision, checked against fp32."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from tfc.artifact import Artifact
from tfc.errors import ContractNotReached, UsageError
from tfc.manifest import Step
from tfc.steps.cases import real_values
from tfc.steps.optimize import optimized_file
from tfc.steps.probes import probe_feeds
from tfc.steps.record import onnxruntime_version, versions_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.runtime.padding import Feed

PRECISIONS = ("fp32", "fp16", "bf16")
# fp16 keeps 11 bits; over a deep encoder its rounding adds up to a few 1e-3 of the
# output's scale (MiniLM: 3e-4). Ten times that is a broken graph, not rounding. Whether an engine
# is good enough is decided by `tfc verify`, not here. bf16 keeps 8 bits: eight times the noise.
_BROKEN = {"fp16": 0.05, "bf16": 0.4}


def convert(
    artifact: Artifact, target: str, graph: str, precision: str, *, weights_only: bool
) -> str:
    """Write an optimized graph of `target` in `precision`; returns its file's name.

    With `weights_only` the matrices are stored in half and the arithmetic stays in fp32: that is
    for ONNX Runtime's CPU provider, which has no half-precision products.

    Raises:
        UsageError: there is no such precision.
        ContractNotReached: the converted graph overflows, or is far from the fp32 one.
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
        _run(artifact, step, graph, weights_only)
    return output


def _run(artifact: Artifact, step: Step, graph: str, weights_only: bool) -> None:
    import onnx_ir as ir

    from tfc.onnx_files import save_onnx

    begun = time.perf_counter()
    feeds = probe_feeds(artifact, graph, exact=False)
    (source,) = step.inputs
    model = ir.load(artifact.file(source))
    converted, result = _converted(model, feeds, str(step.options["precision"]), weights_only)
    axes = {s.name: s.shape for s in artifact.manifest.graphs[graph].signature.outputs}
    difference = _difference(model, converted, feeds, axes)
    precision = str(step.options["precision"])
    if not difference <= _BROKEN[precision]:
        raise ContractNotReached(
            f"the {precision} graph is off by {difference:.3g} of the output's scale: "
            "something in this model overflows or loses in half precision",
            where=str(artifact.path),
            fix=f"Build in fp32: leave --{precision} out",
        )
    result["difference"] = difference
    with artifact.change() as change:
        save_onnx(converted, change.path(step.outputs[0]))
        seconds = time.perf_counter() - begun
        change.record(dataclasses.replace(step, seconds=seconds, result=result))


def _converted(
    model: ir.Model, feeds: list[Feed], precision: str, weights_only: bool
) -> tuple[ir.Model, dict[str, Any]]:
    """The converted graph, and what the manifest records of it."""
    from tfc.optimizers.precision.half import half_from_fp32
    from tfc.optimizers.precision.half_weights import half_weights_from_fp32
    from tfc.optimizers.precision.ranges import overflowing
    from tfc.optimizers.precision.types import HALF_TYPES

    if weights_only:
        converted, stored = half_weights_from_fp32(model)
        return converted, {"arithmetic": "fp32", "matrices_in_half": stored}
    half = HALF_TYPES[precision]
    too_large = {} if half.wide else overflowing(model, feeds)
    converted, report = half_from_fp32(model, half, too_large)
    return converted, {
        "arithmetic": precision,
        "half": report.half,
        "fp32": report.fp32,
        "kept": list(report.kept),
        "overflows_in": sorted(set(too_large.values())),
    }


def _difference(
    model: ir.Model, converted: ir.Model, feeds: list[Feed], axes: dict[str, list[int | str]]
) -> float:
    """How far the two are apart, as a share of the scale, where their outputs mean something."""
    from tfc.optimizers.executor import outputs_of, relative_difference

    expected, got = (
        [
            {name: real_values(array, axes[name], feed) for name, array in outputs.items()}
            for outputs, feed in zip(outputs_of(graph, feeds), feeds, strict=True)
        ]
        for graph in (model, converted)
    )
    return relative_difference(expected, got)
