"""`tfc bench` measures what it says it measures."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfc
from tfc.errors import BadData, BadInput, UsageError
from tfc.runtime.backends.base import Range
from tfc.runtime.cores import busy_share
from tfc.runtime.throughput import BLOCKS, TokenTimes, Workload, measure
from tfc.steps.benchmark.contestants import opened, other_entries
from tfc.steps.benchmark.matmul_peak import SIZE, matmul_peak
from tfc.steps.benchmark.start import start_ups
from tfc.steps.benchmark.workloads import Sizes, flops_of_rows, full_batch, grid_workloads
from tfc.steps.record import no_progress

EMPTY: dict[str, Any] = {}
WORK = Workload("4×10", (EMPTY, EMPTY), rows=8, tokens=70, padded=80, flops=1000)
TWO_ROWS = Sizes(Range(1, 1, 2), Range(1, 8, 512))


def sleeper(seconds: float) -> Callable[[object], None]:
    return lambda feed: time.sleep(seconds)


def test_ratios_latencies_and_rates_of_known_durations() -> None:
    cell = measure(
        {"slow": sleeper(0.02), "fast": sleeper(0.005)}, WORK, seconds=0.4, baseline="slow"
    )
    slow, fast = cell.timings["slow"], cell.timings["fast"]
    assert cell.ratios["slow"] == 1.0
    assert 2.0 < cell.ratios["fast"] < 4.5
    assert 0.005 <= fast.p50 <= fast.p90 <= fast.p95 <= fast.p99
    assert slow.p50 >= 0.02
    assert fast.sequences_per_second <= 8 / 0.01  # a lap is two batches
    assert fast.tokens_per_second == pytest.approx(70 / 8 * fast.sequences_per_second)
    assert fast.flops_per_second == pytest.approx(1000 / 8 * fast.sequences_per_second)
    assert slow.calls >= 2 * BLOCKS
    assert cell.as_json()["padding"] == pytest.approx(0.125)


def test_callers_call_at_once() -> None:
    """What waits without a core is done twice as often by two callers, and no call is shorter."""
    cell = measure({"x": sleeper(0.01)}, WORK, seconds=0.3, baseline="x", callers=3)
    timing = cell.timings["x"]
    assert timing.p50 >= 0.01
    assert 8 / 0.02 * 2 < timing.sequences_per_second <= 8 / 0.02 * 3


def test_callers_each_run_whole_laps() -> None:
    seen: dict[int, list[str]] = {}

    def note(feed: dict[str, str]) -> None:
        seen.setdefault(threading.get_ident(), []).append(feed["name"])

    feeds: Any = ({"name": "a"}, {"name": "b"})
    measure({"x": note}, Workload("w", feeds, 2, 2, 2), seconds=0.0, baseline=None, callers=2)
    main = seen.pop(threading.get_ident())
    assert main[-BLOCKS:] == ["a"] * BLOCKS  # what is not counted
    assert all(
        calls in (["a", "b"], ["a", "b"] * 2) or len(calls) % 2 == 0 for calls in seen.values()
    )


def test_the_warm_up_ends_when_laps_take_equally_long() -> None:
    lasting = iter([0.08, 0.04, 0.01, 0.01])
    cell = measure(
        {"x": lambda feed: time.sleep(next(lasting, 0.01))},
        Workload("w", (EMPTY,), 1, 1, 1),
        seconds=0.0,
        baseline=None,
    )
    timing = cell.timings["x"]
    assert (timing.warm_up, timing.steady) == (4, True)
    restless = itertools.cycle([0.001, 0.004])
    cell = measure(
        {"x": lambda feed: time.sleep(next(restless))},
        Workload("w", (EMPTY,), 1, 1, 1),
        seconds=0.0,
        baseline=None,
    )
    assert not cell.timings["x"].steady


@pytest.mark.ort
def test_the_grid_and_the_report(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    result = tfc.bench(artifact, batches=(1, 3), lengths=(4, 128, 512), seconds=0.05)
    names = [cell.workload.name for cell in result.cells]
    assert names == ["1×4", "1×128", "3×4", "3×128"]
    report = json.loads((tiny_artifact / "reports/bench.json").read_text())
    assert report == json.loads(json.dumps(result.as_json()))
    assert report["contestants"] == ["pytorch", "onnxruntime-fp32"]
    assert report["hardware"] == {"pytorch": "CPU", "onnxruntime-fp32": "CPU"}
    assert report["cells"][0]["timings"]["onnxruntime-fp32"]["p99"] > 0
    assert report["left_out"] == {}
    started = report["start_up"]
    assert started["pytorch"]["load_seconds"] > started["onnxruntime-fp32"]["load_seconds"]
    assert started["pytorch"]["peak_bytes"] > 1.5 * started["onnxruntime-fp32"]["peak_bytes"]
    used = result.utilisation(result.cells[1], "onnxruntime-fp32")
    rate = result.cells[1].timings["onnxruntime-fp32"].flops_per_second
    assert used == rate / report["matmul_peak"]["flops_per_second"]


@pytest.mark.ort
def test_flops_are_those_of_the_layers(tiny_artifact: Path) -> None:
    """Counted by hand from the config: projections, attention, FFN, pooler and classifier."""
    config = json.loads(
        (
            Path(tfc.Artifact.open(tiny_artifact).manifest.checkpoint.source) / "config.json"
        ).read_text()
    )
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    flops = flops_of_rows(tfc.Artifact.open(tiny_artifact))
    for length in (1, 16, 77):
        layer = 4 * 2 * length * hidden * hidden + 2 * 2 * length * hidden * wide
        attention = 2 * 2 * length * length * hidden
        head = 2 * hidden * hidden + 2 * hidden * 3
        assert flops(length) == config["num_hidden_layers"] * (layer + attention) + head


@pytest.mark.ort
def test_texts_of_a_file_others_and_the_command(
    tiny_artifact: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Padding is no token, another artifact and an ONNX file take part, and JSON is printed."""
    other = shutil.copytree(tiny_artifact, tmp_path / "other")
    raw = Path(shutil.copy(tiny_artifact / "model.onnx", tmp_path / "raw.onnx"))
    data = tmp_path / "eval.jsonl"
    texts = ["one", "where is my order"] * 20
    data.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    done = cli(
        "bench", tiny_artifact, "--data", data, "--text-column", "body", "--limit", 34,
        "--no-pytorch", "--no-start", "--seconds", 0.05, "--callers", "1,2", "--vs", other,
        "--vs", raw, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["contestants"] == ["onnxruntime-fp32", "other/onnxruntime-fp32", "raw.onnx"]
    assert report["baseline"] == "onnxruntime-fp32"
    assert [cell["callers"] for cell in report["cells"]] == [1, 2]
    cell = report["cells"][0]
    assert (cell["workload"], cell["rows"], cell["batches"]) == ("eval.jsonl", 34, 2)
    assert cell["tokens"] == 17 * 3 + 17 * 6
    assert cell["padding"] == pytest.approx(1 - cell["tokens"] / (32 * 6 + 2 * 3))
    assert set(cell["ratios"]) == set(report["contestants"])
    assert report["start_up"] == {}


@pytest.mark.ort
def test_the_table_fits_80_columns(tiny_artifact: Path, cli: Callable[..., Any]) -> None:
    done = cli("bench", tiny_artifact, "--no-pytorch", "--batch", 1, "--seq", 8, "--seconds", 0.05)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert "  onnxruntime-fp32 " in done.stdout
    assert "Start, each in a fresh process" in done.stdout


@pytest.mark.ort
def test_what_cannot_be_measured(tiny_artifact: Path, tmp_path: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    with pytest.raises(UsageError, match="no shape of the grid is within the engines' profiles"):
        tfc.bench(artifact, lengths=(4096,))
    with pytest.raises(UsageError, match="PyTorch has no form 'flash'"):
        tfc.bench(artifact, pytorch=("flash",))
    with pytest.raises(UsageError, match="neither an artifact nor an ONNX file"):
        tfc.bench(artifact, against=[tmp_path])
    with pytest.raises(UsageError, match=r"two of the things to compare with are called raw\.onnx"):
        other_entries([shutil.copy(tiny_artifact / "model.onnx", tmp_path / "raw.onnx")] * 2)
    data = tmp_path / "long.jsonl"
    data.write_text('{"text": "one"}\n{"text": "two two"}\n')
    tfc.build_engine(artifact, backend="onnxruntime", sequence=(1, 2, 3))
    with pytest.raises(
        BadData, match=r"1 of 2 texts do not fit .* this one has 4 tokens, and 1 to 3"
    ):
        tfc.bench(artifact, data=data, pytorch=False, start=False)


@pytest.mark.ort
def test_the_forms_of_pytorch(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention is really used; where nothing can be compiled, that form is left out."""
    import torch
    import transformers

    kept = transformers.PreTrainedModel.set_attn_implementation
    asked: list[str] = []
    monkeypatch.setattr(
        transformers.PreTrainedModel,
        "set_attn_implementation",
        lambda self, name, *rest: (asked.append(name), kept(self, name, *rest))[1],
    )

    def no_compiler(module: Any) -> Any:
        def run(*inputs: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand more lines")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    forms = ("sdpa", "eager", "compile")
    grid = {"batches": (1,), "lengths": (8,), "seconds": 0.05, "start": False}
    result = tfc.bench(tiny_artifact, pytorch=forms, **grid)
    assert list(result.hardware) == ["pytorch", "pytorch-eager", "onnxruntime-fp32"]
    assert set(asked) == {"eager"}
    assert result.left_out == {"pytorch-compile": "PyTorch cannot compile it here: no C++ compiler"}


@pytest.mark.ort
def test_a_model_that_reads_more_than_the_tokenizer_gives(tiny_artifact: Path) -> None:
    (entry,), _ = other_entries([tiny_artifact])
    contestant = opened(entry, 1)
    feed = full_batch(tfc.Artifact.open(tiny_artifact), 1, 4)
    assert contestant.run({**feed, "more": np.zeros(1)})
    del feed["attention_mask"]
    with pytest.raises(BadInput, match="reads attention_mask, which the measured artifact's"):
        contestant.run(feed)
    contestant.close()


@pytest.mark.ort
def test_what_does_not_start_says_why(tiny_artifact: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    entries, _ = other_entries([broken])
    feed = full_batch(tfc.Artifact.open(tiny_artifact), 1, 4)
    started = start_ups(entries, feed, 1, no_progress)
    assert started.found == {}
    assert "ONNX Runtime cannot read this engine" in started.failed["broken.onnx"]


@pytest.mark.ort
def test_rows_are_full_and_of_real_tokens(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    for length in (1, 2, 5, 128):
        feed = full_batch(artifact, 3, length)
        assert feed["input_ids"].shape == (3, length)
        assert feed["attention_mask"].all()
    assert feed["input_ids"][0, 0] == 101
    assert feed["input_ids"][0, -1] == 102
    assert len(set(feed["input_ids"][0])) > 50


@pytest.mark.ort
def test_without_onnx_ir_nothing_is_counted(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "onnx_ir" else find(n))
    (cell,) = grid_workloads(artifact, TWO_ROWS, (2,), (8,), flops_of_rows(artifact))
    assert (cell.flops, cell.tokens) == (None, 16)


@pytest.mark.ort
def test_the_peak_is_that_of_a_product() -> None:
    peak = matmul_peak(1)
    assert peak.library in ("numpy", "oneDNN", "ONNX Runtime")
    left = np.ones((SIZE, SIZE), np.float32)
    begun = time.perf_counter()
    left @ left
    alone = 2 * SIZE**3 / (time.perf_counter() - begun)
    assert 1e8 < alone < 30 * peak.flops_per_second


def test_other_processes_are_noticed() -> None:
    share = busy_share(0.05)
    assert share is None or 0.0 <= share <= 1.0


def test_latencies_of_tokens_are_told_apart() -> None:
    def write(feed: object) -> TokenTimes:
        time.sleep(0.001)
        return TokenTimes((0.5, 0.6, 0.7, 1.7))

    cell = measure({"x": write}, WORK, seconds=0.01, baseline=None)
    report = cell.as_json()["timings"]["x"]
    assert set(report["first_token"].values()) == {0.5}
    assert report["per_token"]["p50"] == pytest.approx(0.1)
    assert report["per_token"]["p99"] > 0.9
    plain = measure({"x": sleeper(0.001)}, WORK, seconds=0.01, baseline=None)
    assert "first_token" not in plain.as_json()["timings"]["x"]


@pytest.mark.ort
@pytest.mark.parametrize(("family", "lengths"), [("gpt2", (4, 45)), ("t5", (4,))])
def test_models_that_generate_write_as_many_tokens_as_transformers(
    generator: Callable[[str], Path],
    tmp_path: Path,
    family: str,
    lengths: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every new token has its moment on both sides; 45 + 5 tokens are more than GPT-2 reads."""
    folder = Path(shutil.copytree(generator(family) / "artifact", tmp_path / "a"))
    seen: list[int] = []
    kept = TokenTimes.__init__
    monkeypatch.setattr(
        TokenTimes,
        "__init__",
        lambda self, seconds: (seen.append(len(seconds)), kept(self, seconds))[0],
    )
    # Two threads of PyTorch wait for each other where other tests take a core.
    monkeypatch.setattr("tfc.steps.benchmark.bench.usable_cores", lambda: 1)
    result = tfc.bench(
        folder, batches=(2,), lengths=lengths, seconds=0.02, new_tokens=5, start=False
    )
    assert [cell.workload.name for cell in result.cells] == ["2×4+5"]
    assert set(seen) == {5}
    report = json.loads((folder / "reports/bench.json").read_text())
    assert (report["kind"], report["baseline"]) == ("generation", "pytorch")
    for cell in report["cells"]:
        for timing in cell["timings"].values():
            assert timing["tokens_per_second"] == pytest.approx(5 * timing["sequences_per_second"])
            assert 0 < timing["first_token"]["p50"] < timing["p99"]
            assert timing["per_token"]["p50"] <= timing["per_token"]["p99"]
            assert timing["flops_per_second"] is None
