"""`tfc run` as a job: pipes, summaries, signals, bad and long rows, exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tfc.cli import cli as group
from tfc.cli.run_display import line_of, show_memory
from tfc.cli.run_signals import stop_requests
from tfc.runtime.backends.base import GpuMemory
from tfc.runtime.jobs.progress import JobProgress
from tfc.runtime.rows import json_bytes

pytestmark = pytest.mark.ort


@pytest.fixture
def run(tiny_artifact: Path) -> Callable[..., Result]:
    """`run(input, …)`: the command in this process, on a tiny classifier."""

    def call(*arguments: object, input: bytes | None = None) -> Result:
        words = ["run", str(tiny_artifact), *map(str, arguments)]
        return CliRunner().invoke(group, words, input=input)

    return call


def rows(path: Path, *texts: Any) -> Path:
    path.write_bytes(b"".join(json_bytes({"text": text}) for text in texts))
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_one_row_is_one_row(
    run: Callable[..., Result], tiny_artifact: Path, tmp_path: Path
) -> None:
    done = run(rows(tmp_path / "in.jsonl", "a", 5), "-o", tmp_path / "out.jsonl")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("1 row in ")
    assert "\n1 bad row left out, each with its reason: " in done.stdout
    assert done.stderr.splitlines() == [
        "tfc: warning: engine onnxruntime-fp32 is not verified (parity: not run)."
        f" Check it with: tfc verify {tiny_artifact}"
    ]


def test_a_verified_engine_may_be_required(
    run: Callable[..., Result], tiny_artifact: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    done = run(rows(tmp_path / "in.jsonl", "a"), "-o", output, "--require-verified")
    assert done.exit_code == 1
    assert " ".join(done.stderr.split()) == (
        f"tfc: error: {tiny_artifact}: engine onnxruntime-fp32 is not verified (parity: not run),"
        " and only a verified one may run Check it with: tfc verify"
        f" {tiny_artifact} --engine onnxruntime-fp32"
    )
    assert not output.exists()


def test_a_pipe_in_and_a_pipe_out(run: Callable[..., Result]) -> None:
    done = run("-", "-o", "-", "--format", "csv", input=b"id,text\n1,hello\n2\n3,world\n")
    assert done.exit_code == 0, done.stderr
    header, *found = done.stdout.splitlines()
    assert header == "id,text,prediction.label,prediction.score,prediction.scores"
    assert [line.partition(",")[0] for line in found] == ["1", "3"]
    (bad,) = lines(done.stderr)
    assert (bad["file"], bad["line"]) == ("standard input", 3)
    assert "2 rows in " in done.stderr
    assert "1 bad row left out, each with its reason: on standard error" in done.stderr
    assert "has no name that tells its format" in run("-", "-o", "-", input=b"").stderr


def test_summary_and_log_as_json(run: Callable[..., Result], tmp_path: Path) -> None:
    source = rows(tmp_path / "in.jsonl", "hello there", "a", None)
    done = run(source, "-o", tmp_path / "out.jsonl", "--json", "--log-json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["bad_rows"], summary["tokens"]) == (2, 1, 7)
    assert summary["output"] == str(tmp_path / "out.jsonl")
    assert 0 <= summary["padding_waste"] < 1
    events = [json.loads(line) for line in done.stderr.splitlines()]
    names = [event["event"] for event in events]
    assert names[:3] == ["warning", "plan", "progress"]
    assert names[-1] == "finished"
    assert events[-1]["rows"] == 2
    assert all(event["time"] for event in events)


def test_metrics_for_prometheus(run: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    source, metrics = rows(tmp_path / "in.jsonl", "a", "b", 5), tmp_path / "tfc.prom"
    done = run(source, "-o", tmp_path / "out.jsonl", "--metrics-file", metrics)
    assert done.exit_code == 0, done.output
    values = [line for line in metrics.read_text().splitlines() if not line.startswith("#")]
    label = f'{{output="{tmp_path}/out.jsonl"}}'
    assert f"tfc_job_finished{label} 1.0" in values
    assert f"tfc_job_input_bytes_total{label} {float(source.stat().st_size)}" in values
    assert f"tfc_job_rows{label} 2.0" in values
    assert len(values) == 8


def test_the_id_of_a_bad_row(run: Callable[..., Result], tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "a", "key": 1}\n{"text": 5, "key": {"a": 2}}\n{\n')
    assert run(source, "-o", tmp_path / "out.jsonl", "--id-column", "key").exit_code == 0
    bad = lines((tmp_path / "out.jsonl.errors.jsonl").read_text())
    assert [row["id"] for row in bad] == [{"a": 2}, None]


def test_the_live_line() -> None:
    now = JobProgress(
        bytes=300, total_bytes=900, rows=50, bad_rows=1, tokens=5_000, padded=10_000, seconds=2.0
    )
    assert line_of(now, first_bytes=100) == (
        "25 rows/s  2.5 k tokens/s  50.0% padding  1 bad row  6.0 s left"
    )


def test_on_error_decides_the_exit_code(run: Callable[..., Result], tmp_path: Path) -> None:
    source, output = rows(tmp_path / "in.jsonl", "a", 5, "b"), tmp_path / "out.jsonl"
    assert run(source, "-o", output).exit_code == 0
    output.unlink()
    done = run(source, "-o", output, "--on-error", "fail")
    assert done.exit_code == 5
    assert "1 row could not be used" in done.stderr
    assert len(output.read_text().splitlines()) == 2, "the job itself is done"


def test_long_texts(run: Callable[..., Result], tmp_path: Path) -> None:
    source, output = rows(tmp_path / "in.jsonl", "a", "word " * 500), tmp_path / "out.jsonl"
    assert run(source, "-o", output).exit_code == 0
    assert len(output.read_text().splitlines()) == 2
    done = run(source, "-o", output, "--too-long", "fail")
    assert done.exit_code == 0, done.output
    (bad,) = lines(Path(f"{output}.errors.jsonl").read_text())
    assert (bad["line"], bad["error"]) == (
        2,
        "the text is longer than the 128 tokens that the model reads",
    )


def started(artifact: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tfc", "run", *map(str, (artifact, *arguments))],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sigterm_drains_and_the_same_command_goes_on(tiny_artifact: Path, tmp_path: Path) -> None:
    source = rows(tmp_path / "in.jsonl", *(f"text {i} " * (i % 20) for i in range(4000)))
    output, work = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.tfc-job"
    options = ("--window", 16, "--threads", 1)
    job = started(tiny_artifact, source, "-o", output, *options)
    until(lambda: (work / "part-00001.jsonl").exists())
    second = started(tiny_artifact, source, "-o", output, *options)
    assert second.communicate()[1].count("another run is writing this output") == 1
    assert second.returncode == 2
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 143, said
    assert "stopping when the current shard is written" in said
    assert "rows are kept: run the same command to go on" in said
    assert not output.exists()
    again = started(tiny_artifact, source, "-o", output, *options, stdout=subprocess.PIPE)
    printed = again.communicate()[0]
    assert again.returncode == 0
    assert " of the input done by an earlier run" in printed
    whole = started(tiny_artifact, source, "-o", tmp_path / "whole.jsonl", *options)
    whole.communicate()
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(output.read_text().splitlines()) == 4000


def test_a_second_signal_does_not_wait(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell runs us in the background
    with stop_requests() as request:
        assert not request()
        signal.raise_signal(signal.SIGINT)
        assert (request(), request.exit_code) == (True, 130)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err.count("again to stop at once") == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_a_wait_for_standard_input(tiny_artifact: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    output = tmp_path / "out.jsonl"
    with (
        os.fdopen(writing, "wb", buffering=0) as pipe,
        started(tiny_artifact, "-", "-o", output, "--format", "jsonl", stdin=reading) as job,
    ):
        os.close(reading)
        pipe.write(b'{"text": "one"}\n')
        until(lambda: (tmp_path / ".out.jsonl.tfc-job" / "lock").exists())
        job.send_signal(signal.SIGTERM)
        said = job.communicate(timeout=60)[1]
    assert job.returncode == 143, said
    assert "Standard input and pipes cannot be read again, so nothing is kept" in said
    assert list(tmp_path.glob("*out*")) == []


def test_what_does_not_go_with_devices(run: Callable[..., Result], tmp_path: Path) -> None:
    source, output = rows(tmp_path / "in.jsonl", "a"), tmp_path / "out.jsonl"
    for option, said in (
        (["--ray"], "--devices are of one machine, and --ray finds its own"),
        (["--shadow", "1%"], "rows of several devices are not run again"),
        ([], "'gpus' names no devices"),
    ):
        done = run(source, "-o", output, "--devices", "gpus", *option)
        assert done.exit_code == 2
        assert said in " ".join(done.stderr.split())


def test_the_memory_of_a_gpu_is_told() -> None:
    console = Console(width=200, file=io.StringIO())
    show_memory(None, console)
    show_memory(GpuMemory(218_000_000, 2, 2, 400_000_000, 20_000_000, 21_000_000), console)
    show_memory(GpuMemory(218_000_000, 1, 2, 400_000_000, 10_000_000, 21_000_000), console)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "GPU memory: 1.0 GB: engine 218.0 MB, 2 lanes × 400.0 MB, buffers 20.0 MB; pinned on the"
        " host 21.0 MB",
        "GPU memory: 628.0 MB (1.0 GB with all): engine 218.0 MB, 1 lane of 2 × 400.0 MB, buffers"
        " 10.0 MB; pinned on the host 21.0 MB",
    ]
