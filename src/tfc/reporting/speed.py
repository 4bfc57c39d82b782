"""How fast the engines are, beside what they were measured with."""

from __future__ import annotations

from typing import Any

from tfc.artifact import BENCH_REPORT, Artifact
from tfc.cli.console import human_bytes, human_count, human_seconds
from tfc.reporting.blocks import Block, Chart, Note, Section, Table
from tfc.reporting.charts import grouped_bars, histogram, latency_ranges
from tfc.reporting.verdicts import report_of

_COLUMNS = (
    "workload",
    "contestant",
    ">rows/s",
    ">tokens/s",
    ">p50 ms",
    ">p95 ms",
    ">p99 ms",
    ">spread",
    ">ratio",
)
_OF_TOKENS = (
    "workload",
    "contestant",
    ">first p50",
    ">first p99",
    ">further p50",
    ">p90",
    ">p95",
    ">p99",
)
_BUSY = 0.2


def speed_section(artifact: Artifact) -> Section:
    """Throughput and latency by workload, and what starting costs."""
    found = report_of(artifact, BENCH_REPORT)
    if found is None:
        text = f"Speed was not measured. Do it with: tfc bench {artifact.path.name}"
        return Section("Speed", (Note(text, missing=True),))
    blocks: list[Block] = []
    for callers in dict.fromkeys(cell["callers"] for cell in found["cells"]):
        cells = [cell for cell in found["cells"] if cell["callers"] == callers]
        blocks += _measured(cells, callers)
    if found["start_up"]:
        blocks.append(_start(found["start_up"]))
    blocks.append(Note(_how(found)))
    blocks += [
        Note(f"{name} was not measured: {why}", missing=True)
        for name, why in found["left_out"].items()
    ]
    return Section("Speed", tuple(blocks))


def _measured(cells: list[dict[str, Any]], callers: int) -> list[Block]:
    names = list(cells[0]["timings"])
    workloads = [cell["workload"] for cell in cells]
    rate, unit, scale = ("tokens_per_second", "thousand tokens/s", 1e-3)
    if not any(cell["tokens"] for cell in cells):
        rate, unit, scale = ("sequences_per_second", "images/s", 1.0)
    rates = {n: [c["timings"][n][rate] * scale for c in cells] for n in names}
    ranges = {
        n: [(c["timings"][n]["p50"] * 1e3, c["timings"][n]["p99"] * 1e3) for c in cells]
        for n in names
    }
    of = f", {callers} callers at once" if callers > 1 else ""
    fastest = [f"{cell['workload']}: {_fastest(cell)} is fastest" for cell in cells]
    says = f"Throughput by workload{of}" + (f". {'; '.join(fastest)}" if len(names) > 1 else "")
    return [
        Chart(grouped_bars(workloads, rates, unit), says),
        Chart(
            latency_ranges(workloads, ranges, "ms per batch, p50 to p99"),
            f"Latency of a batch from its median to its 99th percentile{of}",
        ),
        Table(_COLUMNS, tuple(row for cell in cells for row in _rows(cell)), caption=of[2:]),
        *_written(cells),
    ]


def _written(cells: list[dict[str, Any]]) -> list[Block]:
    """Of models that write: how long the first token takes, and each further one."""
    rows = tuple(
        (
            cell["workload"],
            name,
            *(f"{timing['first_token'][p] * 1e3:.1f}" for p in ("p50", "p99")),
            *(f"{timing['per_token'][p] * 1e3:.1f}" for p in ("p50", "p90", "p95", "p99")),
        )
        for cell in cells
        for name, timing in cell["timings"].items()
        if "first_token" in timing and "per_token" in timing
    )
    if not rows:
        return []
    return [Table(_OF_TOKENS, rows, caption="Latency of new tokens of a batch, in ms")]


def _fastest(cell: dict[str, Any]) -> str:
    timings: dict[str, dict[str, float]] = cell["timings"]
    return max(timings, key=lambda name: timings[name]["sequences_per_second"])


def _rows(cell: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, timing in cell["timings"].items():
        ratio = cell["ratios"].get(name)
        rows.append(
            (
                cell["workload"],
                name,
                f"{timing['sequences_per_second']:,.0f}",
                human_count(round(timing["tokens_per_second"])) if cell["tokens"] else "-",
                *(f"{timing[p] * 1e3:.1f}" for p in ("p50", "p95", "p99")),
                f"{timing['spread']:.0%}",
                "-" if ratio is None else f"{ratio:.2f}×",
            )
        )
    return rows


def _start(found: dict[str, dict[str, Any]]) -> Table:
    rows = tuple(
        (
            name,
            human_seconds(one["load_seconds"]),
            human_seconds(one["first_seconds"]),
            *(
                "-" if one.get(memory) is None else human_bytes(one[memory])
                for memory in ("peak_bytes", "gpu_bytes")
            ),
        )
        for name, one in found.items()
    )
    columns = ("contestant", ">load", ">first result", ">peak memory", ">GPU memory")
    return Table(columns, rows, caption="Start, each in a fresh process")


def _how(found: dict[str, Any]) -> str:
    parts = [f"{found['threads']} CPU threads; contestants took turns in one run"]
    if found["baseline"]:
        parts.append(f"ratios are medians of pairs, to {found['baseline']}")
    if found["matmul_peak"]:
        peak = human_count(round(found["matmul_peak"]["flops_per_second"]))
        parts.append(f"the CPU's fp32 matrix products reach {peak}FLOP/s")
    busy = found["busy_before"]
    if busy is not None and busy > _BUSY:
        parts.append(f"other processes used {busy:.0%} of the machine: the numbers mean little")
    return "; ".join(parts) + "."


def lengths_section(artifact: Artifact) -> Section | None:
    """Lengths and padding of the texts that were measured; None where there were none."""
    found = report_of(artifact, BENCH_REPORT)
    cell = next((c for c in (found or {"cells": []})["cells"] if c["batches"] > 1), None)
    if cell is None:
        return None
    lengths = {int(length): count for length, count in cell["lengths"].items()}
    says = (
        f"Lengths of {cell['rows']} texts of {cell['workload']}: {cell['tokens']} tokens in all, "
        f"the longest {max(lengths)}. In {cell['batches']} batches of similar length "
        f"{cell['padding']:.1%} of what ran was padding"
    )
    return Section("Lengths and padding", (Chart(histogram(lengths, "tokens"), says),))
