"""`tfc inspect`: what an artifact holds, and what each step did to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType

from tfc.artifact import MANIFEST, Artifact
from tfc.cli.console import (
    facts,
    human_bytes,
    human_count,
    human_seconds,
    out,
    printable,
    table,
)
from tfc.cli.options import engine_option
from tfc.cli.traffic_display import profile_rows
from tfc.ensemble import ensemble_summary
from tfc.errors import UsageError
from tfc.manifest import Engine, Manifest, Step, TensorSpec, Verdict
from tfc.reporting.simplification import effect_text
from tfc.simplified_graph import SIMPLIFY_STEP
from tfc.steps.kernels import engines_of

_LABELS_SHOWN = 6
_MISSES_SHOWN = 5  # the rest is in the JSON
_OPTIONS_WIDTH = 44  # characters, so that a step stays one line
_NAMES = {"add_layernorm": "add+LayerNorm"}  # what a key of a report is called
_HASH_SHOWN = 12  # hex digits, as git shows them


@click.command("inspect")
@click.argument("artifact", type=click.Path(path_type=Path))
@engine_option
@click.option("--kernels", is_flag=True, help="Show what TensorRT compiled, kernel by kernel.")
@click.option(
    "--before",
    is_flag=True,
    help="With --kernels: compile the unoptimized export too, and compare.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(
    artifact: Path, engines: tuple[str, ...], kernels: bool, before: bool, as_json: bool
) -> None:
    """Show what the folder ARTIFACT holds: signature, files, steps, fusions, engines.

    Sizes are compared with the manifest; hashes are checked by the step that uses a file.

    With --engine, show this engine only. With --kernels, show each kernel of a typical layer with
    the nodes and modules that it was made from, the kernels outside layers, and totals.
    """
    opened = Artifact.open(artifact)
    if before and not kernels:
        raise UsageError("--before goes with --kernels", fix="Add --kernels, or leave it out")
    if as_json:
        click.echo(_json(opened, engines, kernels, before), nl=False)
        return
    if kernels:
        from tfc.cli.kernels import kernel_sections

        sections = kernel_sections(opened, engines, before=before)
    else:
        sections = _sections(opened, engines)
    for number, section in enumerate(sections):
        if number:
            out.print()
        out.print(section)


def _json(artifact: Artifact, engines: tuple[str, ...], kernels: bool, before: bool) -> str:
    """The kernels, the chosen engines, or the manifest as it stands."""
    if kernels:
        from tfc.cli.kernels import kernels_json

        return json.dumps(kernels_json(artifact, engines, before=before), indent=2) + "\n"
    if engines:
        chosen = engines_of(artifact, engines)
        return json.dumps({n: dataclasses.asdict(e) for n, e in chosen.items()}, indent=2) + "\n"
    return (artifact.path / MANIFEST).read_text(encoding="utf-8")


def _sections(artifact: Artifact, asked: tuple[str, ...]) -> list[RenderableType]:
    manifest = artifact.manifest
    optimized = [step for step in manifest.steps if step.name.startswith("optimize:")]
    engines = [
        facts(f"Engine {printable(n)}", _engine(artifact, n, engine))
        for n, engine in engines_of(artifact, asked).items()
    ]
    if asked:
        return [*engines]
    return [
        facts(f"Artifact {printable(str(artifact.path))}", _summary(manifest)),
        *_members(manifest),
        _signature(manifest),
        _files(artifact),
        _steps(manifest),
        *(section for step in optimized for section in _fusions(step)),
        *engines,
    ]


def _summary(manifest: Manifest) -> dict[str, str]:
    checkpoint, task, preprocess = manifest.checkpoint, manifest.task, manifest.preprocess
    revision = f" at {checkpoint.revision}" if checkpoint.revision else ""
    rows = {
        "checkpoint": f"{checkpoint.source}{revision}",
        "model": f"{checkpoint.architecture} ({checkpoint.model_type}), "
        f"{human_count(checkpoint.parameters)} parameters",
        "sha256": f"{checkpoint.sha256[:_HASH_SHOWN]}…",
        "task": ", ".join(
            part
            for part in (
                task.name,
                task.problem.replace("_", " "),
                f"{task.pooling} pooling" if task.pooling else "",
                "normalized" if task.normalize else "",
            )
            if part
        ),
        "labels": _labels(task.labels),
        **{f"head {name}": _labels(head.labels) for name, head in task.heads.items()},
        "text": f"at most {preprocess.max_length} tokens, padded on the {preprocess.padding_side}"
        if preprocess
        else "",
        "simplified": _simplified(manifest),
        "vocabulary": _vocabulary(manifest),
        "reports": ", ".join(n for n in manifest.files if n.startswith("reports/")),
        "written by": f"tfc {manifest.tfc}, schema {manifest.schema}",
    }
    return {name: value for name, value in rows.items() if value}


def _simplified(manifest: Manifest) -> str:
    """What was taken out of the graph; empty where it is whole."""
    step = manifest.step(SIMPLIFY_STEP)
    return effect_text(step.result) if step is not None else ""


def _vocabulary(manifest: Manifest) -> str:
    """How much of a trimmed vocabulary was kept; empty where it is whole."""
    step = manifest.step("trim-vocab")
    tokens = _mapping(step.result.get("tokens")) if step is not None else {}
    return f"{_plain(tokens['after'])} of {_plain(tokens['before'])} tokens" if tokens else ""


def _members(manifest: Manifest) -> list[RenderableType]:
    """The models of an ensemble, in their order."""
    if manifest.ensemble is None:
        return []
    grid = table(
        f"Members: {ensemble_summary(manifest.ensemble)}",
        ["", "checkpoint", "model", ">parameters", "sha256"],
    )
    for number, member in enumerate(manifest.ensemble.members, start=1):
        checkpoint = member.checkpoint
        cells = (checkpoint.source, checkpoint.model_type, human_count(checkpoint.parameters))
        sha256 = f"{checkpoint.sha256[:_HASH_SHOWN]}…"
        grid.add_row(str(number), *map(printable, cells), sha256)
    return [grid]


def _labels(labels: list[str]) -> str:
    if not labels:
        return ""
    more = len(labels) - _LABELS_SHOWN
    shown = ", ".join(labels[:_LABELS_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return f"{len(labels)}: {shown}"


def _signature(manifest: Manifest) -> RenderableType:
    grid = table("Signature", ["", "tensor", "type", "shape"])

    def add(direction: str, tensors: list[TensorSpec]) -> None:
        for name, tensor in _caches_as_one(tensors):
            shape = ", ".join(str(axis) for axis in tensor.shape)
            cells = (direction, name, tensor.dtype, f"[{shape}]")
            grid.add_row(*map(printable, cells))

    for name, graph in manifest.graphs.items():
        prefix = f"{name} " if len(manifest.graphs) > 1 else ""
        add(f"{prefix}in", graph.signature.inputs)
        add(f"{prefix}out", graph.signature.outputs)
    return grid


def _caches_as_one(tensors: list[TensorSpec]) -> list[tuple[str, TensorSpec]]:
    """`past_key_values.0.key`, `.value`, … of one shape as `past_key_values × 24`."""
    groups: dict[tuple[str, str], list[TensorSpec]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.name.partition(".")[0], str(tensor.shape)), []).append(tensor)
    return [
        (f"{family} × {len(group)}" if len(group) > 1 else group[0].name, group[0])
        for (family, _), group in groups.items()
    ]


def _files(artifact: Artifact) -> RenderableType:
    total = sum(record.bytes for record in artifact.manifest.files.values())
    grid = table(f"Files, {human_bytes(total)}", ["file", ">size", ""])
    for name, record in sorted(artifact.manifest.files.items()):
        path = artifact.path / name
        state = "" if path.is_file() else "missing"
        if not state and path.stat().st_size != record.bytes:
            state = f"has {human_bytes(path.stat().st_size)}: damaged"
        grid.add_row(printable(name), human_bytes(record.bytes), state)
    return grid


def _steps(manifest: Manifest) -> RenderableType:
    grid = table("Steps", ["step", ">time", "options"])
    for step in manifest.steps:
        given = [f"{k}={_plain(v)}" for k, v in step.options.items() if v not in (None, "", [], {})]
        options = printable(" ".join(given)).replace("\n", " ")
        if len(options) > _OPTIONS_WIDTH:
            options = f"{options[: _OPTIONS_WIDTH - 1]}…"
        grid.add_row(printable(step.name), human_seconds(step.seconds), options)
    return grid


def _fusions(step: Step) -> list[RenderableType]:
    """What one `optimize` step says: counts, the passes in one line, reverts and misses."""
    passes = [_mapping(entry) for entry in _items(step.result.get("passes"))]
    changed = [entry for entry in passes if entry.get("changed") and not entry.get("reverted")]
    reverted = [_plain(name) for name in _items(step.result.get("reverted"))]
    nodes = _mapping(step.result.get("nodes"))
    rows = {
        "found": _figures(_mapping(step.result.get("fusions"))),
        "passes": f"{len(changed)} of {len(passes)} changed the graph{_largest(changed)}"
        if passes
        else "",
        "nodes": f"{_plain(nodes.get('before'))} before, {_plain(nodes.get('after'))} after"
        if nodes
        else "",
        "reverted": ", ".join(reverted),
    }
    target = printable(step.name.partition(":")[2])
    title = f"Fusions for {target}"
    sections: list[RenderableType] = [facts(title, {k: v for k, v in rows.items() if v})]
    missed = [_mapping(entry) for entry in _items(step.result.get("missed"))]
    if missed:
        sections.append(_missed(missed, target))
    return sections


def _missed(missed: list[Mapping[str, Any]], target: str) -> RenderableType:
    rest = len(missed) - _MISSES_SHOWN
    title = f"Missed for {target}" + (f", the first {_MISSES_SHOWN} of {len(missed)}" * (rest > 0))
    grid = table(title, ["fusion", "where", "reason"])
    for entry in missed[:_MISSES_SHOWN]:
        where = _plain(entry.get("module") or entry.get("node") or "–")
        cells = (_plain(entry.get("kind", "–")), where, _plain(entry.get("reason", "–")))
        grid.add_row(*map(printable, cells))
    return grid


def _largest(passes: list[Mapping[str, Any]]) -> str:
    """The largest difference that a pass made, relative to the outputs' scale, and which pass."""
    measured = [
        (difference, _plain(entry.get("name", "–")))
        for entry in passes
        if isinstance(difference := entry.get("difference"), (int, float))
    ]
    if not measured:
        return ""
    difference, name = max(measured)
    if difference == 0:
        return ", none the numbers"
    return f", the numbers by at most {_plain(difference)} ({name})"


