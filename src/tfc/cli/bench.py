"""`tfc bench`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tfc.cli.console import out, progress
from tfc.cli.options import SizeList, artifact_argument, checkpoint_options, engine_option


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
    "--new-tokens",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="What a model that generates writes for each text.",
)
@click.option("--data", type=click.Path(), help="Measure on JSON lines with a text each instead.")
@click.option(
    "--text-column",
    metavar="FIELD",
    default="text",
    show_default=True,
    help="The field of --data with the text.",
)
@click.option("--pair-column", metavar="FIELD", help="The field with the second text.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Rows of --data to measure on.",
)
@click.option(
    "--callers",
    type=SizeList(),
    default=(1,),
    help="Threads that call at once, e.g. 1,4.  [default: 1]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Time for each engine at each shape.",
)
@click.option(
    "--pytorch",
    "forms",
    multiple=True,
    type=click.Choice(["sdpa", "eager", "compile"]),
    help="What PyTorch runs, in fp32; may be repeated.  [default: sdpa]",
)
@click.option("--no-pytorch", is_flag=True, help="Leave PyTorch out.")
@click.option(
    "--vs",
    "against",
    multiple=True,
    type=click.Path(),
    metavar="PATH",
    help="Another artifact, or an ONNX file, to measure beside; may be repeated.",
)
@click.option("--no-start", is_flag=True, help="Do not measure loading and memory.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@checkpoint_options
def command(
    artifact: str,
    engines: tuple[str, ...],
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    new_tokens: int,
    data: str | None,
    text_column: str,
    pair_column: str | None,
    limit: int,
    callers: tuple[int, ...],
    seconds: float,
    forms: tuple[str, ...],
    no_pytorch: bool,
    against: tuple[str, ...],
    no_start: bool,
    as_json: bool,
    checkpoints: tuple[str, ...],
    base: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> None:
    """Measure throughput, latency and memory against PyTorch.

    Engines and PyTorch take turns on the same inputs in one run; the ratio is the median over
    pairs of turns. Rows of the grid are full; tokens/s never counts padding. How long loading and
    the first result take, and the peak memory, are measured in a fresh process for each.

    A model that generates writes as many tokens for each text as --new-tokens says, greedily, and
    so does transformers' generate; of images --batch alone counts.
    """
    from tfc.artifact import BENCH_REPORT, Artifact
    from tfc.cli.bench_display import show_bench
    from tfc.errors import UsageError
    from tfc.steps.benchmark.bench import bench
    from tfc.steps.benchmark.workloads import TextFile

    if forms and no_pytorch:
        raise UsageError(
            "PyTorch is asked for and left out", fix="Give --pytorch or --no-pytorch, not both"
        )
    opened = Artifact.open(artifact)
    with progress("measuring") as report:
        result = bench(
            opened,
            engines=engines,
            batches=batches,
            lengths=lengths,
            new_tokens=new_tokens,
            data=None if data is None else TextFile(Path(data), text_column, pair_column, limit),
            callers=callers,
            seconds=seconds,
            pytorch=forms or not no_pytorch,
            against=against,
            start=not no_start,
            checkpoint=checkpoints,
            base=base,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
        return
    show_bench(result)
    out.print(f"written to {opened.path / BENCH_REPORT}", soft_wrap=True)
