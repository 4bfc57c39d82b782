"""Peak memory of `tfc run` on 1, 10 and 100 times the input: it is to stay flat.

A tiny random encoder (hidden size 32, one layer) classifies short texts of mixed length, so that
what is measured is the job and not the model. Each row has an id and a number beside its text.
Each job is a process of its own that reads its peak resident set (VmHWM) at its end; what `wait4`
tells of a child counts the memory of the parent that it was forked from.

    python perf/job_memory.py -o perf/results/job_memory.json
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import tfc
from tfc.steps.record import versions_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from checkpoints import save_tiny_checkpoint

FORMATS = (("jsonl", "jsonl"), ("parquet", "parquet"))
TIMES = (1, 10, 100)
WORDS = ("parcel", "refund", "late", "order", "twice", "charged", "address", "help", "please")
_CHUNK = 10_000  # rows that this script makes at once
_JOB = """
import re, sys
from pathlib import Path
from tfc.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@dataclass(frozen=True)
class Found:
    """One job."""

    input: str
    output: str
    rows: int
    input_mb: float
    output_mb: float
    peak_rss_mb: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192, help="rows of the smallest input")
    parser.add_argument("--times", default=",".join(map(str, TIMES)))
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    found = []
    print("| input | output | rows | peak MB |\n|---|---|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = artifact_in(folder)
        for source, target in FORMATS:
            for times in map(int, asked.times.split(",")):
                found.append(measure(artifact, folder, source, target, asked.rows * times))
                row = found[-1]
                print(f"| {source} | {target} | {row.rows} | {row.peak_rss_mb:.0f} |", flush=True)
    if asked.output:
        report = {
            "command": " ".join(sys.argv),
            "versions": versions_of("pyarrow", "onnxruntime-gpu", "tokenizers", "numpy"),
            "results": [asdict(row) for row in found],
        }
        asked.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def artifact_in(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    save_tiny_checkpoint(folder / "checkpoint", **sizes)
    artifact = tfc.export(folder / "checkpoint", folder / "artifact").artifact
    tfc.build_engine(artifact, backend="onnxruntime")
    return folder / "artifact"


def measure(artifact: Path, folder: Path, source: str, target: str, rows: int) -> Found:
    input, output = folder / f"in.{source}", folder / f"out.{target}"
    write_input(input, source, rows)
    command = [sys.executable, "-c", _JOB, "run", artifact, input, "-o", output, "--json"]
    job = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    summary, peak = map(json.loads, job.stdout.splitlines())
    if summary["rows"] != rows:
        raise SystemExit(f"rows are missing: {summary}")
    sizes = [path.stat().st_size / 1e6 for path in (input, output)]
    input.unlink()
    output.unlink()
    return Found(source, target, rows, sizes[0], sizes[1], peak / 1e3, summary["seconds"])


def write_input(path: Path, kind: str, rows: int) -> None:
    rng = random.Random(0)
    starts = range(0, rows, _CHUNK)
    chunks = (columns(rng, start, min(start + _CHUNK, rows)) for start in starts)
    if kind == "parquet":
        with pq.ParquetWriter(path, schema()) as writer:
            for chunk in chunks:
                writer.write_table(pa.table(chunk, schema()))
        return
    with pa.output_stream(path) as stream:
        if kind.startswith("csv"):
            stream.write(b"id,text,number\n")
        for chunk in chunks:
            lines = zip(*chunk.values(), strict=True)
            stream.write("".join(line_of(row, kind) for row in lines).encode())


def columns(rng: random.Random, start: int, end: int) -> dict[str, list[object]]:
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(start, end)]
    return {"id": list(range(start, end)), "text": texts, "number": [0.5] * (end - start)}


def line_of(row: tuple[object, ...], kind: str) -> str:
    if kind.startswith("csv"):
        return ",".join(map(str, row)) + "\n"
    return json.dumps(dict(zip(("id", "text", "number"), row, strict=True))) + "\n"


def schema() -> pa.Schema:
    return pa.schema([("id", pa.int64()), ("text", pa.string()), ("number", pa.float64())])


if __name__ == "__main__":
    main()
