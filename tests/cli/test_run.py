"""`tfc run`: the fields of each task, and its options as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import run_tfc, save_tiny_checkpoint

import tfc
from tfc.runtime.tasks import EVERY_TASK
from tfc.runtime.tasks.options import described_options

ROWS = [
    {"question": "who?", "context": "Ada met Charles in London."},
    {"question": "who?"},
    {"question": "where?", "context": ""},
    {"question": "where?", "context": "In the abbey."},
]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`artifacts(task, head, **config)`: the artifact of a tiny model, with one engine."""

    def make(task: str, head: str, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("run")
        save_tiny_checkpoint(folder / "c", head=head, **config)
        artifact = tfc.export(folder / "c", folder / "a", task=task).artifact
        tfc.build_engine(artifact, backend="onnxruntime")
        return folder / "a"

    return make


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.ort
def test_questions_and_contexts(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    artifact = artifacts("question-answering", "QuestionAnswering", id2label={0: "start", 1: "end"})
    source, output = written(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    done = run_tfc("run", artifact, source, "-o", output, "--set", "top_k=2")
    assert done.returncode == 0, done.stderr
    found = lines(output)
    assert [{k: row[k] for k in ("question", "context")} for row in found] == [ROWS[0], ROWS[3]]
    assert [len(row["prediction"]["answers"]) for row in found] == [2, 2]
    bad = lines(tmp_path / "out.jsonl.errors.jsonl")
    assert [(row["line"], row["error"]) for row in bad] == [
        (2, "no field 'context'; the row has: question"),
        (3, "the context is empty"),
    ]

    renamed = [{"q": row["question"], "text": row.get("context", "x")} for row in ROWS]
    columns = ("--text-column", "q", "--pair-column", "text")
    again = run_tfc("run", artifact, written(source, renamed), "-o", output, *columns)
    assert again.returncode == 0, again.stderr
    assert len(lines(output)) == 3


@pytest.mark.ort
def test_lists_and_errors(artifacts: Callable[..., Path], tmp_path: Path) -> None:
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    artifact = artifacts("zero-shot-classification", "SequenceClassification", id2label=labels)
    source, output = written(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out.jsonl"

    def run(*settings: str) -> Any:
        options = [part for setting in settings for part in ("--set", setting)]
        return run_tfc("run", artifact, source, "-o", output, *options)

    assert run("labels=refund, delivery", "hypothesis=It is {}.").returncode == 0
    assert set(lines(output)[0]["prediction"]["scores"]) == {"refund", "delivery"}
    for settings, said in [
        ((), "needs the option 'labels'"),
        (("labels=a", "limit=1"), "has no option 'limit'"),
        (("labels=a", "multi_label=maybe"), "'multi_label' is 'maybe', not true or false"),
        (("labels",), "'labels' is not NAME=VALUE"),
    ]:
        ended = run(*settings)
        assert ended.returncode == 2
        assert said in " ".join(ended.stderr.split())


def test_help_lists_the_options_of_every_task() -> None:
    ended = run_tfc("run", "--help")
    assert ended.returncode == 0
    assert max(map(len, ended.stdout.splitlines())) <= 80
    # Tasks with the same options share a section, whose title may take several lines.
    _, *sections = ended.stdout.split("--set for ")
    titles = {" ".join(s.partition(":\n")[0].split()): s.partition(":\n")[2] for s in sections}
    for name, task in EVERY_TASK.items():
        options = described_options(task.options)
        section = next((s for title, s in titles.items() if name in title.split(", ")), "")
        assert bool(section) is bool(options), name
        for option, _ in options:
            assert f"  {option} " in section
