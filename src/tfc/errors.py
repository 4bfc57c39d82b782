"""Every error that tfc raises on purpose.

The tree, with the exit code that the command line gives to each::

    TfcError
    ├── CheckFailed              1  parity or accuracy is not good enough
    ├── UsageError               2  the call itself is wrong
    ├── ContractNotReached       3  a fusion or precision contract does not hold
    ├── EnvironmentProblem       4  this machine lacks something
    │   ├── MissingPackage
    │   ├── BackendUnavailable
    │   └── NoSpace
    ├── BadInput                 5  a file that was given is not what it should be
    │   ├── BadCheckpoint
    │   ├── BadArtifact
    │   └── BadData
    └── JobStopped             130  a batch job was asked to stop (143 where SIGTERM asked)

Each error says what happened, where, and what to do about it. Errors of torch, ONNX Runtime,
TensorRT and the operating system are translated where they cross into tfc (``raise … from``),
so that a caller needs to catch `TfcError` only.

The command line knows three more exit codes: 70 for a defect in tfc itself (any other exception),
130 when it was interrupted, and 141 when whoever read its output went away.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_CONTRACT = 3
EXIT_ENVIRONMENT = 4
EXIT_BAD_INPUT = 5
EXIT_INTERNAL = 70  # a defect in tfc itself; EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_TERMINATED = 143  # 128 + SIGTERM, as a shell reports it
EXIT_OUTPUT_CLOSED = 141  # 128 + SIGPIPE, as a shell reports it


class TfcError(Exception):
    """Root of every error that tfc raises on purpose.

    Args:
        what: what happened, one sentence without its final full stop.
        fix: what the reader can do about it, one sentence.
        where: the file, line, node or module that it is about.
    """

    exit_code = EXIT_CHECK_FAILED

    def __init__(self, what: str, *, fix: str = "", where: str = "") -> None:
        self.what = what
        self.fix = fix
        self.where = where
        super().__init__(what, fix, where)

    def __reduce__(self) -> tuple[partial[TfcError], tuple[()]]:
        """Pickled as it was made: errors cross process borders in a batch job."""
        return partial(type(self), self.what, fix=self.fix, where=self.where), ()

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.fix}" if self.fix else text


class CheckFailed(TfcError):
    """A check ran and its result is not good enough (parity, accuracy)."""

    exit_code = EXIT_CHECK_FAILED


class UsageError(TfcError):
    """The call itself is wrong: flags that contradict each other, a value out of range."""

    exit_code = EXIT_USAGE


class ContractNotReached(TfcError):
    """A promise about the compiled graph does not hold: fusions missed, kernels not fused."""

    exit_code = EXIT_CONTRACT


class EnvironmentProblem(TfcError):
    """This machine lacks what the step needs."""

    exit_code = EXIT_ENVIRONMENT


class MissingPackage(EnvironmentProblem):
    """A Python package that the step needs is not installed."""


class BackendUnavailable(EnvironmentProblem):
    """A backend cannot build, or cannot run, on this machine."""


class NoSpace(EnvironmentProblem):
    """The disk is full."""


class BadInput(TfcError):
    """A file that was given is not what it should be."""

    exit_code = EXIT_BAD_INPUT


class BadCheckpoint(BadInput):
    """The checkpoint is missing, incomplete, or of a kind that tfc does not take."""


class BadArtifact(BadInput):
    """The artifact is missing, damaged, or written by a newer tfc."""


class BadData(BadInput):
    """The data file is empty, unreadable, or has rows that cannot be used."""


class JobStopped(TfcError):
    """A batch job was asked to stop, and did, in good order."""

    exit_code = EXIT_INTERRUPTED


def is_installed(module: str) -> bool:
    """Whether `module` can be found; it is not imported, though its parent packages are."""
    import importlib.util

    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a parent is missing; sys.modules[module] is None
        return False


def first_line(error: BaseException) -> str:
    """The first line of a library's message, without its full stop; its type if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def require(module: str, extra: str) -> None:
    """Raise `MissingPackage` naming the extra to install, unless `module` can be imported."""
    if not is_installed(module):
        raise MissingPackage(
            f"the package '{module}' is not installed",
            fix=f"Install it with: pip install 'tfc[{extra}]'",
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translate the operating system's complaints about writing `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpace(
                "no space left on the disk; nothing was changed",
                where=str(path),
                fix="Free some space or choose another output folder, then run it again",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EnvironmentProblem(
                "writing is not permitted",
                where=str(path),
                fix="Choose a folder that you may write to",
            ) from error
        if str(error.filename or "").startswith(str(path.parent)):
            raise EnvironmentProblem(
                f"this cannot be written: {error.strerror}",
                where=str(path),
                fix="Choose another place to write to",
            ) from error
        raise
