"""The demo runs from fine-tuning to the summary, with one epoch and one shape instead of all."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.ort
def test_one_epoch(tmp_path: Path) -> None:
    done = demo(tmp_path).communicate()
    first = done[0]
    assert "\nSummary (" in first, first[-3000:] + done[1][-3000:]
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

    # The second time it is verified and measured anew; that is not waited for.
    second = demo(tmp_path)
    assert second.stdout is not None
    lines = itertools.takewhile(lambda line: not line.startswith("$ tfc verify"), second.stdout)
    begun = "".join(lines)
    os.killpg(second.pid, signal.SIGKILL)  # with the command that it has begun
    second.communicate()
    assert "the checkpoint is kept" in begun
    assert "is up to date: same checkpoint, options and versions" in begun
    assert begun.count("is up to date") == begun.count("$ tfc ") >= 2


def demo(folder: Path) -> subprocess.Popen[str]:
    """The quick demo, in a folder."""
    return subprocess.Popen(
        [sys.executable, ROOT / "examples" / "demo.py", "--quick"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )
