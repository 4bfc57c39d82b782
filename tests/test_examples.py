"""The scripts under examples/ run, on a tiny classifier; the demo has a test of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ort
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LABELS = {"cancel", "refund", "other"}


def example(name: str, *arguments: object, input: str = "") -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        input=input,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loop(tiny_artifact: Path) -> None:
    printed = example("loop.py", tiny_artifact, input="Where is my parcel?\n\n¡Hola!\n")
    rows = [line.split() for line in printed.splitlines()]
    assert len(rows) == 3
    assert {label for _, label in rows} <= LABELS
    assert all(0 < float(score) <= 1 for score, _ in rows)


def test_frame(tiny_artifact: Path, tmp_path: Path) -> None:
    pd: Any = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": ["a", "b c", "d"], "when": pd.Timestamp("2026-01-01")})
    frame.iloc[::-1].to_parquet(tmp_path / "in.parquet")
    printed = example("frame.py", tiny_artifact, tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert list(found.columns) == ["text", "when", "label", "score"]
    assert found["text"].tolist() == ["d", "b c", "a"]
    assert set(found["label"]) <= LABELS
    assert str(found["label"].iloc[0]) in printed


def test_daily_task(tiny_artifact: Path, tmp_path: Path) -> None:
    day = tmp_path / "raw" / "day=2026-01-31"
    day.mkdir(parents=True)
    for name in "ab":
        text = "".join(json.dumps({"id": f"{name}{i}", "text": "hello"}) + "\n" for i in range(3))
        (day / f"{name}.jsonl").write_text(text, encoding="utf-8")
    command = [tiny_artifact, "--date", "2026-01-31"]
    command += ["--source", tmp_path / "raw", "--target", tmp_path / "labelled"]
    first, second = (json.loads(example("daily_task.py", *command)) for _ in range(2))
    assert (first["rows"], first["resumed_rows"]) == (6, 0)
    assert (second["rows"], second["resumed_rows"]) == (6, 6)
    names = {path.name for path in (tmp_path / "labelled" / "day=2026-01-31").iterdir()}
    assert names == {"part-00000.parquet", "_SUCCESS"}


def test_stream_answers_before_its_input_ends(tiny_artifact: Path) -> None:
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "stream.py", tiny_artifact],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as consumer:
        assert consumer.stdin is not None
        assert consumer.stdout is not None
        for number in range(3):
            consumer.stdin.write(json.dumps({"id": number, "text": "hello"}) + "\n")
            answer = json.loads(consumer.stdout.readline())
            assert answer["id"] == number
            assert answer["label"] in LABELS
        started = time.monotonic()
        consumer.stdin.write("".join(json.dumps({"id": i, "text": ""}) + "\n" for i in range(200)))
        consumer.stdin.close()
        found = [json.loads(line)["id"] for line in consumer.stdout]
        assert found == list(range(200))
        assert time.monotonic() - started < 60
    assert consumer.returncode == 0
