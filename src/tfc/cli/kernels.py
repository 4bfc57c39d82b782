"""`tfc inspect --kernels`: how the list of compiled kernels is printed, and its JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from tfc.artifact import Artifact
from tfc.cli.build_engine import fused_summary, precision_summary
from tfc.cli.console import facts, human_bytes, printable, stdout_for_us, table, working
from tfc.kernel_report import KernelRecord, KernelReport, KernelSummary, summary_of
from tfc.manifest import MODEL
from tfc.steps.kernels import Before, compiled_engines, kernels_before, kernels_of_engine

_NODES_SHOWN = 9  # of one kernel; the rest is in the JSON
_MOST = 0.5  # of a layer's nodes lie in the layer: a fused kernel may hold some of the next


def kernel_sections(
    artifact: Artifact, names: tuple[str, ...], *, before: bool
) -> list[RenderableType]:
    """For each TensorRT engine and graph: a typical layer, what is outside layers, and totals.

    With `before`, the unoptimized export is compiled too and stands beside it.
    """
    sections: list[RenderableType] = []
    for name, engine in compiled_engines(artifact, names).items():
        report = kernels_of_engine(artifact, name)
        raw = _before(artifact, name) if before else None
        judged = _judgement(engine.audit)
        several = len(report.graphs) > 1
        for graph, records in report.graphs.items():
            totals = _totals(summary_of(records)) | ({} if several else judged)
            title = f"{name}, {graph}" if several else name
            sections += _graph(title, records, totals)
            if raw is not None:
                sections += _comparison(graph, raw, summary_of(records))
        if several and judged:
            sections.append(facts(f"Engine {printable(name)}", judged))
    return sections


def kernels_json(artifact: Artifact, names: tuple[str, ...], *, before: bool) -> dict[str, Any]:
    """Everything: for each engine its kernels and their summary, for each graph."""
    found: dict[str, Any] = {}
    for name, engine in compiled_engines(artifact, names).items():
        found[name] = {
            **_report_json(kernels_of_engine(artifact, name)),
            "audit": engine.audit,
        }
        if before:
            raw = _before(artifact, name)
            found[name]["before"] = (
                _report_json(raw.report) if raw.report else {"refusal": raw.refusal}
            )
    return {"engines": found}


def _before(artifact: Artifact, name: str) -> Before:
    with working("compiling the unoptimized export"), stdout_for_us():
        return kernels_before(artifact, name)


def _report_json(report: KernelReport) -> dict[str, Any]:
    return {
        "backend": report.backend,
        "precision": report.precision,
        "graphs": {
            graph: {
                "summary": dataclasses.asdict(summary_of(records)),
                "kernels": [dataclasses.asdict(record) for record in records],
            }
            for graph, records in report.graphs.items()
        },
    }


def _graph(
    title: str, records: Sequence[KernelRecord], totals: Mapping[str, str]
) -> list[RenderableType]:
    if not records:
        return [facts(f"Kernels of {printable(title)}", {"kernels": "the builder listed none"})]
    sections = [
        _layer(f"Kernels of {title}", records),
        _outside(records),
        facts("All kernels", totals),
    ]
    return [section for section in sections if section is not None]


def _layer(title: str, records: Sequence[KernelRecord]) -> RenderableType | None:
    """Every kernel of the typical layer."""
    summary = summary_of(records)
    number = summary.typical_layer
    if number is None:
        return None
    chosen = [record for record in records if record.layer == number and record.works]
    prefix = _layer_path(path for record in chosen for path in record.modules if path)
    where = f" ({prefix})" if prefix else ""
    grid = table(
        printable(f"{title} in layer {number}{where}"),
        ["kind", "precision", "made from"],
    )
    for record in chosen:
        grid.add_row(*map(printable, (record.kind, record.precision, _sources(record, prefix))))
    return grid


def _sources(record: KernelRecord, prefix: str) -> str:
    """Its nodes, those of one module in a line behind the module's path."""
    nodes: dict[str, list[str]] = {}
    for node, path in list(zip(record.nodes, record.modules, strict=True))[:_NODES_SHOWN]:
        nodes.setdefault(_below(prefix, path), []).append(node)
    lines = [
        f"{path}: {', '.join(names)}" if path else ", ".join(names) for path, names in nodes.items()
    ]
    more = len(record.nodes) - _NODES_SHOWN
    return "\n".join([*lines, f"and {more} more"] if more > 0 else lines) or "–"


