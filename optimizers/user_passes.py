"""A user's own passes: of an installed package, or of a module or file that the caller names.

A package declares them under the entry point group `tfc.passes`; a module or file under `PASSES`. A
fusion (`tfc.optimizers.passes.Fusion`) is as good as a pass.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfc.errors import UsageError, first_line
from tfc.optimizers.passes import FusionPass, Pass

ENTRY_POINTS = "tfc.passes"
_ATTRIBUTE = "PASSES"


def installed_passes() -> tuple[Pass, ...]:
    """The passes that installed packages bring (entry point group `tfc.passes`).

    Raises:
        UsageError: one of them cannot be loaded.
    """
    found: list[Pass] = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            found += _as_passes(entry.load(), entry.value)
        except UsageError:
            raise
        except Exception as error:  # whatever the package's own code raises
            raise UsageError(
                f"the passes of an installed package cannot be loaded ({first_line(error)})",
                where=entry.value,
                fix="Repair or uninstall that package",
            ) from error
    return tuple(found)


def passes_from_module(name: str) -> tuple[Pass, ...]:
    """The passes in `PASSES` of a module, or of a `.py` file.

    Raises:
        UsageError: there is no such module, or it has no passes.
    """
    try:
        module = _module_of_file(Path(name)) if name.endswith(".py") else _module(name)
    except Exception as error:  # whatever the module's own code raises
        raise UsageError(
            f"the passes cannot be loaded ({first_line(error)})",
            where=name,
            fix="Give a module that can be imported here, or a .py file",
        ) from error
    if not hasattr(module, _ATTRIBUTE):
        raise UsageError(
            f"this module has no {_ATTRIBUTE}", where=name, fix=f"Define {_ATTRIBUTE} = (…) in it"
        )
    return tuple(_as_passes(getattr(module, _ATTRIBUTE), name))


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _module_of_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python module at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _as_passes(given: Any, where: str) -> list[Pass]:
    """Passes as they are; fusions as passes that try them at every anchor."""
    passes: list[Pass] = []
    for item in given if isinstance(given, Sequence) else [given]:
        if isinstance(getattr(item, "name", None), str) and callable(getattr(item, "apply", None)):
            passes.append(item)
        elif all(hasattr(item, part) for part in ("name", "anchors", "match", "rewrite")):
            passes.append(FusionPass(item))
        else:
            raise UsageError(
                f"{item!r} is neither a pass nor a fusion",
                where=where,
                fix="Give it a name, and apply(), or anchors with match() and rewrite()",
            )
    return passes
