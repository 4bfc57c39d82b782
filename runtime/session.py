"""A session: an artifact's engine, loaded, with the text going in and the predictions out.

with Session.load("./artifact") as session:
    session.predict(["first text", "second text"])
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tfc.artifact import Artifact
from tfc.errors import BadInput, UsageError
from tfc.manifest import Task as TaskRecord
from tfc.runtime.assembly import TRUNCATE, Assembly, assembly_of, takes_tensors_only
from tfc.runtime.async_map import mapped
from tfc.runtime.backends.base import DeviceRunner, GpuMemory, MemoryTeller, Runner
from tfc.runtime.backends.device_tensor import DeviceTensor, on_device
from tfc.runtime.batching import CPU, Plan
from tfc.runtime.cores import usable_cores
from tfc.runtime.cpu_plan import CpuPlan
from tfc.runtime.engine import close_all, runners_from_engine
from tfc.runtime.feeding import OnRows, WatchedRunner
from tfc.runtime.formats.predictions import prediction_fields
from tfc.runtime.job_plan import plan_for_jobs
from tfc.runtime.predictor import OnBatch, Outcome, Predictor
from tfc.runtime.rows import Columns
from tfc.runtime.selection import Choice, choose_engine, identity_of
from tfc.runtime.tasks import GENERATION_TASKS, MEDIA_TASKS
from tfc.runtime.tasks.base import Item, Prediction
from tfc.runtime.tasks.embedding import NO_POOLING
from tfc.runtime.tensors import arrays_from_tensors, check_tensors, profiles_of
from tfc.runtime.tokenization import Text
from tfc.runtime.traffic import plan_of_engine

# On a GPU batches run one after the other; a second one is padded, or read out, meanwhile.
GPU_STREAMS = 2
# A text is written in seconds where it is read in milliseconds: smaller windows, so that a job has
# something to show and to keep. Vectors of every token take half a megabyte a text.
SMALL_WINDOW = 256
# Images and recordings are all of one length, and their arrays take a megabyte each.
MEDIA_WINDOW = 128


class Session:
    """A loaded engine that a program calls.

    Safe to call from several threads. A forked child may go on with it where it runs on the CPU:
    its first call there loads the engine again. It can be pickled for spawned workers, which load
    it from the same folder.

    Attributes:
        task: what the model does, and its labels (`tfc.manifest.Task`).
        engine_name: the engine that was chosen, as the manifest calls it.
        verdict: what parity says of it: ``verified``, ``failed`` or ``not run``.
        hardware: what it runs on: ``CPU``, or the name of a GPU.
        signature: the tensors that `run` takes and gives.
        plan: how batches run on the CPU; None for one batch on all threads, or on a GPU.
    """

    def __init__(
        self,
        artifact: Artifact,
        choice: Choice,
        runners: dict[str, Runner],
        assembly: Assembly | None,
        streams: int = 1,
        threads: int | None = None,
        plan: CpuPlan | None = None,
    ) -> None:
        manifest = artifact.manifest
        self.plan = plan
        self.task = manifest.task
        self.signature = manifest.signature
        self.engine_name = choice.name
        self.verdict = choice.verdict
        self.hardware = choice.hardware
        self._identity = identity_of(artifact, choice)
        self._profiles = profiles_of(choice.engine)
        self._plan = plan_of_engine(choice.engine, choice.hardware)
        if plan is not None:
            if plan.limits != self._plan.limits:
                # What is said of a text may differ in its last bits with the texts beside it.
                self._identity["batch_tokens"] = str(plan.tokens)
            self._plan = dataclasses.replace(self._plan, limits=plan.limits)
        self._runners: dict[str, Runner] | None = runners
        self._assembly = assembly
        self._streams = streams
        self._source = (artifact, choice, threads)
        self._process = os.getpid()
        self._parents: list[object] = []
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        engine: str | None = None,
        threads: int | None = None,
        require_verified: bool = False,
        plan: CpuPlan | None = None,
    ) -> Session:
        """Load an engine of the artifact at `path`.

        Args:
            path: the artifact's folder.
            engine: the engine's name; left out, the best one that can run here
                (`tfc.runtime.selection.choose_engine`).
            threads: CPU threads; left out, every core that this process may use.
            require_verified: refuse an engine that `tfc verify` did not find to be right.
            plan: how batches run on the CPU; left out, each may use every thread, so that a single
                one is answered soonest. See `for_jobs`.

        Raises:
            BadArtifact: the artifact or the engine is missing or damaged.
            UsageError: the artifact has no engine of that name.
            BackendUnavailable: no engine can run here.
            CheckFailed: every engine that can run here failed its parity check, or the engine is
                not verified and `require_verified` asks for it.
        """
        artifact, choice = _chosen(path, engine, threads, require_verified)
        return cls._of(artifact, choice, threads, plan)

    @classmethod
    def for_jobs(
        cls,
        path: str | Path,
        engine: str | None = None,
        threads: int | None = None,
        require_verified: bool = False,
        *,
        measure: bool = False,
    ) -> Session:
        """`load` for many texts: several batches at once, by the plan for this CPU and engine.

        Args:
            path: as in `load`, like the three after it.
            engine: as in `load`.
            threads: as in `load`.
            require_verified: as in `load`.
            measure: find the plan, where none is kept in the user's cache: some seconds.

        Raises:
            as `load`.
        """
        artifact, choice = _chosen(path, engine, threads, require_verified)
        plan = plan_for_jobs(artifact, choice, threads, measure=measure)
        return cls._of(artifact, choice, threads, plan)

    @classmethod
    def _of(
        cls, artifact: Artifact, choice: Choice, threads: int | None, plan: CpuPlan | None
    ) -> Session:
        assembly = assembly_of(artifact, choice.engine)
        if choice.hardware != CPU:
            plan = None
        if plan is not None:
            threads = plan.threads
        runners = runners_from_engine(artifact, choice.engine, threads, _streams_of(plan))
        streams = GPU_STREAMS if choice.hardware != CPU else threads or usable_cores()
        if plan is not None:
            streams = plan.streams
        return cls(artifact, choice, runners, assembly, streams, threads, plan)

    @property
    def options(self) -> type:
        """The dataclass of what a call may choose: its fields are the names, with their defaults.

        Raises:
            UsageError: the model takes tensors only.
        """
        return self._parts.options

    @property
    def columns(self) -> Columns:
        """The fields that a job reads, where none are named."""
        return self._parts.columns

    @property
    def window(self) -> int:
        """How many items `map` and a job sort by length together, where they are not told."""
        return window_of(self.task, self._plan)

    @property
    def identity(self) -> dict[str, str]:
        """What tells this engine, its tokenizer and its labels from others."""
        return dict(self._identity)

    def predict(
        self,
        texts: Sequence[Text],
        batch_size: int | None = None,
        *,
        too_long: str = TRUNCATE,
        **options: Any,
    ) -> list[Prediction]:
        """One prediction per text, in their order (`tfc.runtime.tasks` lists the keys).

        They run in batches of similar length.

        Args:
            texts: texts, or tuples of two texts.
            batch_size: the most rows to run at once; left out, what is fast on this hardware.
            too_long: what becomes of a text that is longer than the artifact's `max_length`:
                ``truncate`` cuts it, with ``fail`` it is an error.
            options: what the task lets a call choose (`tfc.runtime.tasks` says where to read it).

        Raises:
            BadInput: an item is not a text, or is longer than the engine was built for; the
                message names its index.
            CheckFailed: the engine gives values that are not finite numbers.
            UsageError: the task has no such option, or the option no such value.
        """
        if isinstance(texts, str):
            raise BadInput(
                "predict takes a list of texts, not one text", fix="Call predict([text])"
            )
        items = list(texts)
        task = self._parts.task(options)
        for index, item in enumerate(items):
            task.check(Item(item, f"item {index}"))
        return list(self.map(items, batch_size=batch_size, too_long=too_long, **options))

    def map(
        self,
        texts: Iterable[Text],
        *,
        window: int | None = None,
        batch_size: int | None = None,
        too_long: str = TRUNCATE,
        **options: Any,
    ) -> Iterator[Prediction]:
        """Predictions of a stream of texts, in its order, holding few of them in memory.

        Args:
            texts: texts, or tuples of two texts; read by the thread that asks for results.
            window: how many texts to sort by length together; the next window is read before
                the results of one are given, and no more than that.
            batch_size: as in `predict`.
            too_long: as in `predict`.
            options: as in `predict`.

        Raises:
            BadInput, CheckFailed: as in `predict`, when the item's turn comes.
            UsageError: as in `predict`, at once.
        """
        if isinstance(texts, str):
            raise BadInput("map takes an iterable of texts", fix="Call map([text])")
        return _predictions(
            self.outcomes(texts, window=window, batch_size=batch_size, too_long=too_long, **options)
        )

    def outcomes(
        self,
        items: Iterable[object],
        *,
        window: int | None = None,
        batch_size: int | None = None,
        too_long: str = TRUNCATE,
        on_batch: OnBatch | None = None,
        on_rows: OnRows | None = None,
        **options: Any,
    ) -> Iterator[Outcome]:
        """Like `map`, but an item that cannot be predicted gives an outcome with its error.

        An item that is a `TfcError` already is handed through, so that the caller's own bad rows
        keep their place. Embeddings are arrays. `on_batch` is called by the threads that run
        batches, with the tokens of each, without and with padding; so is `on_rows`, with what the
        model read and the outputs of each row.
        """
        parts = self._parts
        task = parts.task(options, too_long)
        runner = parts.batch_runner(self._loaded(), options)
        if on_rows is not None:
            runner = WatchedRunner(runner, on_rows)
        limits = self._plan.limits.of_rows(batch_size)
        size = self.window if window is None else window
        predictor = Predictor(parts.feeder, self._streams)
        return predictor.outcomes(task, runner, items, size, limits, on_batch)

    async def apredict(self, texts: Sequence[Text], **arguments: Any) -> list[Prediction]:
        """`predict` in a thread, so that the event loop goes on meanwhile."""
        return await asyncio.to_thread(self.predict, texts, **arguments)

    def amap(
        self,
        texts: Iterable[Text] | AsyncIterable[Text],
        *,
        window: int | None = None,
        **arguments: Any,
    ) -> AsyncIterator[Prediction]:
        """`map` for ``async for``: the event loop goes on while a thread runs the batches.

        An asynchronous source is read by the event loop, any other by that thread; nothing is
        predicted before a window is full or the source ends.

        Raises:
            BadInput, CheckFailed, UsageError: as in `map`, when the first result, or the item's
                own, is asked for.
        """
        size = self.window if window is None else window
        return mapped(lambda items: self.map(items, window=size, **arguments), texts, size)

    def predict_arrow(self, texts: Any, *, half: bool = False, **arguments: Any) -> Any:
        """The predictions of an Arrow column of texts, as an Arrow array of structs.

        The array has the type of the column ``prediction`` that `tfc run` writes to Parquet;
        embeddings get there as arrays, without a Python list.

        Args:
            texts: a `pyarrow.Array` or `pyarrow.ChunkedArray` of strings, without nulls.
            half: embeddings as float16 instead of float32.
            arguments: as in `map`.

        Raises:
            BadInput, CheckFailed, UsageError: as in `predict`.
        """
        from tfc.runtime.formats.arrow import prediction_array

        fields = prediction_fields(self.task, self.signature)
        found = [_checked(outcome) for outcome in self.outcomes(texts.to_pylist(), **arguments)]
        return prediction_array(found, fields, half)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one batch of tensors: arrays by input name → arrays by output name.

        Arrays are numpy's, or tensors on the CPU of any library that speaks DLPack (torch, jax,
        Arrow), whose memory is used as it is. Where the engine runs on a GPU, tensors on it are
        used as they are too, and then the outputs stay there: `torch.from_dlpack(output)`.

        Raises:
            BadInput: a name, type or shape does not fit the signature or the engine's profile.
        """
        runner = next(iter(self._loaded().values()))
        if self.hardware != CPU and any(on_device(tensor) for tensor in inputs.values()):
            return dict(self._run_on_device(runner, inputs))
        arrays = arrays_from_tensors(inputs)
        check_tensors(self.signature, self._profiles, arrays)
        return runner.run(arrays)

    def _run_on_device(
        self, runner: Runner, inputs: Mapping[str, Any]
    ) -> Mapping[str, DeviceTensor]:
        if not isinstance(runner, DeviceRunner):
            raise BadInput(
                "this engine takes no tensors on a GPU", fix="Give tensors in the CPU's memory"
            )
        host = {name: each for name, each in inputs.items() if not on_device(each)}
        tensors = {**inputs, **arrays_from_tensors(host)}
        check_tensors(self.signature, self._profiles, tensors)
        return runner.run_on_device(tensors)

    @property
    def memory(self) -> GpuMemory | None:
        """What the engine takes of the GPU's memory, all graphs together; None where unknown."""
        tellers = [each for each in self._loaded().values() if isinstance(each, MemoryTeller)]
        told = [each.memory for each in tellers]
        return functools.reduce(GpuMemory.plus, told) if told else None

    def close(self) -> None:
        """Give back what the engine holds. Safe to call twice."""
        runners, self._runners = self._runners, None
        close_all(runners or {})

    def __reduce__(self) -> tuple[Any, tuple[str, str, int | None, bool, CpuPlan | None]]:
        """Pickled as where it was loaded from: another process loads it there again."""
        artifact, choice, threads = self._source
        folder = str(artifact.path.resolve())
        return Session.load, (folder, choice.name, threads, choice.require_verified, self.plan)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _parts(self) -> Assembly:
        if self._assembly is None:
            raise takes_tensors_only(self.task.name)
        return self._assembly

    def _loaded(self) -> dict[str, Runner]:
        if self._runners is None:
            raise UsageError("this session was closed", fix="Load it again with Session.load")
        if self._process != os.getpid():
            self._load_after_fork()
        return self._runners

    def _load_after_fork(self) -> None:
        """Load the engine again: a fork leaves its threads behind, and it would run on one."""
        with self._lock:
            if self._process == os.getpid():
                return
            # Never let go of: ending the parent's engines would wait for their threads.
            self._parents.append(self._runners)
            artifact, choice, threads = self._source
            streams = _streams_of(self.plan)
            self._runners = runners_from_engine(artifact, choice.engine, threads, streams)
            self._process = os.getpid()


