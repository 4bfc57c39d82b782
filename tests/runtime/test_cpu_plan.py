"""The plan of jobs on the CPU: the rule, what is measured, where it is kept, who uses it."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.cli.run_plan import worth_measuring
from tfc.manifest import Signature, TensorSpec
from tfc.runtime import Session, cpu_plan, job_plan, plan_measure
from tfc.runtime.backends.base import Arrays, Profile
from tfc.runtime.cpu_plan import CpuPlan, PlanKey, keep_plan, kept_plan, plan_by_rule

KEY = PlanKey("engine", "openvino 1", 4, "a processor")
IDS = TensorSpec("input_ids", "int64", ["batch", "sequence"])
MASK = TensorSpec("attention_mask", "int64", ["batch", "sequence"])
TEXTS = ["hello", "Where is my parcel?", "one two three four five six"] * 20


class Runner:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.feeds: list[Arrays] = []
        self.closed = 0

    def run(self, inputs: Arrays) -> dict[str, Any]:
        self.feeds.append(inputs)
        return {}

    def close(self) -> None:
        self.closed += 1


def measured(monkeypatch: pytest.MonkeyPatch, speed: Any) -> tuple[CpuPlan, dict[int, Runner]]:
    """The plan where a lap takes `speed(streams, tokens)` seconds."""
    runners: dict[int, Runner] = {}

    def load(threads: int, streams: int) -> Runner:
        assert threads == 4
        return runners.setdefault(streams, Runner())

    def seconds(runner: Runner, feeds: Sequence[Arrays], streams: int) -> float:
        for feed in feeds:
            runner.run(feed)
        return float(speed(streams, max(feed["input_ids"].size for feed in feeds)))

    monkeypatch.setattr(plan_measure, "_seconds", seconds)
    plan = plan_measure.measured_plan(load, Signature([IDS, MASK], []), Profile(), 4)
    return plan, runners


def test_the_fastest_way_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, runners = measured(
        monkeypatch, lambda streams, largest: (1 if streams == 2 else 2) * (1 + (largest < 600))
    )
    assert (plan.streams, plan.threads, plan.tokens) == (2, 4, 1024)
    assert plan.text() == (
        "2 streams of 2 threads, 1024 tokens a batch (measured here: 2.00 × 4 streams, "
        "2.00 × 1 stream, 2.00 × 512 tokens, 2.00 × 256 tokens)"
    )
    assert {streams: runner.closed for streams, runner in runners.items()} == {4: 1, 2: 1, 1: 1}
    feed = runners[2].feeds[0]
    assert feed["attention_mask"].all()
    assert not feed["input_ids"].any()


def test_what_is_hardly_faster_does_not_change_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = measured(monkeypatch, lambda streams, largest: 1 if streams == 4 else 0.97)
    assert (plan.streams, plan.tokens) == (4, 512)
    assert "0.97 × 1 stream" in plan.text()


def test_batches_are_of_sizes_that_the_engine_takes() -> None:
    sizes = dataclasses.replace(Profile().sequence, min=20, max=40)
    feeds = plan_measure._feeds(
        plan_by_rule(2), Signature([IDS], []), dataclasses.replace(Profile(), sequence=sizes)
    )
    assert {feed["input_ids"].shape[1] for feed in feeds} <= {20, 24, 40}


def test_kept_by_engine_and_machine(tmp_path: Path) -> None:
    plan = CpuPlan(2, 4, 256, "measured here: 2.00 × 1 stream")
    assert kept_plan(KEY, tmp_path) is None
    assert keep_plan(KEY, tmp_path / "new", plan)
    assert kept_plan(KEY, tmp_path / "new") == plan
    others = ({"engine": "e"}, {"machine": "m"}, {"threads": 2}, {"runtime": "openvino 2"})
    for change in others:
        other = dataclasses.replace(KEY, **change)  # type: ignore[arg-type]
        assert kept_plan(other, tmp_path / "new") is None


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"streams": 0, "threads": 1, "tokens": 1}'])
def test_a_damaged_file_is_no_plan(tmp_path: Path, text: str) -> None:
    KEY.file(tmp_path).write_text(text, encoding="utf-8")
    assert kept_plan(KEY, tmp_path) is None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not keep_plan(KEY, tmp_path / "file", plan_by_rule(1))


def test_the_machine_is_told_by_its_processor(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name : X\nflags : vnni\nmodel name : X\n", encoding="utf-8")
    assert cpu_plan.machine_name(info).endswith("model name : X flags : vnni")


def test_a_job_measures_once_and_says_the_same(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFC_CACHE_DIR", str(tmp_path))
    with Session.load(tiny_artifact) as session:
        expected = session.predict(TEXTS)
        identity = session.identity
    with Session.for_jobs(tiny_artifact, threads=2) as session:
        assert session.plan == plan_by_rule(2)
        assert session.identity == identity
    calls = []

    def plan(*arguments: Any) -> CpuPlan:
        calls.append(plan_measure.measured_plan(*arguments))
        return CpuPlan(1, 2, 256, calls[0].chosen)

    monkeypatch.setattr(job_plan, "measured_plan", plan)
    for measure in (True, True, False):
        with Session.for_jobs(tiny_artifact, threads=2, measure=measure) as session:
            assert session.plan is not None
            assert session.plan.is_measured
            assert session.identity == {**identity, "batch_tokens": "256"}
            found = session.predict(TEXTS)
    assert len(calls) == 1
    assert pickle.loads(pickle.dumps(session)).plan == session.plan
    for one, other in zip(expected, found, strict=True):
        assert one["label"] == other["label"]
        assert np.isclose(one["score"], other["score"], atol=1e-5)


def test_only_large_inputs_are_worth_it(tmp_path: Path) -> None:
    small, large = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    small.write_bytes(b"{}")
    with large.open("wb") as file:
        file.truncate(5 << 20)
    assert not worth_measuring([str(small)], None)
    assert worth_measuring([str(small), str(large)], None)
    assert not worth_measuring(["-"], "jsonl")
