"""An artifact → its report."""

from __future__ import annotations

from tfc.artifact import Artifact
from tfc.cli.console import human_count
from tfc.reporting.blocks import Report, Section, Table
from tfc.reporting.pipeline import fusions_section, precision_section, steps_section
from tfc.reporting.places import modules_section, relations_section
from tfc.reporting.profiles import profile_sections
from tfc.reporting.quantization import calibration_section
from tfc.reporting.speed import lengths_section, speed_section
from tfc.reporting.verdicts import engines_section, metrics_section, parity_section

_MOST_LABELS = 12


def report_of_artifact(artifact: Artifact) -> Report:
    """Everything that the artifact says about itself, for people."""
    sections = (
        engines_section(artifact),
        parity_section(artifact),
        relations_section(artifact),
        modules_section(artifact),
        metrics_section(artifact),
        speed_section(artifact),
        lengths_section(artifact),
        *profile_sections(artifact),
        fusions_section(artifact),
        precision_section(artifact),
        calibration_section(artifact),
        steps_section(artifact),
        _environment(artifact),
    )
    there = tuple(section for section in sections if section is not None)
    return Report(artifact.path.resolve().name, tuple(_facts(artifact).items()), there)


def _facts(artifact: Artifact) -> dict[str, str]:
    checkpoint, task = artifact.manifest.checkpoint, artifact.manifest.task
    more = len(task.labels) - _MOST_LABELS
    labels = ", ".join(task.labels[:_MOST_LABELS]) + (f" and {more} more" if more > 0 else "")
    found = {
        "Task": task.name,
        "Checkpoint": checkpoint.source,
        "Model": f"{checkpoint.architecture}, {human_count(checkpoint.parameters)} parameters",
        "Labels": labels,
        "SHA-256": checkpoint.sha256,
    }
    return {name: value for name, value in found.items() if value}


def _environment(artifact: Artifact) -> Section:
    rows = [
        (step.name, package, version)
        for step in artifact.manifest.steps
        for package, version in step.versions.items()
        if version
    ]
    merged: dict[tuple[str, str], list[str]] = {}
    for step, package, version in rows:
        merged.setdefault((package, version), []).append(step)
    cells = tuple((p, v, ", ".join(dict.fromkeys(steps))) for (p, v), steps in merged.items())
    return Section("Environment", (Table(("what", "version", "steps"), cells),))
