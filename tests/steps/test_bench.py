"""`tfc bench` measures what it says it measures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import tfc
import tfc.steps.bench as steps
from tfc.errors import UsageError
from tfc.runtime.cores import busy_share
from tfc.runtime.throughput import BLOCKS, measure


def sleeper(seconds: float):
    return lambda: time.sleep(seconds)


def test_ratios_latencies_and_rates_of_known_durations() -> None:
    cell = measure(
        {"slow": sleeper(0.02), "fast": sleeper(0.005)},
        batch=4,
        sequence=10,
        seconds=0.2,
        baseline="slow",
    )
    slow, fast = cell.timings["slow"], cell.timings["fast"]
    assert cell.ratios["slow"] == 1.0
    assert 2.0 < cell.ratios["fast"] < 4.5
    assert 0.005 <= fast.p50 <= fast.p90 <= fast.p99
    assert slow.p50 >= 0.02
    assert fast.sequences_per_second <= 4 / 0.005
    assert fast.tokens_per_second == pytest.approx(10 * fast.sequences_per_second)
    assert slow.calls >= BLOCKS


@pytest.mark.ort
def test_the_grid_and_the_report(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    result = tfc.bench(artifact, batches=(1, 3), lengths=(4, 128, 512), seconds=0.05)
    assert [(c.batch, c.sequence) for c in result.cells] == [(1, 4), (1, 128), (3, 4), (3, 128)]
    report = json.loads((tiny_artifact / "reports/bench.json").read_text())
    assert report["contestants"] == ["pytorch", "onnxruntime-fp32"]
    assert report["cells"][0]["timings"]["onnxruntime-fp32"]["p99"] > 0
    assert report["left_out"] == {}


@pytest.mark.ort
def test_rows_are_full_and_of_real_tokens(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    for length in (1, 2, 5, 128):
        feed = steps.full_batch(artifact, 3, length)
        assert feed["input_ids"].shape == (3, length)
        assert feed["attention_mask"].all()
    assert feed["input_ids"][0, 0] == 101
    assert feed["input_ids"][0, -1] == 102
    assert len(set(feed["input_ids"][0])) > 50


@pytest.mark.ort
def test_no_shape_left(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    with pytest.raises(UsageError, match="no shape of the grid is within the engines' profiles"):
        tfc.bench(artifact, lengths=(4096,))


def test_other_processes_are_noticed() -> None:
    share = busy_share(0.05)
    assert share is None or 0.0 <= share <= 1.0
