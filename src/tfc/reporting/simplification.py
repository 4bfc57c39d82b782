"""What `tfc optimize --simplify` took out of the graph."""

from __future__ import annotations

from typing import Any

from tfc.artifact import Artifact
from tfc.reporting.blocks import Note, Section, Table
from tfc.simplified_graph import SIMPLIFY_STEP
from tfc.steps.int8.verdict import number_text


def effect_text(report: dict[str, Any]) -> str:
    """`FLOPs 91.8 → 70.2 G (-23.5%), 1.22 times as fast as the whole graph (32×128)`."""
    whole, less = report["flops"]["whole"], report["flops"]["simplified"]
    speed = report["speed"]
    return (
        f"FLOPs {whole / 1e9:.3g} → {less / 1e9:.3g} G (-{1 - less / whole:.1%}), "
        f"{speed['times_whole']:.2f} times as fast as the whole graph "
        f"({speed['batch']}×{speed['sequence']} on ONNX Runtime's CPU provider)"
    )


def accuracy_texts(report: dict[str, Any]) -> list[str]:
    """What it costs on the rows that it was chosen on, and on the others."""
    names = {"choosing": "chosen on", "judging": "judged on other"}
    return [
        f"{name} {report['rows'][half]} rows: {_accuracy_text(report[half])}, at most "
        f"{report['max_drop']:.2%} allowed"
        for half, name in names.items()
    ]


def _accuracy_text(accuracy: dict[str, Any]) -> str:
    measure = accuracy["measure"]
    text = f"{measure} {number_text(measure, accuracy['agreement'])}"
    if accuracy["before"] is None:
        return text
    return f"{text}, {accuracy['metric']} {accuracy['before']:.4g} → {accuracy['after']:.4g}"


def simplification_section(artifact: Artifact) -> Section | None:
    """The section; None where the graph is whole."""
    step = artifact.manifest.step(SIMPLIFY_STEP)
    if step is None:
        return None
    rows = tuple(
        (
            site["module"],
            site["kind"],
            str(site["units"]),
            str(site["kept"]),
            f"{site['flops_share']:.0%}",
        )
        for site in step.result["sites"]
    )
    columns = ("where", "what", ">there were", ">kept", ">FLOPs saved")
    notes = [Note(f"{text}.") for text in (effect_text(step.result), *accuracy_texts(step.result))]
    return Section("Simplification", (*notes, Table(columns, rows)))
