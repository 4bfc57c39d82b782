"""`tfc bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tfc.cli.console import err, human_count, out, progress, table
from tfc.cli.options import SizeList, artifact_argument, checkpoint_options, engine_option

if TYPE_CHECKING:
    from tfc.steps.bench import BenchResult


@click.command("bench")
@artifact_argument
@engine_option
@click.option(
    "--batch", "batches", type=SizeList(), default=(1, 8, 32), help="Sizes.  [default: 1,8,32]"
)
@click.option(
    "--seq",
    "lengths",
    type=SizeList(),
    default=(16, 64, 128),
    help="Lengths in tokens.  [default: 16,64,128]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Time for each engine at each shape.",
)
@click.option("--no-pytorch", is_flag=True, help="Measure the engines alone.")
@checkpoint_options
def command(
    artifact: str,
    engines: tuple[str, ...],
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    seconds: float,
    no_pytorch: bool,
    checkpoints: tuple[str, ...],
    base: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> None:
    """Measure throughput and latency against PyTorch.

    Engines and PyTorch (SDPA attention, fp32) take turns on the same inputs in one run; the ratio
    is the median over pairs of turns. Every row is full, so tokens/s counts no padding.
    """
    from tfc.artifact import BENCH_REPORT, Artifact
    from tfc.steps.bench import bench

    opened = Artifact.open(artifact)
    with progress("measuring") as report:
        result = bench(
            opened,
            engines=engines,
            batches=batches,
            lengths=lengths,
            seconds=seconds,
            pytorch=not no_pytorch,
            checkpoint=checkpoints,
            base=base,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    print_bench(result)
    out.print(f"written to {opened.path / BENCH_REPORT}", soft_wrap=True)


def print_bench(result: BenchResult) -> None:
    """One table: a row per shape and contestant."""
    grid = table(
        f"Throughput and latency, {result.threads} CPU threads",
        ["shape", "engine", ">seq/s", ">tokens/s", ">p50", ">p90", ">p99", ">ratio"],
    )
    for cell in result.cells:
        shape = f"{cell.batch}×{cell.sequence}"
        for name, timing in cell.timings.items():
            ratio = cell.ratios.get(name)
            grid.add_row(
                shape,
                name,
                f"{timing.sequences_per_second:.1f}",
                human_count(round(timing.tokens_per_second)),
                *(f"{seconds * 1e3:.1f}" for seconds in (timing.p50, timing.p90, timing.p99)),
                "" if ratio is None else f"{ratio:.2f}×",
            )
            shape = ""
    out.print(grid)
    out.print("shape is batch × tokens, latencies are in ms per batch, ratio is to pytorch")
    if result.disturbed:
        err.print(
            f"tfc: warning: other processes used {result.busy:.0%} of this machine: these numbers "
            "mean little. Measure again when it is quiet"
        )
    for name, why in result.left_out.items():
        out.print(f"not measured: {name}: {why.partition('. ')[0]}")
