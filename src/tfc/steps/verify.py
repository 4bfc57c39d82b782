"""`tfc verify`: does each engine still say what PyTorch says?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import VERIFY_REPORT, Artifact
from tfc.errors import BackendUnavailable, BadArtifact, UsageError
from tfc.manifest import Engine, Verdict
from tfc.runtime.backends import backend as backend_of
from tfc.runtime.engine import close_all, runners_from_engine
from tfc.runtime.parity import Parity, Tolerance, failures, parity_of, tolerance_of
from tfc.steps.cases import Cases, cases_of
from tfc.steps.generation_cases import GenerationCases
from tfc.steps.record import OnProgress, no_progress, versions_of
from tfc.steps.reference import reference_from_artifact

VERIFIED, FAILED, NOT_RUN = "verified", "failed", "not run"
# PyTorch in fp32 is run on at most this many rows unless the caller asks for more.
DEFAULT_LIMIT = 512
KEPT_OUTPUTS = "what PyTorch gave at export"


@dataclass(frozen=True)
class EngineVerdict:
    """What was found for one engine. `parity` and `tolerance` are None where it was not run."""

    engine: str
    verdict: str
    reason: str
    parity: Parity | None
    tolerance: Tolerance | None


@dataclass(frozen=True)
class VerifyResult:
    """The verdicts, and what they were found on."""

    artifact: Artifact
    verdicts: tuple[EngineVerdict, ...]
    cases: Cases | GenerationCases

    @property
    def rows(self) -> int:
        """How many inputs were compared."""
        return self.cases.rows

    @property
    def output(self) -> str:
        """The names of the outputs that were compared."""
        return ", ".join(self.cases.outputs)

    @property
    def reference(self) -> str:
        """What engines were compared with."""
        if isinstance(self.cases, Cases) and self.cases.recorded is not None:
            return KEPT_OUTPUTS
        return f"PyTorch with {self.artifact.manifest.checkpoint.source}"

    @property
    def failed(self) -> list[str]:
        """The engines that failed."""
        return [v.engine for v in self.verdicts if v.verdict == FAILED]


def verify(
    artifact: Artifact | str | Path,
    *,
    engines: Sequence[str] = (),
    data: str | Path | None = None,
    text_column: str = "text",
    limit: int = DEFAULT_LIMIT,
    checkpoint: str | None = None,
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_progress: OnProgress = no_progress,
) -> VerifyResult:
    """Run engines and PyTorch on the same text and compare them.

    Args:
        artifact: an artifact with engines.
        engines: the engines' names; all of them if empty.
        data: a JSONL file with a text per row; the samples kept at export if None.
        text_column: the field that holds the text.
        limit: compare the first so many rows.
        checkpoint: where the checkpoint is now, if it was moved since export.
        base: where the base model of an adapter is now.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: read weights that are pickles.
        on_progress: called with what is under way.

    Raises:
        UsageError: the artifact has no engine, or none of that name.
        BadData: the data file cannot be used.
        BadCheckpoint: the checkpoint is not there or is another one.
    """
    artifact = Artifact.of(artifact)
    names = _engine_names(artifact, engines)
    cases = cases_of(artifact, data, text_column, limit)
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
    cases = cases.prepared(reference)
    expected = cases.of_reference(reference, partial(on_progress, "PyTorch fp32"))
    floors: dict[str, list[npt.NDArray[Any]]] = {}
    found = []
    for name in names:
        engine = artifact.manifest.engines[name]
        precision = engine.precision
        if precision != "fp32" and precision not in floors and _why_not_run(engine) == "":
            half = reference.in_precision(precision)
            floors[precision] = cases.of_reference(
                half, partial(on_progress, f"PyTorch {precision}")
            )
        floor = floors.get(precision)
        found.append(_verdict(artifact, name, cases, expected, floor, on_progress))
    result = VerifyResult(artifact, tuple(found), cases)
    _record(result)
    return result


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


def _verdict(
    artifact: Artifact,
    name: str,
    cases: Cases | GenerationCases,
    expected: list[npt.NDArray[Any]],
    floor: list[npt.NDArray[Any]] | None,
    on_progress: OnProgress,
) -> EngineVerdict:
    engine = artifact.manifest.engines[name]
    reason = _why_not_run(engine)
    if reason:
        return EngineVerdict(name, NOT_RUN, reason, None, None)
    try:
        runners = runners_from_engine(artifact, engine)
    except (BadArtifact, BackendUnavailable) as error:
        return EngineVerdict(name, FAILED, str(error), None, None)
    try:
        got = cases.of_engine(runners, partial(on_progress, name))
    finally:
        close_all(runners)
    tolerance = tolerance_of(expected, floor, engine.precision)
    parity = parity_of(expected, got, tolerance)
    reasons = failures(parity, tolerance)
    return EngineVerdict(
        name, FAILED if reasons else VERIFIED, "; ".join(reasons), parity, tolerance
    )


def _record(result: VerifyResult) -> None:
    """Write reports/verify.json and the verdicts into the manifest."""
    artifact = result.artifact
    versions = versions_of("torch", "transformers")
    records = dict(artifact.manifest.verdicts)
    for found in result.verdicts:
        engine = artifact.manifest.engines[found.engine]
        records[found.engine] = Verdict(
            verdict=found.verdict,
            reason=found.reason,
            engine_sha256=artifact.engine_sha256(engine),
            data_sha256=result.cases.sha256,
            tolerance=found.tolerance.as_json() if found.tolerance else {},
            outputs={result.output: found.parity.as_json()} if found.parity else {},
            versions={**versions, **engine.versions},
            hardware=backend_of(engine.backend).availability().hardware,
        )
    report = {
        "data": result.cases.origin,
        "reference": result.reference,
        "rows": result.rows,
        "engines": {v.engine: dataclasses.asdict(records[v.engine]) for v in result.verdicts},
        "tolerance_source": {
            v.engine: v.tolerance.source for v in result.verdicts if v.tolerance is not None
        },
    }
    with artifact.change() as change:
        text = json.dumps(_without_nan(report), indent=2, ensure_ascii=False, default=float)
        change.path(VERIFY_REPORT).write_text(text + "\n", encoding="utf-8")
        change.manifest = dataclasses.replace(
            change.manifest, verdicts={k: _finite(v) for k, v in records.items()}
        )


def _finite(verdict: Verdict) -> Verdict:
    outputs = {k: _without_nan(v) for k, v in verdict.outputs.items()}
    return dataclasses.replace(verdict, outputs=outputs)


def _without_nan(value: Any) -> Any:
    """JSON has no infinity and no NaN: a value that is neither finite is left out."""
    if isinstance(value, dict):
        return {
            k: _without_nan(v)
            for k, v in value.items()
            if not (isinstance(v, float) and not np.isfinite(v))
        }
    return value
