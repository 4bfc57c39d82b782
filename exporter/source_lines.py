"""The line of a model's source at which the exporter stopped, from an exception's tracebacks."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

_EXPORTER = Path(__file__).resolve().parent
_TORCH = Path(torch.__file__).resolve().parent
_TRANSFORMERS = Path(transformers.__file__).resolve().parent
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
_INSTALLED = ("site-packages", "dist-packages")
# How torch.export quotes a frame in its message.
_QUOTED = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.+)')


@dataclass(frozen=True)
class SourceLine:
    """A line of a Python file, its text without indentation, and the function that it is in."""

    file: str
    line: int
    function: str
    text: str


def offending_line(error: BaseException) -> SourceLine | None:
    """The innermost line of the model's own code on the way to the error; None if there is none.

    Frames of torch, of the standard library, of tfc and of what transformers wraps around its
    models (all but `transformers/models/`) are not the model's own.
    """
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in reversed(causes):
        own = [line for line in _frames(cause) if line.text and _is_models_own(line.file)]
        if own:
            return own[-1]
    return None


def _frames(error: BaseException) -> Iterator[SourceLine]:
    """The frames of the traceback, outermost first, and those that the message quotes."""
    for frame in traceback.extract_tb(error.__traceback__):
        yield SourceLine(frame.filename, frame.lineno or 0, frame.name, (frame.line or "").strip())
    for file, line, function, text in _QUOTED.findall(str(error)):
        yield SourceLine(file, int(line), function, text.strip())


def _is_models_own(file: str) -> bool:
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    if path.is_relative_to(_TRANSFORMERS):
        return path.is_relative_to(_TRANSFORMERS / "models")
    if path.is_relative_to(_STANDARD):
        return any(part in _INSTALLED for part in path.parts) and not path.is_relative_to(_TORCH)
    return not (path.is_relative_to(_TORCH) or path.is_relative_to(_EXPORTER))
