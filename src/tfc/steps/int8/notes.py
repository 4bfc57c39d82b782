"""What `tfc build-engine` says of an int8 engine: accuracy, what is in int8, what was left."""

from __future__ import annotations

from typing import Any

from tfc.manifest import Step
from tfc.steps.int8.convert import BUDGET
from tfc.steps.int8.verdict import number_text
from tfc.steps.precision_audit import percent
from tfc.steps.verification.task_metrics import points_text, value_text

# No model is as good as that on rows that it has not seen.
_TRAINED_ON = 0.999
_NAMED = 4  # sites in a note: it stays within a few lines of 80 columns


def int8_notes(step: Step | None) -> tuple[str, ...]:
    """The accuracy, the sites, what was left alone, and whether there were enough rows."""
    if step is None:
        return ("the graph has Q/DQ of another tool, and is left as it is",)
    result = step.result
    notes = [accuracy_text(result), sites_text(result), *_left(result)]
    if "forms" in result:
        notes.append(_forms(result))
    notes.append(calibration_text(result))
    before = result["accuracy"]["before"]
    if before is not None and before >= _TRAINED_ON:
        notes.append(
            f"fp32 is right on {before:.1%} of these rows, as it is on rows that a model was "
            "trained on; on others int8 changes more: calibrate on rows that it has not seen"
        )
    return tuple(notes)


def accuracy_text(result: dict[str, Any]) -> str:
    """`accuracy 93.50% in fp32, 93.50% in int8; same labels 99.80% (0.50 points may be lost)`."""
    found = result["accuracy"]
    metric, allowed = found["metric"], result["max_drop"]
    asked, reached = (
        number_text(found["measure"], value) for value in (1 - allowed, found["agreement"])
    )
    agreement = f"{found['measure']} as fp32: {reached}"
    if found["before"] is None:
        return f"{agreement} (at least {asked} asked)"
    before, after = (value_text(metric, found[key]) for key in ("before", "after"))
    return (
        f"{metric} {before} in fp32, {after} in int8 (at most {points_text(metric, allowed)} "
        f"may be lost); {agreement}"
    )


def sites_text(result: dict[str, Any]) -> str:
    """`24 of 27 products in int8, 97.1 % of the GEMM FLOPs`."""
    sites = result["sites"]
    return (
        f"{sites['quantized']} of {sites['all']} products in int8, "
        f"{percent(sites['flops_share'])} of the GEMM FLOPs"
    )


def calibration_text(result: dict[str, Any]) -> str:
    """On how much the ranges stand, and whether that is enough."""
    found = result["calibration"]
    moved = found["movement"]
    text = (
        f"calibrated on {found['rows']} rows ({found['tokens']} tokens), {result['method']}; "
        f"between two halves of them ranges differ by {moved['mean']:.1%} on average, "
        f"{moved['most']:.1%} at most"
    )
    if moved["enough"]:
        text += f": too few rows, give some {moved['enough']}"
    return text


def _left(result: dict[str, Any]) -> list[str]:
    """Left for the budget, the most sensitive first, and what that costs."""
    left = [site for site in result["left"] if site["why"] == BUDGET]
    if not left:
        return []
    left = sorted(left, key=lambda site: -site["error"])
    named = ", ".join(
        f"{site['module'] or site['node']} ({site['error']:.1%})" for site in left[:_NAMED]
    )
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    share = percent(sum(site["flops_share"] for site in left))
    return [
        f"left in higher precision for the budget: {named}{more}; in brackets the error of the "
        f"output if that product alone is in int8; together {share} of the GEMM FLOPs"
    ]


def _forms(result: dict[str, Any]) -> str:
    """Which form was taken, and how fast the others are."""
    found = result["forms"]
    each = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found["times_fp32"].items())
    return (
        f"form {result['form']}: times as fast as fp32 at {found['batch']} x "
        f"{found['sequence']} tokens: {each}"
    )