def _outside(records: Sequence[KernelRecord]) -> RenderableType | None:
    """What belongs to no layer: kernels of one kind and one part of the model in a line."""
    rows = Counter((r.kind, _area(r)) for r in records if r.works and r.layer is None)
    if not rows:
        return None
    grid = table("Kernels outside layers", [">kernels", "kind", "made from"])
    for (kind, area), count in rows.items():
        grid.add_row(str(count), *map(printable, (kind, area or "–")))
    return grid


def _area(record: KernelRecord) -> str:
    """The part of the model that it came from; a mask names only who reads it first."""
    paths = [path for path in record.modules if path]
    if record.kind == "mask":
        return "the attention mask"
    return _common_path(paths) or ", ".join(dict.fromkeys(path.split(".")[0] for path in paths))


def _totals(summary: KernelSummary) -> dict[str, str]:
    waits = f"{summary.waits}"
    if summary.waits and summary.waits_per_layer is not None:
        waits += f", {summary.waits_per_layer} per layer"
    return {
        "kernels": str(summary.kernels),
        "layers": _layers(summary.layers),
        "kinds": _counts(summary.kinds),
        "writes": _counts(summary.precisions),
        "waits": waits,
        "bytes": human_bytes(summary.bytes)
        if summary.bytes is not None
        else "not told: TensorRT lists no sizes of dynamic axes",
    }


def _judgement(audit: Mapping[str, Any]) -> dict[str, str]:
    """What the audit says of the whole engine, all of its graphs."""
    rows = {}
    if "fused_attention" in audit:
        rows["fused"] = fused_summary(audit)
    if "precision" in audit:
        rows["products"] = precision_summary(audit["precision"])
    return rows


def _layers(counts: Sequence[int]) -> str:
    """`6 × 9 kernels`, or `9 kernels in layers 0-4, 10 in layer 5`."""
    if not counts:
        return "cannot be told apart"
    if len(set(counts)) == 1:
        return f"{len(counts)} × {counts[0]} kernels"
    runs: list[tuple[int, int, int]] = []
    for layer, count in enumerate(counts):
        if runs and runs[-1][2] == count:
            runs[-1] = (runs[-1][0], layer, count)
        else:
            runs.append((layer, layer, count))
    words = [
        f"{count} in {f'layer {first}' if first == last else f'layers {first} to {last}'}"
        for first, last, count in runs
    ]
    return ", ".join(words)


def _comparison(graph: str, raw: Before, after: KernelSummary) -> list[RenderableType]:
    """The unoptimized export's typical layer, and both side by side in numbers."""
    title = "Unoptimized export" if graph == MODEL else f"Unoptimized export, {graph}"
    if raw.report is None:
        return [facts(title, {"kernels": f"TensorRT does not compile it: {raw.refusal}"})]
    records = raw.report.graphs[graph]
    before = summary_of(records)
    layer = _layer(title, records)
    which = "" if graph == MODEL else f", {graph}"
    grid = table(f"Before and after{which}", ["", ">before", ">after"])
    for name, first, second in _compared(before, after):
        grid.add_row(name, _number(first), _number(second))
    return [grid] if layer is None else [layer, grid]


def _compared(
    before: KernelSummary, after: KernelSummary
) -> list[tuple[str, int | None, int | None]]:
    kinds = dict.fromkeys((*after.kinds, *before.kinds))
    types = dict.fromkeys((*after.precisions, *before.precisions))
    return [
        ("kernels per layer", before.per_layer, after.per_layer),
        ("waits per layer", before.waits_per_layer, after.waits_per_layer),
        ("kernels", before.kernels, after.kernels),
        ("waits", before.waits, after.waits),
        *((f"  {kind}", before.kinds.get(kind, 0), after.kinds.get(kind, 0)) for kind in kinds),
        *(
            (f"  writes {name}", before.precisions.get(name, 0), after.precisions.get(name, 0))
            for name in types
        ),
    ]


def _number(count: int | None) -> str:
    return "–" if count is None else str(count)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _layer_path(paths: Iterable[str]) -> str:
    """The shortest path that ends in a number and that most of these lie below."""
    every = list(paths)
    found: Counter[str] = Counter()
    for path in every:
        parts = path.split(".")
        ends = (i + 1 for i, part in enumerate(parts) if part.isdigit())
        found.update(".".join(parts[:end]) for end in ends)
    common = [path for path, count in found.items() if count > _MOST * len(every)]
    return min(common, key=len, default="")


def _common_path(paths: Iterable[str]) -> str:
    """The longest path that all of these begin with."""
    split = [path.split(".") for path in paths]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _below(prefix: str, path: str) -> str:
    """The path inside `prefix`; of the prefix itself its last part."""
    if path == prefix:
        return path.rpartition(".")[2]
    return path[len(prefix) + 1 :] if prefix and path.startswith(f"{prefix}.") else path