def _engine(artifact: Artifact, name: str, engine: Engine) -> dict[str, str]:
    manifest = artifact.manifest
    sha256 = artifact.engine_sha256(engine)
    reason = f": {engine.state_reason}" if engine.state_reason else ""
    rows = {
        "backend": engine.backend,
        "versions": _figures(engine.versions),
        "precision": engine.precision,
        "state": f"{engine.state}{reason}",
        "built for": engine.hardware,
        "profile": _profile(engine.profile),
        **profile_rows(engine),
        "padding": _padding(manifest, name),
        "audit": _figures({key: value for key, value in engine.audit.items() if value}),
        "wanted": _figures(_mapping(engine.audit.get("wanted"))),
        "products": _products(_mapping(engine.audit.get("precision"))),
        engine.precision: _quantized(artifact, engine),
        "verdict": _verdict(manifest.verdicts.get(name), sha256),
        "file": "\n".join(_sized(manifest, file) for file in engine.files.values()),
    }
    return {name: value for name, value in rows.items() if value}


def _padding(manifest: Manifest, name: str) -> str:
    """What became of padding, where it was to be removed."""
    step = manifest.step(f"build-engine:{name}")
    return _plain(step.options.get("padding", "")) if step is not None else ""


def _quantized(artifact: Artifact, engine: Engine) -> str:
    """What int8 or fp8 keeps of the accuracy, where it is used, and what was left alone."""
    from tfc.steps.int8.notes import int8_notes
    from tfc.steps.int8.options import QUANTIZED
    from tfc.steps.int8.prepare import int8_steps

    if engine.precision not in QUANTIZED:
        return ""
    return "\n".join(note for step in int8_steps(artifact, engine) for note in int8_notes(step))


