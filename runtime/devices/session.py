"""A session for batch jobs whose engine runs on several devices of this machine at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.manifest import Manifest
from tfc.runtime.assembly import takes_tensors_only
from tfc.runtime.batching import CPU, windows
from tfc.runtime.devices.machine import this_machine
from tfc.runtime.devices.names import Device, devices_from_text
from tfc.runtime.devices.pool import OnDeath, Pool
from tfc.runtime.predictor import OnBatch, Outcome
from tfc.runtime.rows import Columns
from tfc.runtime.tasks import EVERY_TASK
from tfc.runtime.tasks.options import options_from_values


class DeviceSession:
    """What `tfc.runtime.jobs.run_job` needs of a session, on several devices. One job at a time.

    Attributes:
        task, signature, engine_name, verdict, hardware: as of a `Session`.
        devices: what the workers run on.
    """

    def __init__(self, manifest: Manifest, devices: tuple[Device, ...], pool: Pool) -> None:
        self.task, self.signature = manifest.task, manifest.signature
        self.engine_name = pool.loaded.engine
        self.verdict = pool.loaded.verdict
        self.hardware = pool.loaded.hardware
        self.devices = devices
        self._pool = pool

    @classmethod
    def load(
        cls,
        path: str | Path,
        devices: str = "all",
        engine: str | None = None,
        threads: int | None = None,
        require_verified: bool = False,
        on_death: OnDeath | None = None,
    ) -> DeviceSession:
        """Load an engine of the artifact at `path` in a process for each device.

        Args:
            path: the artifact's folder.
            devices: ``all`` for every GPU, or every NUMA node where there is none; ``0,1`` for
                GPUs by their numbers; ``numa``; ``cpu:0-3,cpu:4-7`` for sets of cores.
            engine: as in `Session.load`.
            threads: CPU threads of each worker; left out, its cores, or of GPUs an equal share.
            require_verified: as in `Session.load`.
            on_death: called with a device's name, and how its worker ended, when one died in the
                middle of a job and another takes its place.

        Raises:
            BadArtifact, BackendUnavailable, CheckFailed: as `Session.load`, in the first worker
                that raises it.
            UsageError: the devices cannot be used together, or the model takes tensors only.
            EnvironmentProblem: a device is not there, or a worker died as it loaded.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads are not possible", fix="Give 1 or more")
        artifact = Artifact.open(path)
        if artifact.manifest.task.name not in EVERY_TASK:
            raise takes_tensors_only(artifact.manifest.task.name)
        found = devices_from_text(devices, this_machine())
        folder = str(artifact.path.resolve())
        pool = Pool(found, folder, engine, threads, require_verified, on_death)
        loaded = cls(artifact.manifest, found, pool)
        try:
            loaded._check_uses_gpus()
        except UsageError:
            loaded.close()
            raise
        return loaded

    @property
    def options(self) -> type:
        """The dataclass of what a job may choose."""
        kind: type = EVERY_TASK[self.task.name].options
        return kind

    @property
    def columns(self) -> Columns:
        """The fields that a job reads, where none are named."""
        columns: Columns = EVERY_TASK[self.task.name].columns
        return columns

    @property
    def window(self) -> int:
        """How many items are sorted by length together, where a job is not told."""
        return self._pool.loaded.window

    @property
    def identity(self) -> dict[str, str]:
        """That of a `Session` with the same engine: a job may go on with either."""
        return dict(self._pool.loaded.identity)

    @property
    def pids(self) -> dict[str, int]:
        """The number of each worker's process, by its device's name."""
        return self._pool.pids

    def outcomes(
        self,
        items: Iterable[object],
        *,
        window: int | None = None,
        on_batch: OnBatch | None = None,
        **options: Any,
    ) -> Iterator[Outcome]:
        """As `Session.outcomes`; each window runs whole on one device.

        Raises:
            UsageError: the task has no such option; at once.
            EnvironmentProblem: workers died again and again with the same rows.
        """
        settings = {name: value for name, value in options.items() if name != "too_long"}
        options_from_values(self.task.name, self.options, settings)
        size = self.window if window is None else window
        told = on_batch or (lambda tokens, padded: None)
        return self._pool.outcomes(windows(items, size), {**options, "window": size}, told)

    def close(self) -> None:
        """End the workers. Safe to call twice."""
        self._pool.close()

    def __enter__(self) -> DeviceSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_uses_gpus(self) -> None:
        if self.hardware == CPU and any(device.gpu for device in self.devices):
            raise UsageError(
                f"the engine {self.engine_name} runs on the CPU, and GPUs were asked for",
                fix="Give --devices numa, or build an engine for GPUs: tfc build-engine",
            )
