"""int8 of the demo's classifier beside fp32 and beside naive int8, for the CPU and TensorRT.

Naive is what static rules give: every product in int8, ranges from min to max, nothing smoothed,
nothing measured. Rows that are judged were not calibrated on: the 200 labelled utterances of the
demo are split in two, and each half is judged by graphs that were calibrated on the other.
Graphs for TensorRT are judged on the CPU, with their roundings to half written out: there is no
GPU. Speed is measured in turn in one process.

    make demo
    python perf/int8.py build/demo/checkpoint -o perf/results/int8.json
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import tfc
from tfc.optimizers.executor import runner_of
from tfc.optimizers.precision.half import half_from_fp32
from tfc.optimizers.precision.int8.observe import Observed, observe
from tfc.optimizers.precision.int8.ranges import METHODS, ranges_from
from tfc.optimizers.precision.int8.sites import sites_of
from tfc.runtime.backends import backend
from tfc.runtime.cores import busy_share, usable_cores
from tfc.runtime.throughput import Workload, measure
from tfc.steps.benchmark.workloads import full_batch
from tfc.steps.int8.accuracy import Answers, accuracy_of, answers_of
from tfc.steps.int8.forms import STATIC, forms_of, qdq
from tfc.steps.int8.prepare import int8_step
from tfc.steps.int8.rows import CalibrationRows, RowSource, calibration_rows
from tfc.steps.optimize import optimized_file
from tfc.steps.record import versions_of

DATA = Path(__file__).resolve().parent.parent / "examples" / "data" / "support_intents"
TARGETS = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt-rtx"}
SIZES = (16, 64, 256)
NAIVE, TFC = "naive static (min-max, everything)", "tfc"
BATCH, LENGTH = 32, 128


def halves(folder: Path) -> list[Path]:
    """The labelled rows that the model was not trained on, in two files."""
    lines = (DATA / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    files = []
    for number in (0, 1):
        files.append(folder / f"half{number}.jsonl")
        files[-1].write_text("\n".join(lines[number::2]) + "\n", encoding="utf-8")
    return files


def quiet(done: int, total: int) -> None:
    """Report to nobody."""


def naive(model: ir.Model, target: str, rows: CalibrationRows, method: str) -> ir.Model:
    """Every product in int8, with ranges by one method; beside fp16 for TensorRT."""
    sites = [site for site in sites_of(model) if site.tokens]
    seen = Observed()
    observe(model, sites, rows.feeds, seen, lambda seen: None)
    ranges = ranges_from(seen.histograms(), method)
    if target == "tensorrt":
        return qdq(half_from_fp32(model)[0], ranges).graph(sites)
    return forms_of(target, STATIC, model, ranges)[0].graph(sites)


def judged(
    artifact: tfc.Artifact, graph: ir.Model, rows: CalibrationRows, exact: Answers
) -> dict[str, Any]:
    """What a graph keeps on rows that it was not calibrated on."""
    found = accuracy_of(artifact.manifest.task, exact, answers_of(runner_of(graph), rows, quiet))
    return {
        "rows": rows.cases.rows,
        "agreement": found.agreement,
        "accuracy": found.after,
        "accuracy_fp32": found.before,
        "error": found.error,
    }


def together(parts: list[dict[str, Any]]) -> dict[str, float]:
    """Two halves as one: they have as many rows."""
    keys = [key for key in parts[0] if key != "rows"]
    found = {key: float(np.mean([part[key] for part in parts])) for key in keys}
    return {"rows": sum(part["rows"] for part in parts), **found}


def target_report(artifact: tfc.Artifact, target: str, files: list[Path]) -> dict[str, Any]:
    """Naive int8 by each method, and what tfc builds, each judged on the other half."""
    model = ir.load(artifact.file(optimized_file(target)))
    rows = [calibration_rows(artifact, RowSource(file, label="label")) for file in files]
    exact = [answers_of(runner_of(model), each, quiet) for each in rows]
    found: dict[str, list[dict[str, Any]]] = {}
    builds = []
    for own, other in ((0, 1), (1, 0)):
        for method in METHODS:
            name = NAIVE if method == "min-max" else f"naive, {method}"
            graph = naive(model, target, rows[own], method)
            found.setdefault(name, []).append(judged(artifact, graph, rows[other], exact[other]))
        begun = time.perf_counter()
        tfc.build_engine(
            artifact,
            precision="int8",
            backend=TARGETS[target],
            calib=files[own],
            label_column="label",
        )
        seconds = time.perf_counter() - begun
        result = int8_step(artifact, target, "model").result
        graph = ir.load(artifact.file(optimized_file(target, precision="int8")))
        found.setdefault(TFC, []).append(judged(artifact, graph, rows[other], exact[other]))
        keys = ("form", "forms", "method", "sites", "left", "kept", "trials", "alphas")
        builds.append({"seconds": seconds, **{key: result[key] for key in keys if key in result}})
        audit = artifact.manifest.engines[f"{TARGETS[target]}-int8"].audit
        if audit:
            compiled = audit["precision"]["compiled"]
            builds[-1]["fused_attention"] = audit["fused_attention"]
            builds[-1]["compiled"] = {name: share["share"] for name, share in compiled.items()}
    return {"judged": {name: together(parts) for name, parts in found.items()}, "builds": builds}


def speed(artifact: tfc.Artifact, file: Path, folder: Path) -> dict[str, Any]:
    """tfc's int8 engine, naive static int8 and fp32 on the CPU, in turn."""
    rows = calibration_rows(artifact, RowSource(file, label="label"))
    model = ir.load(artifact.file(optimized_file("onnxruntime")))
    ir.save(naive(model, "onnxruntime", rows, "min-max"), folder / "naive.onnx")
    engine = backend("onnxruntime")
    files: Mapping[str, Path] = {
        "fp32": artifact.file(optimized_file("onnxruntime")),
        TFC: artifact.file(optimized_file("onnxruntime", precision="int8")),
        NAIVE: folder / "naive.onnx",
    }
    tokens = BATCH * LENGTH
    feeds = (full_batch(artifact, BATCH, LENGTH),)
    workload = Workload(f"{BATCH}×{LENGTH}", feeds, BATCH, tokens, tokens)
    runs = {name: engine.load(path).run for name, path in files.items()}
    return measure(runs, workload, seconds=10.0, baseline="fp32").as_json()


