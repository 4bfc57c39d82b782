"""`tfc run`."""

from __future__ import annotations

from pathlib import Path

import click

from tfc.cli.console import err, human_count, human_seconds, out, progress
from tfc.cli.options import artifact_argument


class RunCommand(click.Command):
    """Its help ends with what each task lets a job choose."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options of every task."""
        from tfc.runtime.tasks import EVERY_TASK
        from tfc.runtime.tasks.options import described_options

        tasks: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for name, task in EVERY_TASK.items():
            tasks.setdefault(tuple(described_options(task.options)), []).append(name)
        for options, names in tasks.items():
            if options:
                with formatter.section(f"--set for {', '.join(names)}"):
                    formatter.write_dl(options)


@click.command("run", cls=RunCommand)
@artifact_argument
@click.argument("input", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="JSON lines to write."
)
@click.option("--engine", metavar="NAME", help="The engine.  [default: the best that runs here]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the task, listed below; may be repeated.",
)
@click.option(
    "--text-column",
    metavar="FIELD",
    help="The field with the text.  [default: text, or question]",
)
@click.option(
    "--pair-column",
    metavar="FIELD",
    help="The field with the second text.  [default: none, or context]",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]")
@click.option("--limit", type=click.IntRange(min=1), help="Run the first so many rows only.")
def command(
    artifact: str,
    input: Path,
    output: Path,
    engine: str | None,
    settings: tuple[str, ...],
    text_column: str | None,
    pair_column: str | None,
    threads: int | None,
    limit: int | None,
) -> None:
    """Run a batch job: JSON lines in, the same rows with a prediction out.

    INPUT has one JSON object per line. Rows keep their order and their fields. A row that cannot
    be used goes, with its line number and the reason, to OUTPUT.errors.jsonl. Question answering
    reads the fields question and context, every other task the field text.

    A VALUE is JSON, or plain text; a list may be given with commas: --set labels=refund,delivery
    """
    from tfc.runtime import Session
    from tfc.runtime.jobs import run_job
    from tfc.runtime.tasks.options import values_from_settings

    with Session.load(artifact, engine=engine, threads=threads) as session:
        options = values_from_settings(session.task.name, session.options, settings)
        if session.verdict != "verified":
            err.print(
                f"tfc: warning: engine {session.engine_name} is not verified "
                f"(parity: {session.verdict}). Check it with: tfc verify {artifact}"
            )
        with progress("running") as report:
            summary = run_job(
                session,
                input,
                output,
                text_column=text_column,
                pair_column=pair_column,
                on_progress=report,
                limit=limit,
                **options,
            )
    out.print(
        f"{summary.rows} rows in {human_seconds(summary.seconds)} with {session.engine_name}: "
        f"{summary.rows_per_second:.0f} rows/s, "
        f"{human_count(round(summary.tokens_per_second))} tokens/s, "
        f"{summary.padding_waste:.1%} padding"
    )
    out.print(f"written to {summary.output}", soft_wrap=True)
    if summary.errors is not None:
        out.print(
            f"{summary.bad_rows} bad rows left out, each with its reason: {summary.errors}",
            soft_wrap=True,
        )
