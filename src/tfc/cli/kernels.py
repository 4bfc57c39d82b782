"""`tfc inspect --kernels`: how the list of compiled kernels is printed, and its JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from tfc.artifact import Artifact
from tfc.cli.build_engine import fused_summary, precision_summary
from tfc.cli.console import err, facts, human_bytes, printable, table
from tfc.kernel_report import KernelRecord, KernelReport, KernelSummary, summary_of
from tfc.manifest import MODEL
from tfc.steps.kernels import Before, compiled_engines, kernels_before, kernels_of_engine

_AREA = 2  # leading parts of a module's path that name an area outside layers: bert.embeddings


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
        for graph, records in report.graphs.items():
            title = name if graph == MODEL else f"{name}, {graph}"
            sections += _graph(title, records, _totals(engine.audit, summary_of(records)))
            if raw is not None:
                sections += _comparison(title, graph, raw, summary_of(records))
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
    with err.status("compiling the unoptimized export"):
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
    sections = [_layer(title, records), _outside(records), facts("All kernels", totals)]
    return [section for section in sections if section is not None]


def _layer(title: str, records: Sequence[KernelRecord]) -> RenderableType | None:
    """Every kernel of the typical layer."""
    summary = summary_of(records)
    number = summary.typical_layer
    if number is None:
        return None
    chosen = [record for record in records if record.layer == number and record.works]
    prefix = _common_path(path for record in chosen for path in record.modules)
    where = f" ({prefix})" if prefix else ""
    grid = table(
        printable(f"Kernels of {title} in layer {number}{where}"),
        ["kind", "precision", "modules", "source nodes"],
    )
    for record in chosen:
        modules = ", ".join(_below(prefix, path) for path in record.modules)
        cells = (record.kind, record.precision, modules, ", ".join(record.nodes))
        grid.add_row(*map(printable, cells))
    return grid


def _outside(records: Sequence[KernelRecord]) -> RenderableType | None:
    """What belongs to no layer: kernels of one kind and one part of the model in a line."""
    rows = Counter(
        (r.kind, r.precision, ", ".join(_areas(r))) for r in records if r.works and r.layer is None
    )
    if not rows:
        return None
    grid = table("Kernels outside layers", [">kernels", "kind", "precision", "modules"])
    for (kind, precision, areas), count in rows.items():
        grid.add_row(str(count), *map(printable, (kind, precision, areas)))
    return grid


def _areas(record: KernelRecord) -> list[str]:
    """The parts of the model that it came from; those of a mask say only who reads it first."""
    if record.kind == "mask":
        return []
    short = (".".join(path.split(".")[:_AREA]) for path in record.modules)
    return list(dict.fromkeys(short))


def _totals(audit: Mapping[str, Any], summary: KernelSummary) -> dict[str, str]:
    rows = {
        "kernels": str(summary.kernels),
        "layers": _layers(summary.layers),
        "kinds": _counts(summary.kinds),
        "types": _counts(summary.precisions),
        "waits": f"{summary.waits}"
        + (f", {summary.waits_per_layer} per layer" * bool(summary.waits)),
        "written": human_bytes(summary.bytes)
        if summary.bytes is not None
        else "not told: TensorRT lists no sizes of dynamic axes",
        "fused": fused_summary(audit) if "fused_attention" in audit else "",
        "products": precision_summary(audit["precision"]) if "precision" in audit else "",
    }
    return {name: value for name, value in rows.items() if value}


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


def _comparison(title: str, graph: str, raw: Before, after: KernelSummary) -> list[RenderableType]:
    """The unoptimized export's typical layer, and both side by side in numbers."""
    if raw.report is None:
        text = f"TensorRT does not compile it: {raw.refusal}"
        return [facts(f"Before: the unoptimized export of {graph}", {"kernels": text})]
    records = raw.report.graphs[graph]
    before = summary_of(records)
    layer = _layer(f"the unoptimized export of {title}", records)
    grid = table("Before and after", ["", ">before", ">after"])
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
    return path[len(prefix) :].lstrip(".") or path.rpartition(".")[2]
