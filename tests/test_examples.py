"""The scripts under examples/ run, cut down where they train; the demo has a test of its own."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """`module("training")` imports an example; what it tells transformers to print is undone."""
    from transformers.utils import logging

    monkeypatch.syspath_prepend(str(EXAMPLES))
    verbosity = logging.get_verbosity()
    yield importlib.import_module
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# The text classifier and the search take the demo's path and more of the same: they run on demand.
@pytest.mark.parametrize(
    ("name", "rows", "metric"),
    [
        ("delivery_entities", 3, "F1"),
        ("order_german", 3, "BLEU"),
        pytest.param("financial_news", 3, "accuracy", marks=pytest.mark.demo),
        pytest.param("help_centre", 160, "nDCG@10", marks=pytest.mark.demo),
    ],
)
def test_from_training_to_predictions(
    module: Callable[[str], Any],
    name: str,
    rows: int,
    metric: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module(name).main(["--quick", "-o", str(tmp_path)])
    printed = capsys.readouterr().out
    commands = [line.split()[2] for line in printed.splitlines() if line.startswith("$ tfc ")]
    retriever = ["export", "build-engine"] if name == "help_centre" else []
    assert commands == [*retriever, "export", "build-engine", "verify", "report", "run"]
    assert metric in (tmp_path / "report.md").read_text("utf-8")
    found = json.loads((tmp_path / "artifact/reports/verify.json").read_text("utf-8"))
    assert [engine["verdict"] for engine in found["engines"].values()] == ["verified"]
    assert found["metrics"]["main"] == metric
    assert [
        set(row) >= {"text", "prediction"} for row in rows_of(tmp_path / "predictions.jsonl")
    ] == ([True] * rows)


def test_nothing_is_trained_on_and_held_out() -> None:
    for folder in (EXAMPLES / "data").iterdir():
        parts = [folder / f"{name}.jsonl" for name in ("train", "eval", "new")]
        texts = [row["text"].lower() for part in parts if part.exists() for row in rows_of(part)]
        assert len(texts) == len(set(texts)) > 100, folder


def test_the_entities_are_in_their_texts() -> None:
    for name in ("train", "eval"):
        for row in rows_of(EXAMPLES / "data" / "delivery_entities" / f"{name}.jsonl"):
            spans = [row["text"][each["start"] : each["end"]] for each in row["entities"]]
            assert all(span and span == span.strip() for span in spans), row
            ends = [0, *(each["end"] for each in row["entities"])]
            starts = [each["start"] for each in row["entities"]]
            assert all(end <= start for end, start in zip(ends, starts, strict=False)), row


def test_the_queries_name_articles() -> None:
    data = EXAMPLES / "data" / "help_centre"
    known = {row["id"] for row in rows_of(data / "articles.jsonl")}
    for row in rows_of(data / "train.jsonl") + rows_of(data / "eval.jsonl"):
        assert set(row["relevant"]) <= known, row
        assert sorted(row["relevant"].values())[-1] == 2, row


def test_the_held_out_sentences_are_the_grammars(module: Callable[[str], Any]) -> None:
    grammar = module("order_sentences")
    held_out = rows_of(grammar.EVAL)
    assert held_out == grammar.sentences(len(held_out), seed=1)
    texts = {row["text"] for row in held_out}
    assert not texts & {row["text"] for row in grammar.sentences(300, seed=0, without=texts)}


def test_what_a_ranking_is_worth(module: Callable[[str], Any]) -> None:
    retrieval = module("retrieval")
    query = {"text": "q", "relevant": {"a": 2, "b": 1}}
    rows = [
        {"text": "q", "id": name, "score": score}
        for name, score in zip("xba", (3, 2, 1), strict=True)
    ]
    ranked = retrieval.ordered(rows, lambda row: row["score"])
    assert ranked == {"q": ["x", "b", "a"]}
    # Gains 0, 1, 2 at places 1, 2, 3; at best 2, 1, 0.
    best = 2 + 1 / math.log2(3)
    assert retrieval.ndcg(ranked["q"], query["relevant"]) == pytest.approx(
        (1 / math.log2(3) + 2 / math.log2(4)) / best
    )
    assert retrieval.reciprocal_rank(ranked["q"], query["relevant"]) == pytest.approx(1 / 3)
    assert retrieval.reciprocal_rank(["x"], query["relevant"]) == 0
    near = {"q": {"x": 0.9, "a": 0.5, "b": 0.4, "y": 0.3}}
    right, *wrong = retrieval.contrast(query, near, 2)
    assert right == ("a", 0.5)
    assert sorted(wrong) == [("x", 0.9), ("y", 0.3)]
