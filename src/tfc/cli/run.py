"""`tfc run`."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfc.cli.console import err, out
from tfc.cli.options import Percent, artifact_argument
from tfc.cli.run_devices import loaded_on_devices, refuse_with_devices
from tfc.cli.run_display import (
    JsonLog,
    all_of,
    fail_on_bad_rows,
    live,
    show_drift,
    show_memory,
    show_summary,
    summary_json,
)
from tfc.cli.run_metrics import MetricsFile
from tfc.cli.run_plan import log_plan, show_plan, worth_measuring
from tfc.cli.run_ray import refuse_with_ray, run_on_ray
from tfc.cli.run_signals import stop_requests
from tfc.errors import JobStopped, UsageError

if TYPE_CHECKING:
    from tfc.runtime import Session
    from tfc.runtime.devices import DeviceSession


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
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="The file or folder/ to write, or - .")
@click.option("--engine", metavar="NAME", help="The engine.  [default: the best that runs here]")
@click.option(
    "--require-verified", is_flag=True, help="Refuse an engine that tfc verify did not pass."
)
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
@click.option("--id-column", metavar="FIELD", help="A field to repeat in the file of bad rows.")
@click.option("--format", metavar="FORMAT", help="The inputs' format, where no name tells it.")
@click.option("--output-format", metavar="FORMAT", help="The output's format.")
@click.option("--half-embeddings", is_flag=True, help="Store embeddings as float16 (Parquet).")
@click.option(
    "--too-long",
    type=click.Choice(["truncate", "fail"]),
    default="truncate",
    show_default=True,
    help="What becomes of a text that is longer than the model reads.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="fail: exit code 5 at the end if a row was bad.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]")
@click.option(
    "--devices",
    metavar="DEVICES",
    help="An engine on each of them: all, numa, GPUs (0,1), or cores (cpu:0-3,cpu:4-7).",
)
@click.option("--limit", type=click.IntRange(min=1), help="Run the first so many rows only.")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Rows that are sorted by length together.  [default: 4096; GPU 16384]",
)
@click.option(
    "--shard-rows",
    type=click.IntRange(min=1),
    help="Rows of a shard, or of a part of an output folder.",
)
@click.option("--restart", is_flag=True, help="Begin anew, whatever an earlier run left.")
@click.option(
    "--shadow",
    type=Percent(),
    metavar="PERCENT",
    help="Run this share of the rows again with the fp32 reference, to see drift: 0.1%",
)
@click.option("--ray", is_flag=True, help="Run on the workers of a Ray cluster (tfc[ray]).")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="With --ray: engines, each with its share of the cores, or a GPU.  "
    "[default: one per GPU, else per machine]",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="With --ray: the cluster's.  [default: one of this machine, for the job]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--log-json", is_flag=True, help="Log to stderr, a line of JSON per event.")
@click.option(
    "--metrics-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the state of the job in this file, for Prometheus.",
)
def command(
    artifact: str,
    inputs: tuple[str, ...],
    output: str,
    engine: str | None,
    require_verified: bool,
    settings: tuple[str, ...],
    threads: int | None,
    on_error: str,
    shadow: float | None,
    as_json: bool,
    log_json: bool,
    metrics_file: Path | None,
    devices: str | None,
    ray: bool,
    workers: int | None,
    ray_address: str | None,
    **job: Any,
) -> None:
    """Run a batch job: rows in, the same rows with a prediction out.

    INPUT is a file, a quoted glob, a folder, or - for standard input (with --format). Files are
    JSON lines, CSV (.csv, .tsv) or Parquet by their suffix; all but Parquet also compressed: .gz,
    .bz2, .zst. A name that ends with / is a folder of parts.

    Rows keep their order and their fields. A row that cannot be used goes, with its line number
    and the reason, to OUTPUT.errors.jsonl. Question answering reads the fields question and
    context, every other task the field text.

    With --shadow some rows run again after the job: with PyTorch where the checkpoint is there,
    else with the exported fp32 graph. The same texts give the same rows, and one at least.

    A job that was stopped or killed goes on when the same command is run again.

    With --devices, one reader feeds an engine on each GPU (all, or 0,1), each NUMA node (numa; all,
    where there is no GPU) or each set of cores. The output is the same, and a job that was begun
    with other devices goes on. Rows of an engine whose process died run again.

    On a CPU, how many batches run at once, on how many threads, and how large they are is measured
    for the engine before its first job of 4 MB or more, and kept in the user's cache.

    With --ray, Parquet files go through engines on many cores, GPUs or machines, in any order, into
    a folder/. A row that cannot be used stays, with the reason in the column prediction_error. Ray
    starts a worker that died again; a job that was killed begins anew.

    A VALUE is JSON, or plain text; a list may be given with commas: --set labels=refund,delivery
    """
    from tfc.runtime import Session
    from tfc.runtime.jobs import run_job
    from tfc.runtime.tasks.options import values_from_settings

    refuse_with_devices(devices, {"ray": ray, "shadow": shadow})
    if ray:
        refuse_with_ray({**job, "shadow": shadow, "log_json": log_json, "metrics": metrics_file})
        wanted = {"engine": engine, "require_verified": require_verified, "threads": threads}
        cluster = {"workers": workers, "ray_address": ray_address}
        run_on_ray(
            artifact, inputs, output, settings, {**job, **wanted, **cluster}, on_error, as_json
        )
        return
    if workers is not None or ray_address is not None:
        raise UsageError("--workers and --ray-address are of jobs with Ray", fix="Add --ray")
    log = JsonLog()
    metrics = None if metrics_file is None else MetricsFile(metrics_file, output)
    loaded: Session | DeviceSession
    if devices is None:
        loaded = Session.for_jobs(
            artifact,
            engine,
            threads,
            require_verified=require_verified,
            measure=worth_measuring(inputs, job["format"]),
        )
    else:
        events = log.event if log_json else None
        loaded = loaded_on_devices(artifact, devices, engine, threads, require_verified, events)
    with loaded as session:
        watch = None
        if shadow is not None:
            from tfc.artifact import Artifact
            from tfc.steps.verification.shadow import Shadow

            watch = Shadow(Artifact.open(artifact), session.engine_name, shadow)
            job["on_rows"] = watch.see
        job.update(values_from_settings(session.task.name, session.options, settings))
        _warn(session, artifact, log if log_json else None)
        if isinstance(session, Session):
            if log_json:
                log_plan(session, log)
            elif not as_json:
                show_plan(session)
        shown = nullcontext(log.report) if log_json else live()
        with stop_requests() as stopped, shown as show:
            told = [show] if metrics is None else [show, metrics.report]
            try:
                summary = run_job(
                    session, inputs, output, on_progress=all_of(told), stopped=stopped, **job
                )
            except JobStopped as stop:
                stop.exit_code = stopped.exit_code or stop.exit_code
                raise
        memory = session.memory if isinstance(session, Session) else None
    if metrics is not None:
        metrics.finish()
    drift = None if watch is None else watch.drift()
    if log_json:
        shadowed = {} if drift is None else {"shadow": drift.as_json()}
        done = {**dataclasses.asdict(summary), **shadowed}
        log.event("finished", engine=session.engine_name, **done)
    console = err if summary.output is None else out
    if as_json:
        click.echo(summary_json(summary, session.engine_name, drift), err=summary.output is None)
    elif not out.quiet:
        show_summary(summary, session.engine_name, console)
        show_memory(memory, console)
        if drift is not None:
            show_drift(drift, console)
    fail_on_bad_rows(on_error, summary.bad_rows, str(summary.errors or output))


def _warn(session: Session | DeviceSession, artifact: str, log: JsonLog | None) -> None:
    """Say that the engine is not verified; in the log where there is one."""
    if session.verdict == "verified":
        return
    if log is not None:
        log.event("warning", engine=session.engine_name, parity=session.verdict)
        return
    err.print(
        f"tfc: warning: engine {session.engine_name} is not verified "
        f"(parity: {session.verdict}). Check it with: tfc verify {artifact}",
        soft_wrap=True,
    )
