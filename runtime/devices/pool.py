"""Windows of items over several workers: in order, bounded, and again where a worker died."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from tfc.errors import EnvironmentProblem, TfcError, UsageError
from tfc.runtime.devices.messages import Done, Failed, Load, Loaded, Ran
from tfc.runtime.devices.names import Device
from tfc.runtime.devices.process import Died, WorkerProcess
from tfc.runtime.predictor import OnBatch, Outcome

# Windows that a worker has at once: one runs while the next one is tokenised.
_EACH = 2
# The worker that ends a job, when it dies with a window that others died with, or on a device where
# others died without an answer: rows that kill every worker, or a memory that is too small.
MAX_DEATHS = 3

# Called with the name of a device whose worker died, and how it ended.
OnDeath = Callable[[str, str], None]


class Pool:
    """Workers on devices, started by the constructor; it returns when all have loaded the engine.

    Args:
        devices: one worker for each.
        artifact, engine, threads, require_verified: as in `Session.load`; `threads` left out are
            each device's own.
        on_death: called when a worker died in the middle and another one takes its place.

    Attributes:
        loaded: the engine, which is the same for all.

    Raises:
        TfcError: what the first worker raised that could not load the engine.
        UsageError: the devices run the engine on different hardware.
        EnvironmentProblem: a worker died.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        artifact: str,
        engine: str | None = None,
        threads: int | None = None,
        require_verified: bool = False,
        on_death: OnDeath | None = None,
    ) -> None:
        self._devices = devices
        self._on_death = on_death or (lambda device, how: None)
        self._loads = {
            device.name: Load(
                artifact, engine, threads or device.threads, require_verified, device.cores
            )
            for device in devices
        }
        self._workers: dict[str, WorkerProcess] = {}
        self._closed = False
        self.loaded, *others = self._started(devices)
        for loaded in others:
            self._check_same(loaded)

    @property
    def pids(self) -> dict[str, int]:
        """The number of each worker's process, by its device's name."""
        return {name: worker.pid for name, worker in self._workers.items()}

    def outcomes(
        self, source: Iterator[list[object]], settings: Mapping[str, Any], on_batch: OnBatch
    ) -> Iterator[Outcome]:
        """The outcomes of windows, in order; one call at a time.

        Windows are read by the caller's thread, no more than `_EACH` + 1 for each worker ahead of
        the one whose outcomes it gets. A worker that dies is replaced, and its windows run again;
        what it has answered stays. An error is raised when its window's turn comes.

        Raises:
            TfcError: what a worker raised.
            EnvironmentProblem: several workers died with the same rows, or one as it loaded.
        """
        if self._closed:
            raise UsageError("this session was closed", fix="Load it again")
        self._started([each for each in self._devices if each.name not in self._workers])
        call = _Call(source, settings, (_EACH + 1) * len(self._workers))
        try:
            while (number := call.next_number) is not None:
                self._hand_out(call)
                if number in call.found:
                    yield from call.next_outcomes()
                elif number < call.read:
                    self._listen(call, on_batch)
        finally:
            # What nobody waits for is not computed to its end.
            for name, worker in list(self._workers.items()):
                if worker.waiting or worker.failed:
                    self._workers.pop(name).close()

    def close(self) -> None:
        """End every worker. Safe to call twice."""
        self._closed = True
        while self._workers:
            self._workers.popitem()[1].close()

    def _started(self, devices: Sequence[Device]) -> list[Loaded]:
        """What workers say that were started, all at once, and have loaded the engine."""
        try:
            for device in devices:
                self._start(device)
            return [_loaded(self._workers[device.name]) for device in devices]
        except BaseException:
            self.close()
            raise

    def _start(self, device: Device) -> None:
        self._workers[device.name] = WorkerProcess(device, self._loads[device.name])

    def _check_same(self, loaded: Loaded) -> None:
        mine = self.loaded
        if loaded.identity == mine.identity:
            return
        self.close()
        raise UsageError(
            f"one device runs {mine.engine} on {mine.hardware}, another {loaded.engine} on"
            f" {loaded.hardware}: the numbers of a row would depend on where it ran",
            fix="Name devices of one kind, or an engine that all of them run: --engine",
        )

    def _hand_out(self, call: _Call) -> None:
        """Give windows to workers that have room; let go of those for which there is none."""
        while able := [worker for worker in self._workers.values() if _has_room(worker)]:
            window = call.next_window()
            if window is None:
                break
            min(able, key=lambda worker: len(worker.waiting)).give(*window, call.settings)
        for worker in able:
            if worker.streaming:
                worker.end()

    def _listen(self, call: _Call, on_batch: OnBatch) -> None:
        """Wait until a worker says something, and take it."""
        speaking = {
            worker.connection: worker for worker in self._workers.values() if not worker.failed
        }
        for connection in wait(list(speaking)):
            worker = speaking[cast("Connection", connection)]
            try:
                said = worker.said()
            except Died as death:
                self._replace(call, worker, str(death))
                continue
            if isinstance(said, Loaded):  # it took another one's place
                self._check_same(said)
            elif isinstance(said, Ran):
                on_batch(said.tokens, said.padded)
            else:
                call.take(worker, said)

    def _replace(self, call: _Call, worker: WorkerProcess, how: str) -> None:
        call.again(worker, how)
        worker.close()
        self._on_death(worker.device.name, how)
        self._start(worker.device)


