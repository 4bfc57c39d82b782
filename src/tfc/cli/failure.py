"""What the command line says when a command raises, and the exit code that it gives."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import textwrap
import traceback

import click
from rich.text import Text

from tfc.cli.console import err, printable
from tfc.errors import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_OUTPUT_CLOSED,
    NoSpace,
    TfcError,
)

_WIDEST = 100  # columns: longer lines of prose are hard to read


def report(error: BaseException, debug: bool) -> int:
    """Say on stderr what `error` means; return the exit code.

    With `debug` the traceback comes first. Nothing is said when the reader of our output went
    away, as `head` does.
    """
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return EXIT_OUTPUT_CLOSED
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        _say("tfc: ", "interrupted")
        return EXIT_INTERRUPTED
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error = NoSpace(
            "no space left on the disk",
            where=str(error.filename or "the output"),
            fix="Free some space, then run it again",
        )
    if isinstance(error, TfcError):
        _say("tfc: error: ", f"{error.where}: {error.what}" if error.where else error.what)
        if error.fix:
            _say("  ", error.fix)
        return error.exit_code
    message = f"{type(error).__name__}: {error}".removesuffix(": ")
    advice = "" if debug else ". Run again with --debug for the traceback"
    _say("tfc: internal error: ", f"{message}{advice}")
    return EXIT_INTERNAL


def _say(lead: str, text: str) -> None:
    """Print `text`, wrapped on a terminal; elsewhere whole, so that logs can be searched."""
    first, *rest = printable(text).split("\n")
    for lead_in, line in [(lead, first), *(("  ", line) for line in rest)]:
        wrapped = lead_in + line
        if err.is_terminal:
            indent = " " * (len(line) - len(line.lstrip()))
            wrapped = textwrap.fill(
                lead_in + line,
                min(err.width, _WIDEST),
                subsequent_indent=f"  {indent}",
                break_long_words=False,
                break_on_hyphens=False,
            )
        message = Text(wrapped)
        message.stylize("bold", 0, len(lead_in.rstrip()))
        err.print(message, soft_wrap=True)


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads; if so, close it without a complaint."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # not a real file, as in a test
        return False
    poll = select.poll()
    poll.register(number, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True
