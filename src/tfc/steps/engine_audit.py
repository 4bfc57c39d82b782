"""What a backend compiled, held against what the graph asked for: fusions and precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfc.artifact import Artifact
from tfc.errors import ContractNotReached
from tfc.kernel_report import KernelRecord, KernelReport
from tfc.runtime.backends.base import Backend, Built, Kernel, Profile
from tfc.runtime.backends.kernels import audit_of_kernels
from tfc.steps.flops import products_of_graph
from tfc.steps.kernel_records import records_of_kernels
from tfc.steps.optimize import step_name
from tfc.steps.precision_audit import (
    Judged,
    check_precision,
    judge_products,
    narrowed,
    precision_audit,
)

KERNELS = "kernels.json"
_IN_FP32 = "TensorRT fuses attention in fp16 and bf16 only; in fp32 it is compiled as its products"


@dataclass(frozen=True)
class EngineAudit:
    """What the manifest says of the kernels, what to tell the user, and the kernels themselves.

    `report` is None for a backend that compiles no kernels of its own.
    """

    audit: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    report: KernelReport | None = None


def kernels_file(chosen: Backend, name: str) -> str:
    """The file of the engine called `name` that lists its kernels; empty if it has none."""
    return f"engines/{name}/{KERNELS}" if chosen.target == "tensorrt" else ""


def audit_engine(
    artifact: Artifact,
    chosen: Backend,
    models: Mapping[str, str],
    built: Sequence[Built],
    *,
    profile: Profile,
    precision: str,
    allow_missed: bool,
) -> EngineAudit:
    """Compare the compiled kernels with the fusions and the types of the graphs.

    Args:
        artifact: the artifact that the engine is for.
        chosen: the backend that built it.
        models: graph → the file that was compiled, in the order of `built`.
        built: what the backend says of each.
        profile: the sizes that it was built for.
        precision: what the engine is called by.
        allow_missed: keep the engine although a fusion has no kernel.

    Raises:
        ContractNotReached: an attention block or add+LayerNorm site has no fused kernel, or the
            matrix products run in another precision.
    """
    if chosen.target != "tensorrt":
        return EngineAudit()
    kernels = tuple(kernel for one in built for kernel in one.kernels)
    graphs: dict[str, list[KernelRecord]] = {}
    judged: list[Judged] = []
    for (graph, model), one in zip(models.items(), built, strict=True):
        graphs[graph], products = _records(artifact.file(model), one.kernels, profile)
        judged.extend(products)
    kept = {name for model in models.values() for name in _kept(artifact, model)}
    unfused = sum(one.product.attention and one.product.node in kept for one in judged)
    fused, notes = _fusions(artifact, chosen, kernels, unfused) if kernels else ({}, ())
    if notes and not allow_missed and precision != "fp32":
        raise ContractNotReached(
            f"the compiled engine is not fused as the graph is: {', '.join(notes)}",
            fix="Pass --allow-missed to keep this engine",
        )
    if precision == "fp32" and any(note.startswith("fused attention") for note in notes):
        notes = (*notes, _IN_FP32)
    check_precision(precision, judged, kept, where=", ".join(models.values()))
    lost = [one.product.node for one in narrowed(judged) if one.product.node in kept]
    if lost:
        notes = (*notes, f"kept in fp32, yet compiled in {precision}: {', '.join(lost)}")
    audit = {**fused, "precision": precision_audit(judged).as_json()}
    return EngineAudit(audit, notes, KernelReport(chosen.name, precision, graphs))


def _records(
    file: Path, kernels: Sequence[Kernel], profile: Profile
) -> tuple[list[KernelRecord], Sequence[Judged]]:
    """One graph's kernels, and its products with what they compute in."""
    import onnx_ir as ir

    model = ir.load(file)
    records = records_of_kernels(kernels, model)
    return records, judge_products(products_of_graph(model, profile), records)


def _kept(artifact: Artifact, model: str) -> list[str]:
    """The nodes that the precision step left in fp32 because half precision overflows."""
    step = artifact.manifest.step(f"precision:{model}")
    return list(step.result.get("kept", ())) if step is not None else []


def _fusions(
    artifact: Artifact, chosen: Backend, kernels: Sequence[Kernel], unfused: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The audit of the kernels, and what has fewer fused kernels than the graph has sites.

    There is no fused kernel for the `unfused` attentions that were left in fp32.
    """
    audit = audit_of_kernels(kernels)
    step = artifact.manifest.step(step_name(chosen.target))
    fusions = step.result["fusions"] if step is not None else {}
    wanted = {
        "fused_attention": fusions.get("attention", {}).get("found", 0) - unfused,
        "fused_add_layernorm": fusions.get("add_layernorm", {}).get("found", 0),
    }
    reached = {
        "fused_attention": audit.fused_attention,
        "fused_add_layernorm": audit.fused_add_layernorm
        + audit.split_add_layernorm
        + audit.gemm_residual_add,
    }
    short = [
        f"{key.replace('_', ' ')} kernels {reached[key]}/{number}"
        for key, number in wanted.items()
        if reached[key] < number
    ]
    return {**dataclasses.asdict(audit), "wanted": wanted}, tuple(short)
