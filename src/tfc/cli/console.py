"""How every command prints: two consoles, a table, a progress bar, and numbers for people.

`out` is for results, `err` for everything else. Neither reads markup in strings: a label or a
file name may hold brackets. Style a whole line with `out.print(text, style="bold")`, and parts of
one with `rich.text.Text`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 80
"""Columns where stdout is not a terminal, so that a log looks the same wherever it is written."""


_STDOUT, _STDERR = 1, 2


class Progress(Protocol):
    """Called with (done, total) and, where there are several, the name of what is under way."""

    def __call__(self, done: int, total: int, what: str = "") -> None:
        """Move the bar."""


class _Console(Console):
    """A console that lets a closed pipe reach the one place where errors are handled."""

    def __init__(self, *, stderr: bool) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(
            stderr=stderr,
            width=None if stream.isatty() else PIPE_WIDTH,
            color_system=None if os.environ.get("NO_COLOR") else "auto",
            markup=False,
            emoji=False,
            highlight=False,
        )

    def on_broken_pipe(self) -> None:
        """Raise what rich would turn into exit code 1."""
        raise BrokenPipeError


out = _Console(stderr=False)
err = _Console(stderr=True)


def table(title: str, columns: Sequence[str]) -> Table:
    """An empty table; a column whose name begins with `>` is aligned to the right.

    Nothing is cut off: a cell that is too wide goes on in the next line.
    """
    grid = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        min_width=cell_len(title),  # or a title wider than its table would be broken
        header_style="dim",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for name in columns:
        if name.startswith(">"):
            grid.add_column(name[1:], justify="right", no_wrap=True)
        else:
            grid.add_column(name, overflow="fold")
    return grid


def facts(title: str, rows: Mapping[str, str]) -> Table:
    """A title over lines of name and value; long values go on in their own column."""
    grid = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        min_width=cell_len(title),  # or a title wider than its table would be broken
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(printable(name), printable(value))
    return grid


@contextmanager
def quiet() -> Iterator[None]:
    """While the block runs, `out` prints nothing, and nothing shows what is under way."""
    out.quiet = True
    try:
        yield
    finally:
        out.quiet = False


@contextmanager
def working(on: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is under way; yields the function that changes it."""
    if out.quiet:
        yield lambda what: None
        return
    with err.status(on) as status:
        yield status.update


@contextmanager
def progress(description: str) -> Iterator[Progress]:
    """A bar on stderr while the block runs; yields the function to call with (done, total).

    Nothing is shown where stderr is not a terminal, nor when all is to be quiet.
    """
    if not err.is_terminal or out.quiet:
        yield _silent
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    label = TextColumn("{task.description}", markup=False)
    with Bar(
        label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=err, transient=True
    ) as bar:
        task = bar.add_task(printable(description), total=None)

        def update(done: int, total: int, what: str = "") -> None:
            label = printable(what or description)
            bar.update(task, completed=done, total=total, description=label)

        yield update


@contextmanager
def stdout_for_us() -> Iterator[None]:
    """While the block runs, what a native library writes to stdout goes to stderr.

    TensorRT's compiler prints some warnings past its logger; they would stand in our JSON.
    """
    sys.stdout.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        yield
    finally:
        os.dup2(kept, _STDOUT)
        os.close(kept)


def _silent(done: int, total: int, what: str = "") -> None:
    """Move no bar."""


def printable(text: str) -> str:
    """`text` with control characters spelled out: a manifest must not steer the terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def human_bytes(count: int) -> str:
    """A size in decimal units: `87.3 MB`."""
    if count < 1000:
        return f"{count} B"
    return _scaled(count, ("kB", "MB", "GB", "TB"))


def human_count(count: int) -> str:
    """A count: `950`, `22.7 M`."""
    if count < 1000:
        return str(count)
    return _scaled(count, ("k", "M", "G", "T"))


def human_seconds(seconds: float) -> str:
    """A duration: `12 ms`, `3.4 s`, `2 min 5 s`, `1 h 2 min`."""
    if seconds == 0:
        return "0 s"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.{1 if seconds < 0.01 else 0}f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _scaled(count: int, units: tuple[str, ...]) -> str:
    """`count` in the smallest of `units` (thousand, million, …) that keeps it below 1000."""
    value, unit = float(count), ""
    for unit in units:  # noqa: B007 - the unit that the loop stopped at is the result
        value /= 1000
        if value < 999.95:
            break
    return f"{value:.1f} {unit}"
