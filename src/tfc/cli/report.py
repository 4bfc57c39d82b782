"""`tfc report`."""

from __future__ import annotations

import json

import click

from tfc.cli.console import out
from tfc.cli.options import artifact_argument, json_option


@click.command("report")
@artifact_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="A .html or .md file.  [default: reports/report.html in the artifact]",
)
@json_option
def command(artifact: str, output: str | None, as_json: bool) -> None:
    """Write a page about an artifact: parity, speed, fusions, precision.

    The HTML page is one file that needs no network; it is also made to be printed. Markdown is
    for pull requests. What was not run is said to be not run.
    """
    from tfc.steps.report import report

    written = report(artifact, output)
    if as_json:
        click.echo(json.dumps({"written": str(written)}))
        return
    out.print(f"written to {written}", soft_wrap=True)
