"""Jobs over several devices: which those are, and what comes of them when a worker is killed."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
from collections.abc import Iterable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from tfc.errors import BadInput, EnvironmentProblem, JobStopped, TfcError, UsageError
from tfc.runtime import Session
from tfc.runtime.devices import DeviceSession, pool, worker
from tfc.runtime.devices.machine import numa_nodes
from tfc.runtime.devices.messages import Begin, Done, End, Failed, Ran, Window
from tfc.runtime.devices.names import Machine, cores_from_ranges, devices_from_text
from tfc.runtime.gpu import Gpu
from tfc.runtime.jobs import progress, run_job
from tfc.runtime.predictor import Outcome

L4, A10 = Gpu("NVIDIA L4", "8.9", "13.0"), Gpu("NVIDIA A10", "8.6", "13.0")
WINDOW, ROWS = 16, 200


def machine(*gpus: Gpu, cores: str = "0-7", visible: str | None = None) -> Machine:
    nodes = {0: frozenset(range(4)), 1: frozenset(range(4, 8)), 2: frozenset()}
    return Machine(gpus, "no driver", visible, cores_from_ranges(cores), nodes)


@pytest.mark.parametrize(
    ("text", "here", "expected"),
    [
        ("all", machine(L4, L4), [("GPU 0", None, "0", 4), ("GPU 1", None, "1", 4)]),
        ("1", machine(L4, L4, visible="5,GPU-7f"), [("GPU 1", None, "GPU-7f", 8)]),
        ("1", machine(A10, L4), [("GPU 1", None, "1", 8)]),
        ("all", machine(), [("node 0", {0, 1, 2, 3}, "", 4), ("node 1", {4, 5, 6, 7}, "", 4)]),
        ("numa", machine(L4, cores="2-3"), [("node 0", {2, 3}, "", 2)]),
        (
            "cpu:0-1+4,cpu:5",
            machine(),
            [("cpu:0-1+4", {0, 1, 4}, "", 3), ("cpu:5", {5}, "", 1)],
        ),
    ],
)
def test_devices_of_a_machine(text: str, here: Machine, expected: list[Any]) -> None:
    found = devices_from_text(text, here)
    assert [(each.name, each.cores, each.gpu, each.threads) for each in found] == expected


@pytest.mark.parametrize(
    ("text", "here", "kind", "said"),
    [
        ("gpus", machine(L4), UsageError, "'gpus' names no devices"),
        ("0,cpu:1", machine(L4), UsageError, "names no devices"),
        ("0,0", machine(L4), UsageError, "a GPU is named twice"),
        ("0", machine(), EnvironmentProblem, "there is no GPU to run on: no driver"),
        ("0,2", machine(L4, L4), EnvironmentProblem, "no GPU 2: this process sees 2"),
        ("all", machine(L4, A10), UsageError, r"different kinds \(NVIDIA A10, NVIDIA L4\)"),
        ("cpu:0-1,cpu:1-2", machine(), UsageError, "core 1 is in two devices"),
        ("cpu:6-8", machine(), EnvironmentProblem, "core 8 is not among those"),
        ("cpu:", machine(), UsageError, "'cpu:' names no cores"),
        ("cpu:a", machine(), UsageError, "'cpu:a' names no cores"),
    ],
)
def test_devices_that_are_refused(
    text: str, here: Machine, kind: type[TfcError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        devices_from_text(text, here)


def test_nodes_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, cores in ((10, "2-3\n"), (2, "0-1,8\n"), (3, "\n")):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(cores)
    found = numa_nodes(tmp_path)
    assert list(found.items()) == [(2, {0, 1, 8}), (3, set()), (10, {2, 3})]


def test_what_a_worker_says_of_an_error() -> None:
    """The windows before it are answered, and it tells which one it is of."""

    class Failing:
        def outcomes(
            self, items: Iterable[object], *, on_batch: Any, **_: Any
        ) -> Iterator[Outcome]:
            for item in items:
                if item == "bad":
                    raise BadInput("not this one")
                on_batch(1, 2)
                yield Outcome({"label": item})

    class Ended(queue.SimpleQueue[Any]):
        """Where the real one waits for the end of the job."""

        def get(self, *_: Any) -> Any:
            if self.empty():
                raise KeyboardInterrupt
            return super().get()

    here, there = Pipe()
    inbox = Ended()
    for message in (Window(4, ["a", "b"]), Window(7, ["bad", "c"]), End()):
        inbox.put(message)
    with here, there:
        with pytest.raises(KeyboardInterrupt):
            worker._predict(Failing(), Begin({}), inbox, there)
        said = [here.recv() for _ in range(4)]
    outcomes = [Outcome({"label": label}) for label in "ab"]
    assert said[:3] == [Ran(1, 2), Ran(1, 2), Done(4, outcomes)]
    assert isinstance(said[3], Failed)
    assert (said[3].number, str(said[3].error)) == (7, "not this one")


@pytest.fixture(scope="module")
def deaths() -> list[tuple[str, str]]:
    return []


@pytest.fixture(scope="module")
def devices(_tiny_artifact: Path, deaths: list[tuple[str, str]]) -> Iterator[DeviceSession]:
    """One engine on each of two cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        pytest.skip("two cores are needed, and a system that binds processes to them")
    spec = f"cpu:{cores[0]},cpu:{cores[1]}"
    with DeviceSession.load(
        _tiny_artifact, spec, on_death=lambda device, how: deaths.append((device, how))
    ) as session:
        yield session


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    rows = [{"id": i, "text": f"{'word ' * (i % 37)}{i}"} for i in range(ROWS)]
    rows[40] = rows[ROWS - 1] = {"id": -1}  # bad ones
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def expected(_tiny_artifact: Path, source: Path) -> dict[str, bytes]:
    """What one session writes."""
    with Session.load(_tiny_artifact) as session:
        run_job(session, source, source.parent / "whole" / "out.jsonl", window=WINDOW)
    return contents(source.parent / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.ort
def test_a_worker_is_killed(
    devices: DeviceSession,
    deaths: list[tuple[str, str]],
    source: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
) -> None:
    name, pid = next(iter(devices.pids.items()))
    assert os.sched_getaffinity(pid) == devices.devices[0].cores

    def kill(_: object) -> None:
        if devices.pids[name] == pid:
            os.kill(pid, signal.SIGKILL)

    done = run_job(devices, source, tmp_path / "out.jsonl", window=WINDOW, on_progress=kill)
    assert deaths == [(name, "was killed by SIGKILL")]
    assert contents(tmp_path) == expected
    assert (done.rows, done.bad_rows) == (ROWS - 2, 2)
    assert done.tokens > ROWS


@pytest.mark.ort
def test_a_job_that_fails_or_stops_goes_on(
    devices: DeviceSession,
    tiny_artifact: Path,
    source: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed with all of its workers, then stopped, then ended: each run from where it was."""
    output = tmp_path / "out" / "out.jsonl"
    monkeypatch.setattr(pool, "MAX_DEATHS", 1)
    monkeypatch.setattr(progress, "PROGRESS_INTERVAL_S", 0.0)

    def kill(done: progress.JobProgress) -> None:
        if done.rows >= 2 * WINDOW:
            for pid in devices.pids.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(EnvironmentProblem, match=r"was killed by SIGKILL.*rows are kept"):
        run_job(devices, source, output, window=WINDOW, on_progress=kill)
    assert not output.exists()
    with pytest.raises(JobStopped):
        run_job(devices, source, output, window=WINDOW, stopped=lambda: True)
    with Session.load(tiny_artifact) as session:
        done = run_job(session, source, output, window=WINDOW)
    assert contents(output.parent) == expected
    assert 2 * WINDOW <= done.resumed_rows < ROWS


@pytest.mark.ort
def test_what_a_job_on_devices_refuses(devices: DeviceSession, tiny_artifact: Path) -> None:
    with pytest.raises(UsageError, match="nonsense"):
        devices.outcomes(["a"], nonsense=1)
    with pytest.raises(UsageError, match="too_long is 'x'"):
        list(devices.outcomes(["a"], too_long="x"))
    assert [each.error for each in devices.outcomes(["a"])] == [None], "it goes on after that"
    with pytest.raises(UsageError, match="no engine 'other'"):
        DeviceSession.load(tiny_artifact, devices.devices[0].name, engine="other")
