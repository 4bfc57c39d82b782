"""Keep what shows that a graph is wrong: `<output>.failed/`.

It holds `inputs.npz`, `expected.npz` (PyTorch's outputs), `got.npz` (the graph's; absent where it
did not run), `model.onnx`, and `report.json` with the first module whose output differs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tfc.errors import CheckFailed
from tfc.exporter.comparison import GraphDiffers
from tfc.exporter.diagnosis import Site, first_difference
from tfc.files import staged_folder
from tfc.onnx_files import save_onnx

REPORT = "report.json"


def failure_with_evidence(error: GraphDiffers, output: Path) -> CheckFailed:
    """Write the evidence beside `output`; the error that names the folder and the module."""
    site, why_none = _site_of(error)
    target = _free_place(output)
    with staged_folder(target) as folder:
        _write(error, site, why_none, folder)
    place = (
        f"; the first module whose output differs is {site.module} ({site.kind}), "
        f"at the node {site.node} ({site.op_type})"
        if site is not None
        else ""
    )
    return CheckFailed(
        f"{error.what}{place}",
        where=error.where,
        fix=f"Report this model with the folder {target}, which holds inputs, outputs and graph; "
        "no artifact was written",
    )


def _site_of(error: GraphDiffers) -> tuple[Site | None, str]:
    """Where it goes wrong, or why that cannot be told; the parity failure is reported anyway."""
    evidence = error.evidence
    if evidence.got is None:
        return None, "the graph does not run"
    try:
        site = first_difference(evidence.module, evidence.model, evidence.feed)
    except Exception as problem:  # ONNX Runtime's errors have no common root, nor have a module's
        return None, f"the graph does not run with its inner values as outputs: {problem}"
    return site, "" if site is not None else "no module's output differs"


def _write(error: GraphDiffers, site: Site | None, why_none: str, folder: Path) -> None:
    evidence = error.evidence
    graph = ir.load(evidence.model)
    names = [str(value.name) for value in graph.graph.outputs]
    _save(folder / "inputs.npz", evidence.feed)
    _save(folder / "expected.npz", dict(zip(names, evidence.expected, strict=True)))
    if evidence.got is not None:
        _save(folder / "got.npz", dict(zip(names, evidence.got, strict=True)))
    save_onnx(graph, folder / "model.onnx")
    report: dict[str, Any] = {
        "what": error.what,
        "checkpoint": error.where,
        "inputs": {name: list(array.shape) for name, array in evidence.feed.items()},
        "parity": evidence.parity.as_json() if evidence.parity is not None else None,
        "first_difference": dataclasses.asdict(site) if site is not None else None,
        "why_no_module_is_named": why_none,
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _save(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _free_place(output: Path) -> Path:
    """`<output>.failed`, in place of earlier evidence; numbered where something else is there."""
    return next(p for p in _places(output) if not p.exists() or (p / REPORT).is_file())


def _places(output: Path) -> Iterator[Path]:
    yield output.with_name(f"{output.name}.failed")
    for number in count(2):
        yield output.with_name(f"{output.name}.failed-{number}")