def samples(artifact: tfc.Artifact, files: list[Path]) -> list[dict[str, Any]]:
    """How ranges and errors on the other half depend on the number of rows, at the CPU."""
    model = ir.load(artifact.file(optimized_file("onnxruntime")))
    other = calibration_rows(artifact, RowSource(files[1], label="label"))
    exact = answers_of(runner_of(model), other, quiet)
    found = []
    for size in SIZES:
        rows = calibration_rows(artifact, RowSource(DATA / "train.jsonl", limit=size))
        graph = naive(model, "onnxruntime", rows, "min-max")
        found.append({"calibrated_on": size, **judged(artifact, graph, other, exact)})
    return found


def main() -> None:
    """Measure, print, and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    busy = busy_share()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = tfc.export(options.checkpoint, folder / "artifact").artifact
        for target in TARGETS:
            tfc.optimize(artifact, target)
        files = halves(folder)
        report: dict[str, Any] = {
            "command": "python perf/int8.py build/demo/checkpoint",
            "machine": f"{platform.machine()}, {usable_cores()} cores",
            "busy_before": busy,
            "versions": versions_of("onnxruntime-gpu", "onnxruntime", "onnx-ir"),
        }
        for target in TARGETS:
            report[target] = target_report(artifact, target, files)
            for kind, line in report[target]["judged"].items():
                print(f"{target}, {kind}: {line}", flush=True)
        report["speed"] = speed(artifact, files[0], folder)
        report["samples"] = samples(artifact, files)
        print(report["speed"]["ratios"], *report["samples"], sep="\n")
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
