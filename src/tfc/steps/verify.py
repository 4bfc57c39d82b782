"""`tfc verify`: does each engine still say what PyTorch says?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import BackendUnavailable, BadArtifact, UsageError
from tfc.manifest import MODEL, Engine
from tfc.runtime.backends import backend as backend_of
from tfc.runtime.backends.base import Runner
from tfc.runtime.engine import close_all, runners_from_engine
from tfc.runtime.padding import Feed
from tfc.runtime.parity import failures, parity_of, tolerance_of
from tfc.steps.batches import Outputs
from tfc.steps.cases import Cases, cases_of
from tfc.steps.generation_cases import GenerationCases
from tfc.steps.int8_options import INT8
from tfc.steps.int8_verdict import floor_runner, int8_agreement, int8_tolerance
from tfc.steps.labelled import LabelColumns, Labelled, labelled_from_jsonl
from tfc.steps.record import OnProgress, no_progress
from tfc.steps.reference import reference_from_artifact
from tfc.steps.task_metrics import EngineMetrics, Judge
from tfc.steps.verify_report import (
    FAILED,
    NOT_RUN,
    VERIFIED,
    EngineVerdict,
    VerifyResult,
    record_result,
)

# PyTorch in fp32 is run on at most this many rows unless the caller asks for more.
DEFAULT_LIMIT = 512
_TEXT = "text"


def verify(
    artifact: Artifact | str | Path,
    *,
    engines: Sequence[str] = (),
    data: str | Path | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    max_drop: float | None = None,
    limit: int = DEFAULT_LIMIT,
    checkpoint: str | None = None,
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_progress: OnProgress = no_progress,
) -> VerifyResult:
    """Run engines and PyTorch on the same text and compare them.

    With labels also what the differences cost: the metrics of the task (`tfc.metrics`), of
    PyTorch and of each engine.

    Args:
        artifact: an artifact with engines.
        engines: the engines' names; all of them if empty.
        data: a JSONL file with a text per row; the samples kept at export if None.
        text_column: the field that holds the text; ``text`` if None, or ``question`` where
            labelled rows answer questions.
        pair_column: the field that holds the second text of labelled rows; if None ``context``
            for questions, ``text_pair`` for embeddings, and else there is none.
        label_column: the field that holds the label; no metrics if None.
        max_drop: an engine fails if its main metric is further below PyTorch's: 0.005 is half a
            point. Not a gate if None.
        limit: compare the first so many rows.
        checkpoint: where the checkpoint is now, if it was moved since export.
        base: where the base model of an adapter is now.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: read weights that are pickles.
        on_progress: called with what is under way.

    Raises:
        UsageError: the artifact has no engine, or none of that name, or the arguments contradict
            each other, or there are no metrics for the task.
        BadData: the data file cannot be used.
        BadCheckpoint: the checkpoint is not there or is another one.
        MissingPackage: the metrics need a package that is not installed.
    """
    artifact = Artifact.of(artifact)
    names = _engine_names(artifact, engines)
    _check_labels(data, pair_column, label_column, max_drop)
    labelled = None
    cases: Cases | GenerationCases
    if data is not None and label_column is not None:
        columns = LabelColumns(label_column, text_column, pair_column)
        labelled = labelled_from_jsonl(artifact, data, columns, limit)
        cases = labelled.cases
    else:
        cases = cases_of(artifact, data, text_column or _TEXT, limit)
    # Each kind of cases asks its own kind of reference.
    reference: Any = cases.recorded if isinstance(cases, Cases) else None
    if reference is None:
        reference = reference_from_artifact(
            artifact,
            checkpoint=checkpoint,
            base=base,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
    yardstick = _yardstick(artifact, cases, labelled, reference, max_drop, on_progress)
    found = tuple(yardstick.verdict(name) for name in names)
    result = VerifyResult(artifact, found, yardstick.cases, yardstick.judge, max_drop)
    record_result(result)
    return result


def _check_labels(
    data: str | Path | None,
    pair_column: str | None,
    label_column: str | None,
    max_drop: float | None,
) -> None:
    if label_column is not None and data is None:
        raise UsageError(
            "there is a label column, and no data that has it",
            fix="Name a file of JSON lines with --data",
        )
    if label_column is None and max_drop is not None:
        raise UsageError(
            "a drop of a metric needs labels to measure it",
            fix="Name the field with the labels: --label-column",
        )
    if label_column is None and pair_column is not None:
        raise UsageError(
            "a second text is read with labels only",
            fix="Leave --pair-column out, or name the field with the labels: --label-column",
        )
    if max_drop is not None and not 0 <= max_drop < 1:
        raise UsageError(f"max_drop {max_drop} is not possible", fix="Give a share: 0.005 is 0.5 %")


def _engine_names(artifact: Artifact, asked: Sequence[str]) -> list[str]:
    engines = artifact.manifest.engines
    if not engines:
        raise UsageError(
            "this artifact has no engine to verify",
            where=str(artifact.path),
            fix=f"Build one with: tfc build-engine {artifact.path}",
        )
    unknown = [name for name in asked if name not in engines]
    if unknown:
        raise UsageError(
            f"this artifact has no engine '{unknown[0]}'",
            where=str(artifact.path),
            fix=f"Choose among: {', '.join(engines)}",
        )
    return list(asked) or list(engines)


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
class _Yardstick:
    """What engines are compared with: PyTorch's values, and its metrics where there are labels.

    `floors` are the values of PyTorch in other precisions, once they were asked for.
    """

    artifact: Artifact
    cases: Cases | GenerationCases
    reference: Any
    expected: list[npt.NDArray[Any]]
    judge: Judge | None
    max_drop: float | None
    on_progress: OnProgress
    floors: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)

    def verdict(self, name: str) -> EngineVerdict:
        """Run one engine and compare it."""
        engine = self.artifact.manifest.engines[name]
        reason = _why_not_run(engine)
        if reason:
            return EngineVerdict(name, NOT_RUN, reason, None, None)
        int8 = engine.precision == INT8
        floor = self._floor_of_int8(engine) if int8 else self._floor(engine.precision)
        try:
            runners = runners_from_engine(self.artifact, engine)
        except (BadArtifact, BackendUnavailable) as error:
            return EngineVerdict(name, FAILED, str(error), None, None)
        try:
            got, metrics = self._run(name, runners)
        finally:
            close_all(runners)
        if int8 and floor is not None:
            tolerance = int8_tolerance(self.artifact, engine, self.expected, floor)
        else:
            tolerance = tolerance_of(self.expected, floor, engine.precision)
        parity = parity_of(self.expected, got, tolerance)
        reasons = failures(parity, tolerance)
        agreement = None
        if int8 and floor is not None:
            task = self.artifact.manifest.task
            agreement = int8_agreement(task, self.expected, floor, got, tolerance)
            reasons += agreement.reasons()
        if self.judge is not None and metrics is not None and self.max_drop is not None:
            reasons += self.judge.too_low(metrics, self.max_drop)
        verdict = FAILED if reasons else VERIFIED
        return EngineVerdict(
            name, verdict, "; ".join(reasons), parity, tolerance, metrics, agreement
        )

    def _run(
        self, name: str, runners: dict[str, Runner]
    ) -> tuple[list[npt.NDArray[Any]], EngineMetrics | None]:
        on_batch = partial(self.on_progress, name)
        if self.judge is None:
            return self.cases.of_engine(runners, on_batch), None
        tap = _Tap(runners[MODEL].run)
        got = self.cases.of_engine({MODEL: tap}, on_batch)
        return got, self.judge.engine_metrics(tap.outputs)

    def _floor_of_int8(self, engine: Engine) -> list[npt.NDArray[Any]]:
        """The values of the fp32 graph with the engine's products in int8."""
        runner = floor_runner(self.artifact, engine)
        return self.cases.of_engine({MODEL: runner}, partial(self.on_progress, "int8 floor"))

    def _floor(self, precision: str) -> list[npt.NDArray[Any]] | None:
        """PyTorch's values in the engine's own precision; None for fp32."""
        if precision != "fp32" and precision not in self.floors:
            on_batch = partial(self.on_progress, f"PyTorch {precision}")
            half = self.reference.in_precision(precision)
            self.floors[precision] = self.cases.of_reference(half, on_batch)
        return self.floors.get(precision)


def _yardstick(
    artifact: Artifact,
    cases: Cases | GenerationCases,
    labelled: Labelled | None,
    reference: Any,
    max_drop: float | None,
    on_progress: OnProgress,
) -> _Yardstick:
    """Run PyTorch in fp32."""
    cases = cases.prepared(reference)
    on_batch = partial(on_progress, "PyTorch fp32")
    judge = None
    if labelled is None:
        expected = cases.of_reference(reference, on_batch)
    else:
        tap = _Tap(reference)
        expected = labelled.cases.of_engine({MODEL: tap}, on_batch)
        judge = Judge(labelled, labelled.found(tap.outputs))
    return _Yardstick(artifact, cases, reference, expected, judge, max_drop, on_progress)
