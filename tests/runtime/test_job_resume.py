"""Nothing lost, nothing twice: a job that dies anywhere goes on, and its output is the same."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfc.errors import BadData, JobStopped, NoSpace, UsageError
from tfc.manifest import Signature, Task
from tfc.runtime.jobs import JobSummary, run_job
from tfc.runtime.predictor import Outcome
from tfc.runtime.rows import Columns


class Windowed:
    """Answers with the text's place in its window: another cut of the input would show."""

    columns = Columns("text")
    task = Task("zero-shot-classification")
    signature = Signature([], [])
    window = 5

    def __init__(self, engine: str = "a", seconds: float = 0.0) -> None:
        self.identity = {"name": engine, "sha256": engine * 64}
        self.seconds = seconds
        self.seen = 0

    def outcomes(self, items: Iterable[object], **_: Any) -> Iterator[Outcome]:
        for number, item in enumerate(items):
            time.sleep(self.seconds)
            self.seen += 1
            if isinstance(item, BadData):
                yield Outcome(error=item)
                continue
            label = f"{item} at {number % self.window}"
            scores = {"x": number % self.window / 7}
            yield Outcome({"label": label, "score": 0.5, "scores": scores}, None, 1, 2)


def rows_file(folder: Path, name: str = "in.jsonl", rows: int = 33) -> Path:
    """Rows of which every seventh, and all from 20 to 29, are bad."""
    path = folder / name
    path.write_text(
        "".join(
            json.dumps({"id": i} if i % 7 == 3 or 20 <= i < 30 else {"id": i, "text": f"t{i}"})
            + "\n"
            for i in range(rows)
        ),
        encoding="utf-8",
    )
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Killed:
    """Runs a function in a child that is killed before its n-th change of the disk."""

    CHANGES = ("replace", "fsync", "unlink", "truncate", "rmdir")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._real = {name: getattr(os, name) for name in self.CHANGES}
        self._real["fsync"] = lambda handle: None  # the kernel does not die with the process
        for name in self.CHANGES:
            monkeypatch.setattr(os, name, self._counting(name))
        self._left: int | None = None

    def __call__(self, after: int, run: Callable[[], object]) -> bool:
        """Whether it was killed; False if it came to its end before."""
        child = os.fork()
        if child == 0:
            self._left = after
            with contextlib.suppress(BaseException):
                run()
                os._exit(0)
            os._exit(1)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    def _counting(self, name: str) -> Callable[..., Any]:
        def change(*arguments: Any, **named: Any) -> Any:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return self._real[name](*arguments, **named)

        return change


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out/"])
def test_killed_before_any_change_of_the_disk(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rows_file(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    killed = Killed(monkeypatch)
    run_job(Windowed(), source, f"{whole}/{output}")
    expected = contents(whole)
    assert len(expected) > 1, "the output, and the errors"
    place = 0
    while killed(place, lambda: run_job(Windowed(), source, f"{broken}/{output}")):
        run_job(Windowed(), source, f"{broken}/{output}")
        assert contents(broken) == expected, f"killed before change {place}"
        subprocess.run(["rm", "-rf", broken], check=True)
        place += 1
    assert place > 25
    assert contents(broken) == expected


def test_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run gets a little further: a run that goes on may die in its turn."""
    source = rows_file(tmp_path)
    killed = Killed(monkeypatch)
    run_job(Windowed(), source, tmp_path / "whole" / "out.jsonl")
    output = tmp_path / "broken" / "out.jsonl"
    runs = 0
    while killed(9, lambda: run_job(Windowed(), source, output)):
        runs += 1
    assert runs > 3
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


# Runs the job in one child after the other, and kills them at random moments; prints how many.
KILLER = """
import os, random, signal, sys, time
os.fsync = lambda handle: None  # slow where others use the disk; the kernel outlives the process
sys.path.insert(0, sys.argv[1])
from test_job_resume import Windowed
import pyarrow.parquet
from tfc.runtime.jobs import run_job
rng, status, kills = random.Random(7), None, 0
while status != 0:
    assert status in (None, signal.SIGKILL), status
    child = os.fork()
    if child == 0:
        run_job(Windowed(seconds=0.004), *sys.argv[2:4], output_format=sys.argv[4] or None)
        os._exit(0)
    time.sleep(rng.uniform(0.02, 0.2 + 0.05 * kills))  # longer each time, for slow machines
    os.kill(child, signal.SIGKILL)  # one that has ended waits for `waitpid`
    _, status = os.waitpid(child, 0)
    kills += status == signal.SIGKILL
print(kills)
"""


@pytest.mark.parametrize("output", ["out.parquet", "out/"])
def test_kill_9_at_random_moments(output: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = rows_file(tmp_path, rows=100)
    form = "" if output == "out.parquet" else "parquet"
    run_job(Windowed(), source, f"{tmp_path}/whole/{output}", output_format=form or None)
    broken = f"{tmp_path}/broken/{output}"
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, str(Path(__file__).parent), str(source), broken, form],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert killed.returncode == 0, killed.stderr
    assert int(killed.stdout) > 2
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def stopped_after(shards: int) -> Callable[[], bool]:
    left = [shards]

    def stopped() -> bool:
        left[0] -= 1
        return left[0] <= 0

    return stopped


def half_done(source: Path, output: Path, shards: int = 2, **options: Any) -> None:
    with pytest.raises(JobStopped):
        run_job(Windowed(), source, output, stopped=stopped_after(shards), **options)


def test_stopping_drains_the_shard_and_says_how_to_go_on(tmp_path: Path) -> None:
    source, output = rows_file(tmp_path), tmp_path / "out.jsonl"
    with pytest.raises(JobStopped, match="stopped, as asked") as caught:
        run_job(Windowed(), source, output, stopped=stopped_after(2))
    assert "The first 10 rows are kept: run the same command to go on" in caught.value.fix
    assert not output.exists()
    session = Windowed()
    summary = run_job(session, source, output)
    assert session.seen == 23
    assert (summary.rows, summary.bad_rows, summary.resumed_rows) == (19, 14, 10)
    assert summary.tokens == 19
    assert {path.name for path in tmp_path.iterdir()} == {
        *("in.jsonl", "out.jsonl", "out.jsonl.errors.jsonl")
    }


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl.bz2", "parquet"])
def test_going_on_in_every_format(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    start = tmp_path / "start"
    start.mkdir()
    run_job(Windowed(), rows_file(tmp_path), start / f"in.{kind}")
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    source = start / f"in.{kind}"
    run_job(Windowed(), source, tmp_path / "whole" / f"out.{kind}")
    broken = tmp_path / "broken" / f"out.{kind}"
    half_done(source, broken, 1)
    half_done(source, broken, 1)
    session = Windowed()
    assert run_job(session, source, broken).resumed_rows == 10
    assert session.seen == 9
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_going_on_in_the_second_of_several_files(tmp_path: Path) -> None:
    files = [rows_file(tmp_path, f"{name}.jsonl", 12) for name in "abc"]
    run_job(Windowed(), files, tmp_path / "whole" / "out.jsonl", limit=31)
    broken = tmp_path / "broken" / "out.jsonl"
    half_done(files, broken, 3, limit=31)  # type: ignore[arg-type]
    assert run_job(Windowed(), files, broken, limit=31).resumed_rows == 15
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"session": Windowed("b")}, "with other engine: name was \"a\", is \"b\""),
        ({"limit": 30}, "with other options: limit was null, is 30"),
        ({"top_k": 3}, "with other options: top_k was null, is 3"),
        ({"window": 7}, "with other options: window was 5, is 7; shard_rows was 5, is 7"),
        ({"touch": True}, "with other inputs: 0 changed"),
    ],
)  # fmt: skip
def test_another_job_is_refused_and_can_start_anew(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    source, output = rows_file(tmp_path), tmp_path / "out.jsonl"
    half_done(source, output)
    session = change.pop("session", None) or Windowed()
    if change.pop("touch", False):
        os.utime(source, ns=(0, 0))
    with pytest.raises(UsageError) as caught:
        run_job(session, source, output, **change)
    assert said in caught.value.what
    assert "--restart" in caught.value.fix
    summary = run_job(session, source, output, restart=True, **change)
    assert (summary.resumed_rows, session.seen) == (0, change.get("limit", 33))


def test_a_second_run_is_refused_while_one_writes(tmp_path: Path) -> None:
    source = rows_file(tmp_path)
    found: list[str] = []

    class Nested(Windowed):
        def outcomes(self, items: Iterable[object], **options: Any) -> Iterator[Outcome]:
            for target in ("out.jsonl", "out.csv"):
                with contextlib.suppress(JobStopped):
                    try:
                        run_job(Windowed(), source, tmp_path / target)
                    except UsageError as error:
                        found.append(f"{target}: {error.what}")
            return super().outcomes(items, **options)

    summary: JobSummary = run_job(Nested(), source, tmp_path / "out.jsonl")
    assert summary.rows == 19
    assert found == ["out.jsonl: another run is writing this output"]


def test_an_input_that_grows_while_the_job_runs(tmp_path: Path) -> None:
    source = rows_file(tmp_path)

    class Growing(Windowed):
        def outcomes(self, items: Iterable[object], **options: Any) -> Iterator[Outcome]:
            yield from super().outcomes(items, **options)
            with source.open("a", encoding="utf-8") as stream:
                stream.write('{"text": "late"}\n')

    with pytest.raises(BadData, match="the input changed while the job ran"):
        run_job(Growing(), source, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert run_job(Windowed(), source, tmp_path / "out.jsonl").rows == 20


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    source, output = rows_file(tmp_path), tmp_path / "out.jsonl"
    half_done(source, output)
    journal = tmp_path / ".out.jsonl.tfc-job" / "journal.jsonl"
    whole = journal.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        journal.write_bytes(damaged)
        with pytest.raises(BadData, match="journal of the unfinished job is damaged") as caught:
            run_job(Windowed(), source, output)
        assert "--restart" in caught.value.fix
    journal.write_bytes(whole)
    assert run_job(Windowed(), source, output).resumed_rows == 10


def test_a_line_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    source, output = rows_file(tmp_path), tmp_path / "out.jsonl"
    run_job(Windowed(), source, tmp_path / "whole" / "out.jsonl")
    half_done(source, tmp_path / "broken" / "out.jsonl")
    journal = tmp_path / "broken" / ".out.jsonl.tfc-job" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    output = tmp_path / "broken" / "out.jsonl"
    half_done(source, output, 1)
    assert run_job(Windowed(), source, output).resumed_rows == 10
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_part_that_is_gone_is_refused(tmp_path: Path) -> None:
    source, output = rows_file(tmp_path), tmp_path / "out.jsonl"
    half_done(source, output)
    (tmp_path / ".out.jsonl.tfc-job" / "part-00000.jsonl").unlink()
    with pytest.raises(BadData, match="a part of the unfinished job is missing"):
        run_job(Windowed(), source, output)


@pytest.mark.parametrize("limit", [900, 1500])
def test_a_full_disk_in_the_middle(limit: int, tmp_path: Path) -> None:
    """900 bytes: a shard's journal does not fit; 1500: the shards do, and the whole does not."""
    source = rows_file(tmp_path)
    run_job(Windowed(), source, tmp_path / "whole" / "out.jsonl")
    output = tmp_path / "broken" / "out.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(NoSpace, match="no space left"):
            run_job(Windowed(), source, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not output.exists()
    run_job(Windowed(), source, output)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_an_output_folder(tmp_path: Path) -> None:
    source, output = rows_file(tmp_path), tmp_path / "out"
    summary = run_job(Windowed(), source, f"{output}/", shard_rows=8)
    assert (summary.output, summary.errors) == (output, output / "_errors.jsonl")
    names = sorted(path.name for path in output.iterdir())
    assert names == [
        *("_SUCCESS", "_errors.jsonl"),
        *("part-00000.jsonl", "part-00001.jsonl", "part-00003.jsonl"),
    ], "10 rows a part, and no part of bad rows only"
    record = json.loads((output / "_SUCCESS").read_text())
    assert record["sums"] == {"rows": 19, "bad_rows": 14, "tokens": 19, "padded": 38}
    assert [(part["name"], part["rows"]) for part in record["parts"]] == [
        *(("part-00000.jsonl", 9), ("part-00001.jsonl", 8), ("part-00003.jsonl", 2))
    ]
    session = Windowed()
    again = run_job(session, source, output, shard_rows=8)
    assert (again.rows, again.resumed_rows, session.seen) == (19, 33, 0), "there is nothing to do"
    with pytest.raises(UsageError, match="another finished job is in this folder") as caught:
        run_job(Windowed(), source, output)
    assert "--restart" in caught.value.fix
    run_job(Windowed(), source, output, shard_rows=100, restart=True)
    assert sorted(path.name for path in output.glob("part*")) == ["part-00000.jsonl"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(UsageError, match=r"this folder is not empty: it holds cat\.jpg"):
        run_job(Windowed(), source, tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
