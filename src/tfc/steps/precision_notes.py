"""What `tfc build-engine` says of the values that were kept in fp32."""

from __future__ import annotations

from tfc.manifest import Step
from tfc.steps.precision_audit import percent

_NAMED = 4  # modules in a note: it stays within a few lines of 80 columns


def pin_notes(step: Step) -> tuple[str, ...]:
    """What was kept in fp32 by a precision step, why, and what that costs; at most two notes."""
    result = step.result
    precision = result["arithmetic"]
    notes = []
    if result["overflows_in"]:
        notes.append(f"kept in fp32 because {precision} overflows: {_few(result['overflows_in'])}")
    pins: dict[str, str] = {}
    for pin in result.get("pins", ()):
        pins.setdefault(pin["module"] or pin["node"], pin["why"])
    if pins:
        named = _few([f"{place} ({why})" for place, why in pins.items()])
        notes.append(f"kept in fp32 after comparing with the fp32 graph: {named}")
    if notes and "fp32_share" in result:  # a step of an earlier tfc tells neither
        share = percent(result["fp32_share"])
        notes[-1] += f"; in fp32: {share} of the FLOPs on tokens"
    return tuple(notes)


def _few(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