class _Call:
    """The state of one call of `Pool.outcomes`.

    Attributes:
        settings: what goes to `Session.outcomes` with the items.
        read: how many windows were read.
        found: outcomes, or an error, of the windows whose turn has not come.
    """

    def __init__(
        self, source: Iterator[list[object]], settings: Mapping[str, Any], ahead: int
    ) -> None:
        self.settings = settings
        self.read = 0
        self.found: dict[int, list[Outcome] | TfcError | RuntimeError] = {}
        self._source, self._ahead = source, ahead
        self._given = 0  # how many windows the caller has the outcomes of
        self._ended = False
        self._again: deque[tuple[int, Sequence[object]]] = deque()
        self._deaths: Counter[int | str] = Counter()  # by window, and by device since its last one

    @property
    def next_number(self) -> int | None:
        """The window whose turn it is; None when all had theirs."""
        return None if self._ended and self._given == self.read else self._given

    def next_window(self) -> tuple[int, Sequence[object]] | None:
        """One that a worker died with, else the next one of the source."""
        if self._again:
            return self._again.popleft()
        if self._ended or self.read - self._given >= self._ahead:
            return None
        items = next(self._source, None)
        if items is None:
            self._ended = True
            return None
        self.read += 1
        return self.read - 1, items

    def next_outcomes(self) -> list[Outcome]:
        """Those of the window whose turn it is."""
        found = self.found.pop(self._given)
        if not isinstance(found, list):
            raise found
        self._given += 1
        return found

    def take(self, worker: WorkerProcess, said: Done | Failed) -> None:
        """What came of a window.

        Raises:
            TfcError: the worker could not load the engine.
        """
        if isinstance(said, Done):
            self.found[said.number] = said.outcomes
            del self._deaths[worker.device.name]
            return
        if said.number is None:
            raise _error_of(worker, said)
        self.found[said.number] = _error_of(worker, said)

    def again(self, worker: WorkerProcess, how: str) -> None:
        """Let the windows of a worker that died run on whichever is free.

        Raises:
            EnvironmentProblem: too many workers died with one of them, or on this device.
        """
        fates: list[int | str] = [worker.device.name, *worker.waiting]
        self._deaths.update(fates)
        if max(self._deaths[fate] for fate in fates) >= MAX_DEATHS:
            raise _death(worker, f"{how}, as did {MAX_DEATHS - 1} before it there or on its rows")
        self._again.extend(worker.waiting.items())


def _loaded(worker: WorkerProcess) -> Loaded:
    try:
        said = worker.said()
    except Died as death:
        raise _death(worker, str(death)) from death
    if isinstance(said, Failed):
        raise _error_of(worker, said)
    assert isinstance(said, Loaded)
    return said


def _has_room(worker: WorkerProcess) -> bool:
    return not worker.failed and len(worker.waiting) < _EACH


def _error_of(worker: WorkerProcess, said: Failed) -> TfcError | RuntimeError:
    """The error of tfc that a worker raised; of another one its text, and whence it came."""
    if said.error is not None:
        return said.error
    last = said.trace.strip().rpartition("\n")[2]
    error = RuntimeError(f"in the worker on {worker.device.name}: {last}")
    error.__cause__ = RuntimeError(said.trace)
    return error


def _death(worker: WorkerProcess, how: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the worker on {worker.device.name} {how}",
        fix="Look in the system's log whether its memory was full: fewer devices, or a smaller"
        " --window, take less",
    )
