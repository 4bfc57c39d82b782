"""What `tfc run` shows: a live line on a terminal or JSON events while it runs, then a summary."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from tfc.cli.console import err, human_bytes, human_count, human_seconds, out
from tfc.errors import BadData
from tfc.runtime.batching import padding_waste

if TYPE_CHECKING:
    from rich.console import Console

    from tfc.runtime.backends.base import GpuMemory
    from tfc.runtime.jobs import JobSummary
    from tfc.runtime.jobs.progress import JobProgress
    from tfc.steps.verification.shadow import Drift

# Seconds between two progress events of --log-json: a night's job gives a log of some megabytes.
_LOG_INTERVAL_S = 10.0

Report = Callable[["JobProgress"], None]


@contextmanager
def live() -> Iterator[Report]:
    """A bar on stderr with rates and the time that is left; nothing where that is no terminal."""
    if not err.is_terminal or out.quiet:
        yield _silent
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    text = TextColumn("{task.description}", markup=False)
    with Progress(BarColumn(20), TaskProgressColumn(), text, console=err, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        first: list[int] = []

        def report(now: JobProgress) -> None:
            if not first:
                first.append(now.bytes)
            total = now.total_bytes or None
            described = line_of(now, first[0])
            bar.update(task, completed=now.bytes, total=total, description=described)

        yield report


def line_of(now: JobProgress, first_bytes: int) -> str:
    """Rates, padding, bad rows and the time that is left: `212 rows/s  9.1 k tokens/s  …`."""
    seconds = max(now.seconds, 1e-9)
    parts = [
        f"{now.rows / seconds:.0f} rows/s",
        f"{human_count(round(now.tokens / seconds))} tokens/s",
        f"{padding_waste(now.tokens, now.padded):.1%} padding",
    ]
    if now.bad_rows:
        parts.append(f"{counted(now.bad_rows, 'bad row')}")
    done = now.bytes - first_bytes
    if done and now.total_bytes:
        parts.append(f"{human_seconds((now.total_bytes - now.bytes) * seconds / done)} left")
    return "  ".join(parts)


class JsonLog:
    """Writes events to stderr, each a line of JSON with its time."""

    def __init__(self) -> None:
        self._next = 0.0

    def event(self, name: str, **fields: Any) -> None:
        """Write one."""
        stamp = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        click.echo(json.dumps({"time": stamp, "event": name, **fields}, default=str), err=True)

    def report(self, now: JobProgress) -> None:
        """A `progress` event, at most one in `_LOG_INTERVAL_S`."""
        clock = time.monotonic()
        if clock >= self._next:
            self._next = clock + _LOG_INTERVAL_S
            self.event("progress", **dataclasses.asdict(now))


def all_of(reports: Sequence[Report]) -> Report:
    """One that calls them all."""

    def report(now: JobProgress) -> None:
        for each in reports:
            each(now)

    return report


def show_summary(summary: JobSummary, engine: str, console: Console) -> None:
    """Two lines, a third where rows were bad."""
    console.print(
        f"{counted(summary.rows, 'row')} in {human_seconds(summary.seconds)} with {engine}: "
        f"{summary.rows_per_second:.0f} rows/s, "
        f"{human_count(round(summary.tokens_per_second))} tokens/s, "
        f"{summary.padding_waste:.1%} padding"
    )
    if summary.resumed_rows:
        console.print(f"{counted(summary.resumed_rows, 'row')} of the input done by an earlier run")
    if summary.output is not None:
        console.print(f"written to {summary.output}", soft_wrap=True)
    if summary.bad_rows:
        where = summary.errors or "on standard error"
        console.print(
            f"{counted(summary.bad_rows, 'bad row')} left out, each with its reason: {where}",
            soft_wrap=True,
        )


def show_memory(memory: GpuMemory | None, console: Console) -> None:
    """One line of what the engine took of the GPU; nothing for a CPU."""
    if memory is None:
        return
    all_lanes = "" if memory.lanes >= memory.most_lanes else f" of {memory.most_lanes}"
    most = f" ({human_bytes(memory.at_most)} with all)" if all_lanes else ""
    console.print(
        f"GPU memory: {human_bytes(memory.on_gpu)}{most}: engine {human_bytes(memory.plan)}, "
        f"{counted(memory.lanes, 'lane')}{all_lanes} × {human_bytes(memory.activations)}, "
        f"buffers {human_bytes(memory.buffers)}; pinned on the host {human_bytes(memory.pinned)}",
    )


def show_drift(drift: Drift, console: Console) -> None:
    """How far the rows that ran again are from the reference, and whether that is too far."""
    if drift.max_abs is None:
        console.print("shadow: no row ran, so none was compared")
        return
    sampled = f" of {drift.sampled} sampled" if drift.sampled > drift.rows else ""
    console.print(
        f"shadow: {counted(drift.rows, 'row')}{sampled} of {drift.seen} off by at most "
        f"{drift.max_abs:.1e}, {drift.argmax_agreement:.2%} with the same largest value, "
        f"least cosine {drift.cosine:.6f}, against {drift.reference}",
    )
    if drift.beyond:
        err.print(
            f"tfc: warning: the engine drifts: {drift.max_abs:.1e} is beyond the "
            f"{drift.allowed:.1e} that tfc verify allowed it",
            soft_wrap=True,
        )


def summary_json(summary: JobSummary, engine: str, drift: Drift | None = None) -> str:
    """The summary as one line of JSON."""
    shadow = {} if drift is None else {"shadow": drift.as_json()}
    return json.dumps({"engine": engine, **dataclasses.asdict(summary), **shadow}, default=str)


def fail_on_bad_rows(on_error: str, bad_rows: int, where: str) -> None:
    """What --on-error asks for at the end of a job.

    Raises:
        BadData: it is ``fail``, and rows were bad.
    """
    if on_error == "fail" and bad_rows:
        raise BadData(
            f"{counted(bad_rows, 'row')} could not be used",
            where=where,
            fix="Mend them, or let them be left out: --on-error skip",
        )


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _silent(now: JobProgress) -> None:
    """Show nothing."""
