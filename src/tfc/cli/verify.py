"""`tfc verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tfc.cli.console import out, progress, table
from tfc.cli.options import artifact_argument, checkpoint_options, engine_option
from tfc.errors import EXIT_CHECK_FAILED

if TYPE_CHECKING:
    from tfc.steps.verify import EngineVerdict


@click.command("verify")
@artifact_argument
@engine_option
@click.option(
    "--data",
    type=click.Path(),
    help="JSON lines with a text each.  [default: the samples kept at export]",
)
@click.option("--text-column", default="text", show_default=True, help="The field with the text.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=512, show_default=True, help="Rows to compare."
)
@checkpoint_options
@click.pass_context
def command(
    ctx: click.Context,
    artifact: str,
    engines: tuple[str, ...],
    data: str | None,
    text_column: str,
    limit: int,
    checkpoint: str | None,
    base: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> None:
    """Check that engines still say what PyTorch says.

    Each engine that can run here and the checkpoint in fp32 PyTorch get the same text. How far
    they may differ is not a fixed number: an fp16 engine may be a few times as far from fp32 as
    PyTorch itself is when it runs in fp16. Exit code 1 if an engine fails.
    """
    from tfc.artifact import VERIFY_REPORT, Artifact
    from tfc.steps.verify import verify

    opened = Artifact.open(artifact)
    with progress("verifying") as report:
        result = verify(
            opened,
            engines=engines,
            data=data,
            text_column=text_column,
            limit=limit,
            checkpoint=checkpoint,
            base=base,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    grid = table(
        f"Output {result.output} on {result.rows} {result.cases.noun} of {result.cases.origin}",
        ["engine", "verdict", ">max abs", ">mean abs", ">allowed", ">cosine", ">argmax"],
    )
    decides = not opened.manifest.task.name.endswith("feature-extraction")
    for found in result.verdicts:
        grid.add_row(found.engine, found.verdict, *_numbers(found, decides))
    out.print(grid)
    for found in result.verdicts:
        if found.reason:
            reason = found.reason.partition(". ")[0] if found.parity is None else found.reason
            out.print(f"{found.engine} {found.verdict}: {reason}")
        elif found.tolerance is not None:
            out.print(f"{found.engine}: allowed is {found.tolerance.source}")
    out.print(f"written to {opened.path / VERIFY_REPORT}", soft_wrap=True)
    if result.failed:
        ctx.exit(EXIT_CHECK_FAILED)


def _numbers(found: EngineVerdict, decides: bool) -> list[str]:
    """The cells of one engine; the place of an embedding's largest value means nothing."""
    parity, tolerance = found.parity, found.tolerance
    if parity is None or tolerance is None:
        return ["-"] * 5
    return [
        f"{parity.max_abs:.1e}",
        f"{parity.mean_abs:.1e}",
        f"{tolerance.max_abs:.1e}",
        f"{parity.cosine:.6f}",
        f"{parity.argmax_agreement:.2%}" if decides else "-",
    ]
