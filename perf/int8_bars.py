"""fp16, int8 and fp8 of two fine-tuned models that nothing was tuned on, on held-out rows.

The models are those of `perf/bar_models.py`. No row that is judged was trained or calibrated on.
The bars: fp16 gives the labels of fp32 on 99.9 % of the rows; int8 on 99 %, with an accuracy within
half a point and 70 % of the GEMM FLOPs in int8. Naive static int8 (min-max, everything) is beside
it. Graphs for TensorRT are judged on the CPU with their roundings written out: there is no GPU.

    python perf/int8_bars.py build/bars -o perf/results/int8_bars.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from bar_models import DISTRIBUTIONS, BarModel, made_models
from int8 import NAIVE, TARGETS, TFC, judged, naive, quiet

import tfc
from tfc.errors import ContractNotReached
from tfc.optimizers.executor import runner_of
from tfc.steps.int8.accuracy import Answers, answers_of
from tfc.steps.int8.prepare import int8_step
from tfc.steps.int8.rows import CalibrationRows, RowSource, calibration_rows
from tfc.steps.optimize import optimized_file
from tfc.steps.record import versions_of

_ALL = 1 << 20  # every row of a file
# What the issue asks; a difference of just half a point is one.
FP16_LABELS, INT8_LABELS, ACCURACY, SHARE, ROUNDING = 0.999, 0.99, 0.005, 0.7, 1e-9
BUILDS = (("onnxruntime", "int8"), ("tensorrt", "int8"), ("tensorrt", "fp8"))
Found = dict[str, Any]


@dataclass(frozen=True)
class Held:
    """Held-out rows of one split, and what the fp32 graph of each target says of them."""

    calib: Path
    rows: CalibrationRows
    exact: dict[str, Answers]


def held_out(artifact: tfc.Artifact, calib: Path, held: Path) -> Held:
    """Run fp32 on the rows that are judged."""
    rows = calibration_rows(artifact, RowSource(held, label="label", limit=_ALL))
    graphs = {target: ir.load(artifact.file(optimized_file(target))) for target in TARGETS}
    exact = {name: answers_of(runner_of(graph), rows, quiet) for name, graph in graphs.items()}
    return Held(calib, rows, exact)


def half(artifact: tfc.Artifact, held: Held) -> Found:
    """fp16, as TensorRT is given it."""
    tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx")
    graph = ir.load(artifact.file(optimized_file("tensorrt", precision="fp16")))
    return judged(artifact, graph, held.rows, held.exact["tensorrt"])


def everything(target: str, artifact: tfc.Artifact, held: Held) -> Found:
    """Naive static int8."""
    model = ir.load(artifact.file(optimized_file(target)))
    rows = calibration_rows(artifact, RowSource(held.calib))
    graph = naive(model, target, rows, "min-max")
    return judged(artifact, graph, held.rows, held.exact[target])


def ours(target: str, precision: str, artifact: tfc.Artifact, held: Held) -> Found:
    """What tfc builds with its defaults, or why it refuses to."""
    options = {"backend": TARGETS[target], "calib": held.calib, "label_column": "label"}
    try:
        tfc.build_engine(artifact, precision=precision, **options)
    except ContractNotReached as error:
        return {"refused": error.what}
    result = int8_step(artifact, target, "model", precision).result
    graph = ir.load(artifact.file(optimized_file(target, precision=precision)))
    found = judged(artifact, graph, held.rows, held.exact[target])
    keys = ("form", "method", "sites", "trials", "accuracy", "left", "kept")
    return {**found, "build": {key: result[key] for key in keys if key in result}}


def together(parts: Sequence[Found]) -> Found:
    """All splits as one: each counts with its rows. A build that was refused has no numbers."""
    refused = [part["refused"] for part in parts if "refused" in part]
    if refused:
        return {"refused": refused}
    rows = sum(part["rows"] for part in parts)
    keys = [key for key in parts[0] if key not in ("rows", "build")]
    mean = {key: sum(part[key] * part["rows"] for part in parts) / rows for key in keys}
    builds = [part["build"] for part in parts if "build" in part]
    if builds:
        mean["flops_share"] = min(build["sites"]["flops_share"] for build in builds)
    return {"rows": rows, **mean, **({"builds": builds} if builds else {})}


def holds(name: str, found: Found) -> bool:
    """Whether it reaches its bar."""
    if "refused" in found:
        return False
    if name == "fp16":
        return bool(found["agreement"] >= FP16_LABELS)
    lost = abs(found["accuracy_fp32"] - found["accuracy"])
    enough = found["agreement"] >= INT8_LABELS and found.get("flops_share", 1.0) >= SHARE
    return bool(enough and lost <= ACCURACY + ROUNDING)


def model_report(model: BarModel, folder: Path) -> dict[str, Found]:
    """One model: each form on its held-out rows."""
    path = folder / model.name / "artifact"
    artifact = tfc.Artifact.open(path) if path.exists() else None
    artifact = artifact or tfc.export(model.checkpoint, path).artifact
    for target in TARGETS:
        tfc.optimize(artifact, target)
    ways: dict[str, Callable[[tfc.Artifact, Held], Found]] = {"fp16": half}
    for target in TARGETS:
        ways[f"{target}, {NAIVE}"] = partial(everything, target)
    for target, precision in BUILDS:
        ways[f"{target}, {TFC} {precision}"] = partial(ours, target, precision)
    splits = [held_out(artifact, calib, held) for calib, held in model.splits]
    report = {}
    for name, way in ways.items():
        found = together([way(artifact, held) for held in splits])
        report[name] = {**found, "holds": holds(name, found)}
        shown = {key: value for key, value in report[name].items() if key != "builds"}
        print(f"{model.name}: {name}: {shown}", flush=True)
    return report


def main() -> None:
    """Make the models, measure, print, and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the models; those in it are used again")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    models = made_models(options.folder)
    report: dict[str, Any] = {
        "command": "python perf/int8_bars.py build/bars",
        "versions": versions_of(*DISTRIBUTIONS, "onnxruntime-gpu", "onnxruntime"),
        "bars": {"fp16_labels": FP16_LABELS, "int8_labels": INT8_LABELS, "accuracy": ACCURACY},
        "models": {model.name: model_report(model, options.folder) for model in models},
    }
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
