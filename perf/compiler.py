"""Time and peak memory of `tfc optimize`, for both targets, on models of several sizes.

    python perf/compiler.py -o perf/results/compiler.json
    python perf/compiler.py --models '' --large -o perf/results/compiler_large.json

Each run is a whole process, from the exported artifact to the optimized graph on disk. CPU seconds
are the process's own (user and system); wall seconds depend on what else the machine does, so the
load average before each run stands beside them. Peak memory is the largest resident set of the
process, as the kernel counts it: pages of mapped files are in it. (A child that was forked starts
with the peak of its parent, so this process loads nothing large itself.) It is shown as a multiple
of the exported graph with its weights; `-` is a process that loads tfc and its libraries only.

`--large` is `tfc optimize MODEL.onnx` on a graph of Mistral 7B in fp32 whose weights are holes in a
file (`large_graph.py`); the result stays in its folder, so only weights that change are written.
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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from export import MINILM, SHAPES, checkpoint_of, versions

T = TypeVar("T")
TARGETS = ("onnxruntime", "tensorrt")
MODELS = (MINILM, "bert-base", "bert-large")
_IMPORTS = "import tfc.optimizers, tfc.steps.optimize, onnxruntime"


@dataclass
class Measured:
    """Runs of one command: seconds, CPU seconds, peak MB, and the load average before each."""

    model: str
    target: str
    model_mb: float
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    message: str = ""

    def run(self, command: list[str]) -> None:
        """Run it once more."""
        self.load.append(os.getloadavg()[0])
        with tempfile.TemporaryFile() as said:
            begun = time.perf_counter()
            process = subprocess.Popen(command, stdout=said, stderr=said, env=_environment())
            _, status, usage = os.wait4(process.pid, 0)
            self.seconds.append(time.perf_counter() - begun)
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            text = said.read().decode(errors="replace").strip()
        self.cpu_seconds.append(usage.ru_utime + usage.ru_stime)
        self.peak_mb.append(usage.ru_maxrss * 1024 / 1e6)
        print(
            f"{self.model}, {self.target}: {self.seconds[-1]:.1f} s, "
            f"{self.cpu_seconds[-1]:.1f} s of CPU, {self.peak_mb[-1]:.0f} MB, "
            f"load {self.load[-1]:.1f}",
            file=sys.stderr,
        )
        if process.returncode:
            self.message = f"exit code {process.returncode}: {text[-300:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {MINILM}, {[*SHAPES]}")
    parser.add_argument("--large", action="store_true", help="7 billion parameters as well")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    results = [_imports(asked.repeat)]
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(None, asked.models.split(",")):
            results += measure(name, Path(folder), asked.repeat)
        results += measure_large(Path(folder)) if asked.large else []
    print_table(results)
    if asked.output:
        report = {
            "command": " ".join(sys.argv),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": versions(None),
            "results": [asdict(result) for result in results],
        }
        asked.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _imports(repeat: int) -> Measured:
    found = Measured("-", "-", 0.0)
    for _ in range(repeat):
        found.run([sys.executable, "-c", _IMPORTS])
    return found


def measure(name: str, folder: Path, repeat: int) -> list[Measured]:
    """Export once; optimize a copy of the artifact for each target, in turn."""
    artifact, copy = folder / "artifact", folder / "copy"
    tfc = [sys.executable, "-m", "tfc"]
    checkpoint = _elsewhere(checkpoint_of, name, folder / name)
    task = "feature-extraction" if name == MINILM else "text-classification"
    export = [*tfc, "export", str(checkpoint), "-o", str(artifact), "--task", task]
    subprocess.run(export, check=True, env=_environment(), capture_output=True)
    size = sum(path.stat().st_size for path in artifact.glob("model.onnx*")) / 1e6
    found = [Measured(name, target, size) for target in TARGETS]
    for _ in range(repeat):
        for each in found:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(artifact, copy)
            each.run([*tfc, "optimize", str(copy), "--target", each.target])
    for used in (artifact, copy, folder / name):
        shutil.rmtree(used, ignore_errors=True)
    return found


def measure_large(folder: Path) -> list[Measured]:
    """Once for each target."""
    model, output = folder / "mistral.onnx", folder / "out.onnx"
    parameters = _elsewhere(_save_mistral, model)
    size = sum(path.stat().st_size for path in folder.glob("mistral.onnx*")) / 1e6
    name = f"Mistral 7B ({parameters / 1e9:.2f} billion parameters)"
    found = [Measured(name, target, size) for target in TARGETS]
    for each in found:
        command = [sys.executable, "-m", "tfc", "optimize", str(model), "-o", str(output)]
        each.run([*command, "--target", each.target])
        output.with_name("out.onnx.data").unlink(missing_ok=True)
    return found


def _save_mistral(model: Path) -> int:
    from large_graph import save_mistral

    return save_mistral(model)


def _elsewhere(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result, computed in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return {**kept, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def print_table(results: list[Measured]) -> None:
    print("| model | MB | target | seconds | CPU seconds | load | peak MB | peak / model |")
    print("|---|--:|---|--:|--:|--:|--:|--:|")
    for result in results:
        peak = statistics.median(result.peak_mb)
        row = [
            result.model,
            f"{result.model_mb:.0f}",
            result.target,
            result.message or f"{statistics.median(result.seconds):.1f}",
            f"{statistics.median(result.cpu_seconds):.1f}",
            f"{statistics.median(result.load):.1f}",
            f"{peak:.0f}",
            f"{peak / result.model_mb:.2f}" if result.model_mb else "-",
        ]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
