"""The demo runs from fine-tuning to the summary, with one epoch and one shape instead of all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.ort
def test_one_epoch(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}

    def demo() -> str:
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / "demo.py", "--quick"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    first = demo()
    assert [line.split()[2] for line in first.splitlines() if line.startswith("$ tfc ")] == [
        "export",
        "build-engine",
        *(["build-engine"] if "tensorrt-rtx" in first else []),
        "verify",
        "bench",
        "run",
    ]
    accuracy = re.search(
        r"accuracy +PyTorch ([\d.]+)%, engine ([\d.]+)% on (\d+) utterances; (\d+) of", first
    )
    assert accuracy is not None
    predictions = tmp_path / "build/demo/predictions.jsonl"
    rows = [json.loads(line) for line in predictions.read_text("utf-8").splitlines()]
    right = sum(row["label"] == row["prediction"]["label"] for row in rows)
    assert accuracy[2] == f"{100 * right / len(rows):.1f}"
    assert int(accuracy[3]) == len(rows) == 200
    assert int(accuracy[4]) >= 199
    assert right / len(rows) > 0.5, "after one epoch; the whole training gives more than 0.9"

    second = demo()
    assert "the checkpoint is kept" in second
    assert "is up to date: same checkpoint, options and versions" in second
    assert second.count("is up to date") >= 2
