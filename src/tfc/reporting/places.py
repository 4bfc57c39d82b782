"""Where engines leave PyTorch, module by module, and what holds whatever the data are."""

from __future__ import annotations

import re
from typing import Any

from tfc.artifact import VERIFY_REPORT, Artifact
from tfc.reporting.blocks import Block, Chart, Note, Section, Table
from tfc.reporting.charts import errors_along
from tfc.reporting.verdicts import report_of
from tfc.steps.precision_audit import percent

_LAYER = re.compile(r"\.(\d+)\.")
_MOST_NAMES = 12  # on an axis; of more layers every second one is named, and so on
_PASSED = "passed"


def relations_section(artifact: Artifact) -> Section | None:
    """A row for each relation; None where none were checked."""
    found = (report_of(artifact, VERIFY_REPORT) or {}).get("relations", {})
    tables = [_relations(name, relations) for name, relations in found.items() if relations]
    return Section("Relations", tuple(tables)) if tables else None


def _relations(engine: str, relations: list[dict[str, Any]]) -> Table:
    rows = []
    for name in dict.fromkeys(one["name"] for one in relations):
        own = [one for one in relations if one["name"] == name]
        worst = next((one for one in own if one["outcome"] != _PASSED), own[0])
        checked = [one for one in own if "max_abs" in one]
        share = max((one["max_abs"] / one["allowed"] for one in checked), default=None)
        sizes = ", ".join(one["size"] for one in own if one.get("size"))
        used = "-" if share is None else percent(share)
        rows.append((name, worst["outcome"], used, sizes, worst.get("reason", "")))
    columns = ("relation", "outcome", ">of what is allowed", "rows x tokens", "")
    return Table(columns, tuple(rows), caption=f"What must hold for any data: {engine}")


def modules_section(artifact: Artifact) -> Section | None:
    """A chart for each engine that was bisected; None where none was."""
    found = (report_of(artifact, VERIFY_REPORT) or {}).get("bisect", {})
    blocks = [block for name, one in found.items() for block in _bisected(name, one)]
    return Section("Parity by module", tuple(blocks)) if blocks else None


def _bisected(engine: str, found: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if modules := _comparable(found):
        errors = [(one["max_abs"], one["allowed"]) for one in modules]
        worst = max(modules, key=lambda one: one["max_abs"] / (one["allowed"] or 1.0))
        says = (
            f"Largest difference from PyTorch after each of {len(modules)} modules of {engine}, in "
            f"their order. Nearest to its limit is {worst['module']}: {worst['max_abs']:.1e} of "
            f"{worst['allowed']:.1e}"
        )
        if left_out := len(found["modules"]) - len(modules):
            says += f". {left_out} more are left out: a fusion moved a part over their border"
        places = _layer_names([one["module"] for one in modules])
        blocks.append(Chart(errors_along(places, errors, "largest difference"), says))
    for stage in found["stages"]:
        if not stage["ran"]:
            blocks.append(Note(f"{engine}: {stage['name']} not run: {stage['reason']}", True))
    if found["first"] is not None:
        blocks.append(Note(_first(engine, found["first"]), missing=True))
    return blocks


def _comparable(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The modules whose outputs the graph still has.

    Where a fusion moves a bias over the border of a module, what is off there is right again
    behind it: before the module from which the graph stays off, what is off is such a border.
    """
    modules: list[dict[str, Any]] = found["modules"]
    names = [one["module"] for one in modules]
    stays_off = next((s["from_module"] for s in found["stages"] if s["from_module"]), None)
    border = names.index(stays_off) if stays_off in names else len(names)
    return [one for place, one in enumerate(modules) if place >= border or not one["beyond"]]


def _first(engine: str, first: dict[str, Any]) -> str:
    """`… leaves PyTorch first in the graph of optimize, module x, at MatMul node y`."""
    module = f", in the module {first['module']}" if first["module"] else ""
    node = f", at {first['op_type']} {first['node']}" if first["node"] else ""
    changed = f": {first['changed']}" if first["changed"] else ""
    return f"{engine} leaves PyTorch first in the graph of {first['stage']}{module}{node}{changed}"


def _layer_names(modules: list[str]) -> list[str]:
    """The number of the layer at its first module, nothing at the others."""
    names: list[str] = []
    seen: set[str] = set()
    for module in modules:
        match = _LAYER.search(f"{module}.")
        layer = match[1] if match else ""
        names.append(f"layer {layer}" if layer and layer not in seen else "")
        seen.add(layer)
    step = 1 + sum(map(bool, names)) // _MOST_NAMES
    kept = [place for place, name in enumerate(names) if name][::step]
    return [name if place in kept else "" for place, name in enumerate(names)]
