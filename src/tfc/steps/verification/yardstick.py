"""What engines are compared with, one after the other: PyTorch's values on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import BackendUnavailable, BadArtifact, CheckFailed
from tfc.manifest import MODEL, Engine
from tfc.runtime.backends import backend as backend_of
from tfc.runtime.backends.base import Runner
from tfc.runtime.engine import close_all, runners_from_engine
from tfc.runtime.padding import Feed
from tfc.runtime.parity import Tolerance, failures, parity_of
from tfc.steps.batches import Outputs
from tfc.steps.bisection.bisect import Measured, bisect
from tfc.steps.bisection.report import Bisection
from tfc.steps.cases import Cases
from tfc.steps.generation_cases import GenerationCases
from tfc.steps.int8.verdict import Agreement, int8_agreement
from tfc.steps.record import OnProgress
from tfc.steps.reference import Recorded
from tfc.steps.simplification.reference import (
    Promise,
    SimplifiedReference,
    graph_runner,
    promise_of,
)
from tfc.steps.verification.labelled import Labelled
from tfc.steps.verification.noise import Noise
from tfc.steps.verification.relations import Relation, Relations, failing
from tfc.steps.verification.report import FAILED, NOT_RUN, VERIFIED, EngineVerdict
from tfc.steps.verification.task_metrics import EngineMetrics, Judge
from tfc.steps.verification.written import written_by_engine, written_by_pytorch

_RELATIONS = "the relations that fail"


def _why_not_run(engine: Engine) -> str:
    """Why the engine cannot be run on this machine; empty if it can."""
    return backend_of(engine.backend).availability().why_not_run


@dataclass(frozen=True)
class _Tap:
    """Runs batches, and keeps what came of them."""

    call: Callable[[Feed], Outputs]
    outputs: list[Outputs] = field(default_factory=list)

    def run(self, inputs: Any) -> Outputs:
        """The outputs of one batch."""
        self.outputs.append(self.call(inputs))
        return self.outputs[-1]

    def close(self) -> None:
        """Leave the engine to its owner."""


@dataclass(frozen=True)
class Yardstick:
    """What engines are compared with: PyTorch's values, and its metrics where there are labels.

    `noise` computes as other precisions do, and `floors` are its values, once they were asked for;
    `got` are those of the engines that were run; `relations` checks what must hold for any data,
    where that is wanted. Of a simplified graph `reference` and `expected` are that graph, and
    `promise` tells what PyTorch is asked for.
    """

    artifact: Artifact
    cases: Cases | GenerationCases
    reference: Any
    expected: list[npt.NDArray[Any]]
    judge: Judge | None
    max_drop: float | None
    on_progress: OnProgress
    noise: Noise
    floors: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    got: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    relations: Relations | None = None
    promise: Promise | None = None

    @property
    def scale(self) -> float:
        """The largest of PyTorch's values."""
        return max((float(np.abs(e).max(initial=0.0)) for e in self.expected), default=0.0)

    def verdict(self, name: str) -> EngineVerdict:
        """Run one engine and compare it."""
        engine = self.artifact.manifest.engines[name]
        reason = _why_not_run(engine)
        if reason:
            return EngineVerdict(name, NOT_RUN, reason, None, None)
        floor = self._floor(engine)
        try:
            runners = runners_from_engine(self.artifact, engine)
        except (BadArtifact, BackendUnavailable) as error:
            return EngineVerdict(name, FAILED, str(error), None, None)
        relations: tuple[Relation, ...] = ()
        try:
            got, metrics = self._run(name, runners)
            if self.relations is not None:
                on_case = partial(self.on_progress, f"{name}: relations")
                first = next(iter(runners.values()))
                relations = self.relations.of_engine(engine, first, on_case)
        finally:
            close_all(runners)
        tolerance = self.noise.tolerance(engine, self.expected, floor)
        self.got[name] = got
        parity = parity_of(self.expected, got, tolerance)
        reasons = failures(parity, tolerance)
        agreement = self._agreement(floor, got, tolerance)
        reasons += agreement.reasons() if agreement is not None else []
        if self.promise is not None:
            task = self.artifact.manifest.task
            broken = self.promise.broken_by(task, got, tolerance.agreement)
            reasons += [broken] if broken else []
        if self.judge is not None and metrics is not None and self.max_drop is not None:
            reasons += self.judge.too_low(metrics, self.max_drop)
        if not reasons:  # of an engine that is wrong on data too, the report lists them
            reasons += [f"relation {each}" for each in failing(relations)]
        verdict = FAILED if reasons else VERIFIED
        return EngineVerdict(
            name, verdict, "; ".join(reasons), parity, tolerance, metrics, agreement, relations
        )

    def _agreement(
        self,
        floor: list[npt.NDArray[Any]] | None,
        got: list[npt.NDArray[Any]],
        tolerance: Tolerance,
    ) -> Agreement | None:
        """How often an engine says what PyTorch says, where its tolerance asks for that."""
        if tolerance.agreement is None or floor is None:
            return None
        task = self.artifact.manifest.task
        return int8_agreement(task, self.expected, floor, got, tolerance)

    def bisection(self, found: EngineVerdict) -> Bisection:
        """Where an engine leaves PyTorch: on the data, or where only relations fail, on theirs."""
        name = found.engine
        if name not in self.got:
            return self._bisected(name, self.cases, self._measured(found), {})
        engine = self.artifact.manifest.engines[name]
        runners = runners_from_engine(self.artifact, engine)
        try:
            runner = runners.get(MODEL)
            feeds = self._feeds_of_relations(found)
            if not feeds or runner is None:
                return self._bisected(name, self.cases, self._measured(found), runners)
            cases = replace(self.cases, feeds=feeds, origin=_RELATIONS)
            return self._bisected(name, cases, self._on_relations(cases, engine, runner), runners)
        finally:
            close_all(runners)

    def _bisected(
        self,
        name: str,
        cases: Cases | GenerationCases,
        measured: Measured,
        runners: dict[str, Runner],
    ) -> Bisection:
        return bisect(
            self.artifact, name, cases, self.reference, measured, runners, self.on_progress
        )

    def _measured(self, found: EngineVerdict) -> Measured:
        """What the data gave."""
        tolerance = found.tolerance
        if tolerance is None:
            engine = self.artifact.manifest.engines[found.engine]
            tolerance = self.noise.tolerance(engine, self.expected, self._floor(engine))
        return Measured(self.expected, self.got.get(found.engine), found.reason, tolerance)

    def _feeds_of_relations(self, found: EngineVerdict) -> list[Feed]:
        """The inputs of the relations that fail, if the data pass and PyTorch can be asked."""
        assert found.parity is not None
        assert found.tolerance is not None
        if failures(found.parity, found.tolerance) or isinstance(self.reference, Recorded):
            return []
        return [one.feed for one in found.relations if one.fails and one.feed is not None]

    def _on_relations(self, cases: Any, engine: Engine, runner: Runner) -> Measured:
        on_batch = partial(self.on_progress, "PyTorch on relations")
        expected = cases.values_of(self.reference, on_batch)
        floor = None
        if self.noise.key(engine):
            floor = cases.values_of(self.noise.of(engine), on_batch)
        got = cases.values_of(runner.run, on_batch)
        return Measured(expected, got, "", self.noise.tolerance(engine, expected, floor))

    def _run(
        self, name: str, runners: dict[str, Runner]
    ) -> tuple[list[npt.NDArray[Any]], EngineMetrics | None]:
        on_batch = partial(self.on_progress, name)
        if self.judge is None:
            return self.cases.of_engine(runners, on_batch), None
        if isinstance(self.cases, GenerationCases):
            return self.cases.of_engine(runners, on_batch), self._written(name, runners)
        tap = _Tap(runners[MODEL].run)
        got = self.cases.of_engine({MODEL: tap}, on_batch)
        return got, self.judge.engine_metrics(tap.outputs)

    def _written(self, name: str, runners: dict[str, Runner]) -> EngineMetrics | None:
        """The metrics of what an engine writes; None where its scores are not finite numbers."""
        assert self.judge is not None
        on_batch = partial(self.on_progress, f"{name} writes")
        engine = self.artifact.manifest.engines[name]
        try:
            found = written_by_engine(self.judge.labelled, self.artifact, engine, runners, on_batch)
        except CheckFailed:  # parity says so too, and fails
            return None
        return self.judge.metrics_of(found)

    def _floor(self, engine: Engine) -> list[npt.NDArray[Any]] | None:
        """The values of what computes as the engine's precision does; None for fp32."""
        key = self.noise.key(engine)
        if key and key not in self.floors:
            on_batch = partial(self.on_progress, f"PyTorch {key}")
            self.floors[key] = self.cases.of_reference(self.noise.of(engine), on_batch)
        return self.floors.get(key)


