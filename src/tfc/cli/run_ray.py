"""`tfc run --ray`: what it refuses, and what it prints."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from tfc.cli.console import err, human_seconds, out
from tfc.cli.run_display import counted, fail_on_bad_rows
from tfc.errors import UsageError

if TYPE_CHECKING:
    from tfc.runtime.ray.job import RaySummary

_PARQUET = "parquet"
# Options of a job on one machine → why a job with Ray has no use for them, and what to do.
_REFUSED = {
    "restart": ("a job with --ray always begins anew", "Leave --restart out"),
    "limit": ("Ray reads files in any order, so --limit has no first rows", "Give fewer files"),
    "id_column": ("with --ray a bad row stays with all its columns", "Leave --id-column out"),
    "shadow": ("rows are not run again on Ray's workers", "Leave --shadow out"),
    "log_json": ("Ray keeps the log of a job with --ray", "Leave --log-json out"),
    "metrics": ("Ray keeps the metrics of a job with --ray", "Leave --metrics-file out"),
}


def refuse_with_ray(given: Mapping[str, Any]) -> None:
    """Refuse the options that a job with Ray has no use for.

    Raises:
        UsageError: one is given.
    """
    for name, (what, fix) in _REFUSED.items():
        if given[name]:
            raise UsageError(what, fix=fix)
    for name in ("format", "output_format"):
        if given[name] not in (None, _PARQUET):
            raise UsageError(
                f"a job with --ray reads and writes Parquet, not {given[name]}",
                fix="Run it on one machine: tfc run without --ray",
            )


def run_on_ray(
    artifact: str,
    inputs: Sequence[str],
    output: str,
    settings: Sequence[str],
    given: Mapping[str, Any],
    on_error: str,
    as_json: bool,
) -> None:
    """Run the job and print its summary."""
    from tfc.runtime.ray.ask import Ask, values_of_settings
    from tfc.runtime.ray.job import run_ray_job

    names = {field.name for field in dataclasses.fields(Ask)}
    ask = Ask(artifact, **{name: value for name, value in given.items() if name in names})
    options = {"too_long": given["too_long"], **values_of_settings(ask, settings)}
    with redirect_stdout(sys.stderr):  # what Ray says of workers that died is no result
        summary = run_ray_job(
            dataclasses.replace(ask, options=options),
            inputs,
            output,
            ray_address=given["ray_address"],
            shard_rows=given["shard_rows"],
            progress=err.is_terminal and not out.quiet,
        )
    if summary.verdict != "verified":
        err.print(
            f"tfc: warning: engine {summary.engine} is not verified (parity: {summary.verdict}). "
            f"Check it with: tfc verify {artifact}",
            soft_wrap=True,
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(summary), default=str))
    elif not out.quiet:
        _show(summary)
    fail_on_bad_rows(on_error, summary.bad_rows, str(summary.output))


def _show(summary: RaySummary) -> None:
    workers = f"{counted(summary.workers, 'worker')} of {counted(summary.threads, 'thread')}"
    out.print(
        f"{counted(summary.rows, 'row')} in {human_seconds(summary.seconds)} with "
        f"{summary.engine}: {summary.rows_per_second:.0f} rows/s, {workers} on {summary.hardware}",
        soft_wrap=True,
    )
    out.print(f"written to {summary.output}", soft_wrap=True)
    if summary.bad_rows:
        out.print(
            f"{counted(summary.bad_rows, 'bad row')} without a prediction; the column"
            " prediction_error says why"
        )