def _chosen(
    path: str | Path, engine: str | None, threads: int | None, require_verified: bool
) -> tuple[Artifact, Choice]:
    """The artifact at `path`, and which of its engines is to be loaded."""
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads are not possible", fix="Give 1 or more")
    artifact = Artifact.open(path)
    return artifact, choose_engine(artifact, engine, require_verified=require_verified)


def _streams_of(plan: CpuPlan | None) -> int:
    """How many batches share the threads of the engine."""
    return 1 if plan is None else plan.streams


def window_of(task: TaskRecord, plan: Plan) -> int:
    """How many items of a task are sorted by length together, where texts are batched by `plan`."""
    if task.name in MEDIA_TASKS:
        return MEDIA_WINDOW
    if task.name in GENERATION_TASKS or task.pooling == NO_POOLING:
        return SMALL_WINDOW
    return plan.window


def _predictions(outcomes: Iterator[Outcome]) -> Iterator[Prediction]:
    for outcome in outcomes:
        yield _plain(_checked(outcome))


def _checked(outcome: Outcome) -> Prediction:
    if outcome.error is not None:
        raise outcome.error
    return outcome.prediction


def _plain(prediction: Prediction) -> Prediction:
    """The prediction as JSON values: its arrays, which are embeddings, as lists."""
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in prediction.items()}
