"""What was calibrated for an int8 engine, what is quantised, and what that costs."""

from __future__ import annotations

from typing import Any

from tfc.artifact import Artifact
from tfc.manifest import Step
from tfc.reporting.blocks import Block, Chart, Note, Section, Table
from tfc.reporting.charts import bars
from tfc.steps.int8.notes import accuracy_text, calibration_text, sites_text
from tfc.steps.precision_audit import percent

_MOST_LEFT = 20


def calibration_section(artifact: Artifact) -> Section | None:
    """One part for each graph in int8; None where there is none."""
    steps = [step for step in artifact.manifest.steps if "calibration" in step.result]
    blocks = [block for step in steps for block in _calibrated(step)]
    return Section("Calibration", tuple(blocks)) if blocks else None


def _calibrated(step: Step) -> list[Block]:
    result, file = step.result, step.name.partition(":")[2]
    blocks: list[Block] = [
        Note(f"{file}: {accuracy_text(result)}."),
        Note(f"{sites_text(result)}; {calibration_text(result)}."),
        _ranges(file, result["ranges"]),
    ]
    if left := result["left"][:_MOST_LEFT]:
        rows = tuple(
            (
                site["module"] or site["node"],
                site["why"],
                f"{site['error']:.1%}" if site["error"] else "-",
                percent(site["flops_share"]),
            )
            for site in left
        )
        columns = ("left in higher precision", "because of", ">error alone", ">GEMM FLOPs")
        blocks.append(Table(columns, rows, caption=file))
    return blocks


def _ranges(file: str, ranges: dict[str, Any]) -> Chart:
    largest = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
    widest = max(largest, key=lambda name: largest[name])
    says = (
        f"The largest magnitude that int8 holds of each of {len(ranges)} activations of {file}, in "
        f"their order: {min(largest.values()):.3g} to {largest[widest]:.3g} ({widest})"
    )
    return Chart(bars(list(largest.values()), "largest magnitude", "activations"), says)