def _products(audit: Mapping[str, Any]) -> str:
    """`fp16 100 % of the FLOPs (24 GEMMs, 6 attentions)`."""
    if not audit:
        return ""
    from tfc.cli.build_engine import precision_summary

    return precision_summary(audit)


def _sized(manifest: Manifest, file: str) -> str:
    record = manifest.files.get(file)
    return f"{file}, {human_bytes(record.bytes)}" if record else file


def _profile(profile: Mapping[str, list[int]]) -> str:
    """`batch 1 to 256, best at 32`: an axis holds [min, opt, max]."""
    words = []
    for axis, sizes in profile.items():
        if len(sizes) == 3:
            words.append(f"{axis} {sizes[0]} to {sizes[2]}, best at {sizes[1]}")
    return "; ".join(words)


def _verdict(verdict: Verdict | None, engine_sha256: str) -> str:
    if verdict is None:
        return "not verified yet"
    if verdict.engine_sha256 != engine_sha256:
        return "not verified since it was built again"
    reason = f": {verdict.reason}" if verdict.reason else ""
    lines = [f"{verdict.verdict}{reason}"]
    for output, measured in verdict.outputs.items():
        figures = [
            f"{metric.replace('_', ' ')} {_plain(value)}{_limit(verdict, metric)}"
            for metric, value in measured.items()
        ]
        lines.append(f"{output}: {', '.join(figures)}")
    return "\n".join(lines)


def _limit(verdict: Verdict, metric: str) -> str:
    """The tolerance of a measured number, where it has one."""
    limit = verdict.tolerance.get(metric)
    return "" if limit is None else f" (limit {_plain(limit)})"


def _figures(values: Mapping[str, Any]) -> str:
    """`attention 6/6, kernels 71`: the plain values of a mapping, and its found/expected pairs."""
    words = []
    for key, value in values.items():
        pair = _mapping(value)
        label = _NAMES.get(key, key.replace("_", " "))
        if "found" in pair and "expected" in pair:
            words.append(f"{label} {_plain(pair['found'])}/{_plain(pair['expected'])}")
        elif isinstance(value, (str, int, float)):
            words.append(f"{label} {_plain(value)}")
    return ", ".join(words)


def _plain(value: Any) -> str:
    """A JSON value in a few characters."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is an object: a step's result is free-form, and an old one may differ."""
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
