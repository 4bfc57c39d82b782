"""What is known of each engine: whether it says what PyTorch says, and how well it does."""

from __future__ import annotations

import json
from typing import Any

from tfc.artifact import VERIFY_REPORT, Artifact
from tfc.cli.console import human_bytes
from tfc.reporting.blocks import Block, Chart, Note, Section, Table
from tfc.reporting.charts import errors
from tfc.runtime.selection import verdict_of
from tfc.steps.verification.task_metrics import points_text, value_text

NOT_RUN = "not run"


def engines_section(artifact: Artifact) -> Section:
    """A row for each engine."""
    manifest = artifact.manifest
    if not manifest.engines:
        return Section(
            "Engines", (_missing("No engine was built", f"build-engine {_name(artifact)}"),)
        )
    rows = []
    for name, engine in manifest.engines.items():
        size = sum(manifest.files[file].bytes for file in engine.files.values())
        profile = ", ".join(f"{k} {':'.join(map(str, v))}" for k, v in engine.profile.items())
        verdict = verdict_of(artifact, name)
        rows.append((name, engine.precision, verdict, engine.state, human_bytes(size), profile))
    columns = ("engine", "precision", "parity", "state here", ">size", "sizes (min:opt:max)")
    reasons = [
        Note(f"{name} is {engine.state}: {engine.state_reason}", missing=True)
        for name, engine in manifest.engines.items()
        if engine.state_reason
    ]
    return Section("Engines", (Table(columns, tuple(rows)), *reasons))


def parity_section(artifact: Artifact) -> Section:
    """How far each engine is from PyTorch, and how far it may be."""
    found = report_of(artifact, VERIFY_REPORT)
    if found is None:
        return Section("Parity", (_missing("Parity was not checked", f"verify {_name(artifact)}"),))
    rows, limits = [], {}
    notes: list[Block] = [
        Note(f"{found['rows']} rows of {found['data']}, against {found['reference']}.")
    ]
    for name, engine in found["engines"].items():
        allowed = engine["tolerance"].get("max_abs")
        for output, numbers in engine["outputs"].items():
            of = name if len(engine["outputs"]) == 1 else f"{name}, {output}"
            rows.append((of, engine["verdict"], *_numbers(numbers, allowed)))
            if allowed is not None:
                limits[of] = (numbers["max_abs"], allowed)
        if not engine["outputs"]:
            rows.append((name, engine["verdict"], *["-"] * 5))
        if engine["reason"]:
            missing = engine["verdict"] == NOT_RUN
            notes.append(Note(f"{name} {engine['verdict']}: {engine['reason']}", missing))
    for name, source in found.get("tolerance_source", {}).items():
        notes.append(Note(f"What {name} is allowed is {source}."))
    columns = ("engine", "verdict", ">max abs", ">mean abs", ">allowed", ">cosine", ">argmax")
    return Section("Parity", (Table(columns, tuple(rows)), *_chart(limits), *notes))


def _chart(limits: dict[str, tuple[float, float]]) -> list[Block]:
    shown = {name: pair for name, pair in limits.items() if pair[1] > 0}
    if not shown:
        return []
    says = "; ".join(
        f"{name}: largest error {error:.1e} of {limit:.1e} allowed"
        for name, (error, limit) in shown.items()
    )
    return [Chart(errors(shown), f"Largest error and what is allowed. {says}")]


def _numbers(numbers: dict[str, float], allowed: float | None) -> tuple[str, ...]:
    agreement = numbers.get("argmax_agreement")
    return (
        f"{numbers['max_abs']:.1e}",
        f"{numbers['mean_abs']:.1e}",
        "-" if allowed is None else f"{allowed:.1e}",
        f"{numbers['cosine']:.6f}",
        "-" if agreement is None else f"{agreement:.2%}",
    )


def metrics_section(artifact: Artifact) -> Section | None:
    """The task's metrics on labelled rows; None where the data had no labels."""
    found = (report_of(artifact, VERIFY_REPORT) or {}).get("metrics")
    if found is None:
        return None
    blocks: list[Block] = []
    for name, engine in found["engines"].items():
        rows = tuple(
            (
                metric,
                value_text(metric, found["pytorch"]["values"][metric]),
                value_text(metric, value),
                *_difference(metric, engine["differences"][metric]),
            )
            for metric, value in engine["values"].items()
        )
        columns = ("metric", ">PyTorch", ">engine", ">points", ">95 % interval")
        blocks.append(Table(columns, rows, caption=f"{name} on {found['rows']} labelled rows"))
        if flipped := engine.get("flipped"):
            blocks.append(Note(f"{name} and PyTorch differ on {flipped['rows']} rows."))
        if classes := engine.get("classes"):
            blocks.append(_classes(name, classes))
    return Section("Task metrics", tuple(blocks))


def _difference(metric: str, difference: dict[str, float]) -> tuple[str, str]:
    value, low, high = (
        points_text(metric, difference[of]).removesuffix(" points")
        for of in ("value", "low", "high")
    )
    return value, f"{low} to {high}"


def _classes(name: str, classes: dict[str, dict[str, float]]) -> Table:
    rows = tuple(
        (
            label,
            *(f"{found[k]:.2f}" for k in ("precision", "recall", "f1")),
            f"{found['support']:.0f}",
        )
        for label, found in classes.items()
    )
    columns = ("class", ">precision", ">recall", ">F1", ">rows")
    return Table(columns, rows, caption=f"Classes as {name} tells them")


def report_of(artifact: Artifact, name: str) -> Any:
    """A JSON report of the artifact; None where it was not written."""
    if name not in artifact.manifest.files:
        return None
    return json.loads(artifact.file(name).read_text(encoding="utf-8"))


def _missing(what: str, command: str) -> Note:
    return Note(f"{what}. Do it with: tfc {command}", missing=True)


def _name(artifact: Artifact) -> str:
    return artifact.path.name
