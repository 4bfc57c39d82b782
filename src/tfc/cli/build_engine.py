"""`tfc build-engine`."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from tfc.cli.build_options import cache_option, plan_options, traffic_options
from tfc.cli.console import facts, human_bytes, human_seconds, out, progress
from tfc.cli.options import (
    CapabilityList,
    Percent,
    SizeRange,
    allow_missed_option,
    artifact_argument,
    json_option,
    passes_option,
    remove_padding_option,
)
from tfc.cli.traffic_display import profile_rows

if TYPE_CHECKING:
    from tfc.manifest import Engine, Manifest
    from tfc.steps.build import BuildResult


@click.command("build-engine")
@artifact_argument
@click.option("--fp16", is_flag=True, help="Half precision: 11 bits, up to 65504.  [default: fp32]")
@click.option("--bf16", is_flag=True, help="Half precision: 8 bits, as large as fp32.")
@click.option("--int8", is_flag=True, help="8-bit integers where the accuracy allows; see --calib.")
@click.option("--fp8", is_flag=True, help="8-bit floats, for GPUs that have them; see --calib.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"]),
    default="auto",
    show_default=True,
    help="What builds the engine; auto takes the best that can run here.",
)
@click.option("--batch", type=SizeRange(), help="Batch sizes to build for.  [default: 1:32:256]")
@click.option(
    "--seq",
    "sequence",
    type=SizeRange(),
    help="Lengths in tokens to build for.  [default: 1:128:longest text]",
)
@traffic_options
@click.option(
    "--sm",
    "compute_capabilities",
    type=CapabilityList(),
    metavar="LIST",
    default=(),
    help="Compute capabilities to build for ahead of time, e.g. 89,120.  [default: all that share"
    " a plan; for fp8 89,120]",
)
@click.option(
    "--calib",
    type=click.Path(),
    metavar="DATA",
    help="For int8 and fp8: JSON lines with texts like those that the model will read.",
)
@click.option(
    "--calib-method",
    type=click.Choice(["auto", "min-max", "percentile", "entropy", "mse"]),
    help="How ranges are found in them; auto compares.  [default: auto]",
)
@click.option(
    "--calib-limit",
    type=click.IntRange(min=1),
    metavar="ROWS",
    help="Read the first so many rows.  [default: 512]",
)
@click.option(
    "--max-drop",
    type=Percent(),
    metavar="PERCENT",
    help="How far these may be below fp32 on them: in the main metric with --label-column, or else"
    " in agreement.  [default: 0.5%]",
)
@click.option(
    "--text-column", metavar="FIELD", help="The field with the text.  [default: the task's]"
)
@click.option(
    "--pair-column", metavar="FIELD", help="The field with the second text.  [default: the task's]"
)
@click.option("--label-column", metavar="FIELD", help="The field with the label.  [default: none]")
@click.option(
    "--int8-form",
    type=click.Choice(["auto", "dynamic", "static"]),
    help="For the CPU: ranges from each batch, or fixed; auto measures both.  [default: auto]",
)
@allow_missed_option
@passes_option
@remove_padding_option
@plan_options
@cache_option
@json_option
def command(
    artifact: str,
    fp16: bool,
    bf16: bool,
    int8: bool,
    fp8: bool,
    backend: str,
    batch: tuple[int, int, int] | None,
    sequence: tuple[int, int, int] | None,
    profile_from: str | None,
    buckets: int | None,
    compute_capabilities: tuple[str, ...],
    calib: str | None,
    calib_method: str | None,
    calib_limit: int | None,
    max_drop: float | None,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    int8_form: str | None,
    allow_missed: bool,
    passes: tuple[str, ...],
    remove_padding: bool,
    refit: bool,
    version_compatible: bool,
    hardware_compatible: str | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Compile the graph into an engine.

    The graph is optimized for the backend first, where that was not done yet. TensorRT-RTX builds
    ahead of time, without a GPU; such an engine is recorded as built and not run. What TensorRT
    compiled is audited: every attention block and every add+LayerNorm must be in a fused kernel,
    and matrix products in half if the engine is called so. 'tfc inspect --kernels' lists them all.

    With --int8 or --fp8 the texts of --calib are run first, to find the ranges of activations.
    Products are quantised as far as --max-drop allows; the most sensitive stay in fp16 (on the CPU
    in fp32).
    """
    from tfc.artifact import Artifact
    from tfc.errors import UsageError
    from tfc.steps.build import build_engine

    flags = (("fp16", fp16), ("bf16", bf16), ("int8", int8), ("fp8", fp8))
    asked = [name for name, on in flags if on]
    if len(asked) > 1:
        raise UsageError(
            f"an engine has one precision, and {len(asked)} were asked for",
            fix="Give one of --fp16, --bf16, --int8 and --fp8",
        )
    opened = Artifact.open(artifact)
    begun = time.perf_counter()
    with progress("building") as report:
        result = build_engine(
            opened,
            precision=asked[0] if asked else "fp32",
            backend=backend,
            batch=batch,
            sequence=sequence,
            profile_from=profile_from,
            buckets=buckets,
            compute_capabilities=compute_capabilities,
            calib=calib,
            calib_method=calib_method,
            calib_limit=calib_limit,
            max_drop=max_drop,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            int8_form=int8_form,
            allow_missed=allow_missed,
            passes=passes,
            remove_padding=remove_padding,
            refit=refit,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            cache=not no_cache,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    if as_json:
        click.echo(json.dumps(_as_json(result), indent=2, ensure_ascii=False))
        return
    title = (
        f"Engine {result.name} is up to date"
        if result.skipped
        else f"Built engine {result.name} in {human_seconds(time.perf_counter() - begun)}"
    )
    out.print(facts(title, _rows(opened.manifest, result)))


def _as_json(result: BuildResult) -> dict[str, Any]:
    """What was built, for machines."""
    return {
        "engine": result.name,
        "why": result.why,
        "skipped": result.skipped,
        "cache": result.cache,
        "notes": list(result.notes),
        **dataclasses.asdict(result.engine),
    }


def _rows(manifest: Manifest, result: BuildResult) -> dict[str, str]:
    """The lines of what was built."""
    engine = result.engine
    files = engine.files.values()
    size = sum(manifest.files[file].bytes for file in files)
    rows = {
        "backend": result.why,
        "file": f"{', '.join(files)}, {human_bytes(size)}",
        "runs on": engine.hardware,
        "state": _state(engine),
        "profile": ", ".join(
            f"{axis} {':'.join(map(str, sizes))}" for axis, sizes in engine.profile.items()
        ),
        **profile_rows(engine),
        "fusions": _fusions(manifest, engine.backend),
    }
    if "kernels" in engine.audit:
        rows["kernels"] = kernel_summary(engine.audit)
    if "precision" in engine.audit:
        rows["precision"] = precision_summary(engine.audit["precision"])
    if result.cache:
        rows["cache"] = result.cache
    for number, note in enumerate(result.notes):
        rows["note" + " " * number] = note
    return rows


def _state(engine: Engine) -> str:
    reason = engine.state_reason.partition(". ")[0]
    return f"{engine.state} here: {reason}" if reason else f"{engine.state} here"


def kernel_summary(audit: dict[str, Any]) -> str:
    """The audit in one line."""
    return f"{audit['kernels']} compiled; fused {fused_summary(audit)}"


def fused_summary(audit: Mapping[str, Any]) -> str:
    """`attention 6/6, add+LayerNorm 12/12`: fused kernels, of so many sites in the graph."""
    wanted = audit.get("wanted", {})
    split = audit.get("split_add_layernorm", 0)
    norms = audit["fused_add_layernorm"] + split + audit.get("gemm_residual_add", 0)
    return (
        f"attention {audit['fused_attention']}/{wanted.get('fused_attention', 0)}, add+LayerNorm "
        f"{norms}/{wanted.get('fused_add_layernorm', 0)}"
        + (f" ({split} of them shares a kernel with what follows it)" if split else "")
    )


def precision_summary(audit: Mapping[str, Any]) -> str:
    """`fp16 99.9 % of the FLOPs (8 GEMMs, 2 attentions), fp32 < 0.1 % (2 GEMMs)`."""
    from tfc.steps.precision_audit import percent

    parts = []
    for number, (precision, share) in enumerate(audit["compiled"].items()):
        counts = {"GEMM": share["gemms"], "attention": share["attentions"]}
        what = ", ".join(f"{n} {word}{'s' * (n != 1)}" for word, n in counts.items() if n)
        of = "" if number else " of the FLOPs"
        parts.append(f"{precision} {percent(share['share'])}{of} ({what})")
    unsized = audit["unsized"]
    more = f"; {unsized} of unknown size are not in the shares" if unsized else ""
    return (", ".join(parts) or "no matrix products") + more


def _fusions(manifest: Any, backend: str) -> str:
    from tfc.cli.optimize import fusion_summary
    from tfc.runtime.backends import backend as backend_of

    return fusion_summary(manifest.step(f"optimize:{backend_of(backend).target}").result)
