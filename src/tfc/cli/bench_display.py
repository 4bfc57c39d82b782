"""What `tfc bench` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tfc.cli.console import err, human_bytes, human_count, human_seconds, out, printable, table
from tfc.runtime.batching import CPU, padding_waste
from tfc.runtime.throughput import Cell, Timing
from tfc.steps.benchmark.bench import GENERATION, IMAGES, TEXTS, BenchResult
from tfc.steps.benchmark.start import StartUp

# The report has p90 and p95 too; 80 columns have no room for them.
_COLUMNS = {
    TEXTS: (">seq/s", ">tok/s", ">p50", ">p99", ">±", ">MFU", ">ratio"),
    GENERATION: (">seq/s", ">tok/s", ">first", ">p50", ">p99", ">±", ">ratio"),
    IMAGES: (">images/s", ">p50", ">p99", ">±", ">ratio"),
}

_KINDS = {
    GENERATION: (
        "1×16+8 is a batch of 1 text of 16 tokens, and 8 new ones; tok/s counts those\n"
        "first is the median of ms to the first token"
    ),
    IMAGES: "8 is a batch of 8 images",
}


def show_bench(result: BenchResult) -> None:
    """A table for each number of callers, what starting costs, and who was left out."""
    numbers = dict.fromkeys(cell.callers for cell in result.cells)
    for callers in numbers:
        out.print(_grid(result, [cell for cell in result.cells if cell.callers == callers]))
        out.print()
    _show_start(result)
    out.print(_legend(result))
    if result.disturbed:
        err.print(
            f"tfc: warning: other processes used {result.busy:.0%} of this machine: these numbers "
            "mean little. Measure again when it is quiet"
        )
    if restless := _restless(result.cells):
        err.print(f"tfc: warning: not steady after the warm-up: {restless}")
    for name, why in result.left_out.items():
        out.print(printable(f"not measured: {name}: {why.partition('. ')[0]}"))


def _grid(result: BenchResult, cells: Sequence[Cell]) -> Table:
    """A line for each workload, and under it one for each contestant."""
    callers = cells[0].callers
    of = f", {callers} callers at once" if callers > 1 else ""
    columns = ["", *_COLUMNS[result.kind]]
    grid = table(f"Throughput and latency, {result.threads} CPU threads{of}", columns)
    for cell in cells:
        grid.add_row(printable(cell.workload.name))
        for name, timing in cell.timings.items():
            ratio = cell.ratios.get(name)
            cells_of_kind = _numbers(result.kind, timing, result.utilisation(cell, name))
            last = "-" if ratio is None else f"{ratio:.2f}×"
            grid.add_row(printable(f"  {name}"), *cells_of_kind, last)
    return grid


def _numbers(kind: str, timing: Timing, used: float | None) -> list[str]:
    """What a line says of a contestant, without its ratio: of one that writes, of its tokens."""
    rate, spread = _rate(timing.sequences_per_second), f"{timing.spread:.0%}"
    tokens = human_count(round(timing.tokens_per_second)).replace(" ", "")
    if timing.first_token is not None and timing.per_token is not None:
        each = timing.per_token
        latencies = (timing.first_token.p50, each.p50, each.p99)
        return [rate, tokens, *map(_milliseconds, latencies), spread]
    latency = [_milliseconds(timing.p50), _milliseconds(timing.p99), spread]
    if kind == IMAGES:
        return [rate, *latency]
    return [rate, tokens, *latency, "-" if used is None else f"{used:.0%}"]


def _show_start(result: BenchResult) -> None:
    if not result.start_ups:
        return
    gpu = any(hardware != CPU for hardware in result.hardware.values())
    columns = ["engine", ">load", ">first result", ">peak memory", *([">GPU memory"] * gpu)]
    grid = table("Start, each in a fresh process", columns)
    for name, found in result.start_ups.items():
        peak = "-" if found.peak_bytes is None else human_bytes(found.peak_bytes)
        load, first = human_seconds(found.load_seconds), human_seconds(found.first_seconds)
        memory = [_gpu_memory(found, result.hardware.get(name, CPU))] * gpu
        grid.add_row(printable(name), load, first, peak, *memory)
    out.print(grid)
    out.print()


def _gpu_memory(found: StartUp, hardware: str) -> str:
    if hardware == CPU:
        return "-"
    return "not measured" if found.gpu_bytes is None else human_bytes(found.gpu_bytes)


def _legend(result: BenchResult) -> str:
    first = result.cells[0].workload
    if result.kind != TEXTS:
        lines = [_KINDS[result.kind]]
    elif len(first.feeds) == 1:
        lines = ["1×16 is a batch of 1 text of 16 tokens"]
    else:
        padding = padding_waste(first.tokens, first.padded)
        lines = [
            f"{first.name}: {first.rows} texts, {first.tokens} tokens, in {len(first.feeds)} "
            f"batches with {padding:.1%} padding"
        ]
    what = "further token of a batch" if result.kind == GENERATION else "batch"
    lines.append(f"p50 and p99 are ms per {what}; ± is how far turns lie apart")
    if result.peak is not None and first.flops is not None:
        peak = human_count(round(result.peak.flops_per_second))
        lines.append(
            f"MFU is of the fp32 matrix products of this CPU: {peak}FLOP/s by {result.peak.library}"
        )
    if result.baseline is not None:
        lines.append(f"ratio is to {result.baseline}")
    return "\n".join(map(printable, lines))


def _restless(cells: Sequence[Cell]) -> str:
    """`pytorch at 1×16`: those whose warm-up never came to rest."""
    found = [
        f"{name} at {cell.workload.name}"
        for cell in cells
        for name, timing in cell.timings.items()
        if not timing.steady
    ]
    return ", ".join(found)


def _rate(number: float) -> str:
    """Three digits that tell, of thousands four."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 1 else f"{seconds * 1e3:.1f}"