def yardstick_of(
    artifact: Artifact,
    cases: Cases | GenerationCases,
    labelled: Labelled | None,
    reference: Any,
    max_drop: float | None,
    on_progress: OnProgress,
) -> Yardstick:
    """Run PyTorch in fp32, and the simplified graph where there is one."""
    cases = cases.prepared(reference)
    on_batch = partial(on_progress, "PyTorch fp32")
    judge = None
    if labelled is None or isinstance(cases, GenerationCases):
        expected = cases.of_reference(reference, on_batch)
        if labelled is not None:
            on_text = partial(on_progress, "PyTorch fp32 writes")
            judge = Judge(labelled, written_by_pytorch(labelled, reference.module, on_text))
    else:
        tap = _Tap(reference)
        expected = cases.of_engine({MODEL: tap}, on_batch)
        judge = Judge(labelled, labelled.found(tap.outputs))
    promise = promise_of(artifact)
    if promise is not None:
        promise = replace(promise, expected=expected)
        reference = SimplifiedReference(graph_runner(artifact), reference)
        expected = cases.of_reference(reference, partial(on_progress, "the simplified graph"))
    return Yardstick(
        artifact,
        cases,
        reference,
        expected,
        judge,
        max_drop,
        on_progress,
        Noise(artifact, reference),
        promise=promise,
    )
