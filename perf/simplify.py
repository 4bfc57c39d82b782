"""What `tfc optimize --simplify` takes out of the demo's model, and what it costs on other rows.

    python perf/simplify.py ARTIFACT CHOSEN.jsonl HELD.jsonl -o perf/results/simplify.json
    python perf/simplify.py … --max-drop 0.02 -o perf/results/simplify_2.json

ARTIFACT is the export of a fine-tuned classifier, and is changed: give a copy. In the results it is
the demo's, with every other row of examples/data/support_intents/eval.jsonl, from the first and
the second. CHOSEN is what the command is given: it chooses
on one half and judges on the other. HELD has rows that nothing was chosen on. On them four graphs
are run: the whole one, the simplified one, and two of about as many operations that take the same
share of every site's units out: in the order of fitting, and by the magnitude of their rows with
the matrices left as they were, which is what one does without data.

Speed is that of the simplified graph to the whole one on ONNX Runtime's CPU provider with one
thread, by the CPU time of the process, in pairs of runs one after the other: other processes take
turns away, not CPU time. What they take of the caches they do take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tfc.artifact import Artifact
from tfc.onnx_files import save_onnx
from tfc.optimizers.executor import runner_of
from tfc.optimizers.simplification.fitting import Path as UnitPath
from tfc.optimizers.simplification.fitting import magnitude_path
from tfc.optimizers.simplification.removal import simplified
from tfc.steps.benchmark.workloads import full_batch
from tfc.steps.int8.accuracy import accuracy_of, answers_of
from tfc.steps.int8.rows import CalibrationRows, RowSource, calibration_rows
from tfc.steps.optimize import loaded_graph
from tfc.steps.simplification.rows import halves_of
from tfc.steps.simplification.simplify import Job, job_of, simplify

PAIRS, WARM_UP = 15, 2
BATCH, LENGTH = 8, 64
MOST_ROWS = 4096
Run = Callable[[dict[str, Any]], object]


def quiet(what: str, done: int, total: int) -> None:
    """No progress."""


def main() -> None:
    """Simplify, measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("chosen", type=Path)
    parser.add_argument("held", type=Path)
    parser.add_argument("--max-drop", type=float, default=0.005)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    source = RowSource(args.chosen, label="label", limit=MOST_ROWS)
    begun = time.process_time()
    report = simplify(
        args.artifact, args.chosen, max_drop=args.max_drop, label_column="label", limit=MOST_ROWS
    ).report
    seconds = time.process_time() - begun
    artifact = Artifact.open(args.artifact)
    job = job_of(artifact, halves_of(artifact, source), args.max_drop, quiet)
    held = calibration_rows(artifact, RowSource(args.held, label="label", limit=MOST_ROWS))
    whole, less = job.bench.model, loaded_graph(artifact, "model")
    saved = report["flops"]["simplified"] / report["flops"]["whole"]
    result = {
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "threads": 1},
        "max_drop": args.max_drop,
        "cpu_seconds": seconds,
        "flops_kept": saved,
        "sites": report["sites"],
        "layers_dropped": report["layers_dropped"],
        "choosing": report["choosing"],
        "judging": report["judging"],
        "held": {
            "rows": held.cases.rows,
            "simplified": on_held(job, held, less),
            "same share of every site, fitted": on_held(job, held, uniform(job, saved, True)),
            "same share of every site, by magnitude": on_held(
                job, held, uniform(job, saved, False)
            ),
        },
        "times_as_fast": speed(artifact, whole, less),
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "sites"}, indent=1))


def on_held(job: Job, held: CalibrationRows, model: ir.Model) -> dict[str, Any]:
    """A graph beside the whole one on the rows that nothing was chosen on."""
    whole, got = (
        answers_of(runner_of(each), held, lambda done, total: None)
        for each in (job.bench.model, model)
    )
    found = accuracy_of(job.artifact.manifest.task, whole, got)
    return {
        "agreement": found.agreement,
        found.metric: found.after,
        f"{found.metric} of the whole graph": found.before,
        "rms": found.rms,
    }


def uniform(job: Job, flops_kept: float, fitted: bool) -> ir.Model:
    """The same share out of every site, so that about so many of the operations stay."""
    kept = {}
    for name, path in job.bench.paths.items():
        chosen: UnitPath = path if fitted else magnitude_path(path)
        kept[name] = chosen.kept_after(round((1 - flops_kept) * len(path.groups)), fitted=fitted)
    return simplified(job.bench.model, kept)


def speed(artifact: Artifact, whole: ir.Model, less: ir.Model) -> dict[str, Any]:
    """The CPU time of the whole graph over that of the simplified one, in pairs."""
    feed = full_batch(artifact, BATCH, LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        runs = [session(graph, Path(folder) / f"{i}.onnx") for i, graph in enumerate((whole, less))]
        for run in runs * WARM_UP:
            run(feed)
        ratios = []
        for pair in range(PAIRS):
            order = (0, 1) if pair % 2 else (1, 0)
            spent = {place: cpu_time(runs[place], feed) for place in order}
            ratios.append(spent[0] / spent[1])
    return {
        "batch": BATCH,
        "sequence": LENGTH,
        "pairs": PAIRS,
        "median": statistics.median(ratios),
        "ratios": ratios,
    }


def session(model: ir.Model, path: Path) -> Run:
    """ONNX Runtime with its own optimisations, on one thread."""
    import onnxruntime

    save_onnx(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: found.run(None, feed)


def cpu_time(run: Run, feed: dict[str, Any]) -> float:
    """What one run takes of the processor."""
    begun = time.process_time()
    run(feed)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
