"""What `tfc verify` found, in reports/verify.json and in the manifest."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from tfc.artifact import BISECT_FOLDER, VERIFY_REPORT, Artifact, Change
from tfc.manifest import Verdict
from tfc.runtime.backends import backend as backend_of
from tfc.runtime.parity import Parity, Tolerance
from tfc.steps.bisection.report import Bisection
from tfc.steps.cases import Cases
from tfc.steps.generation_cases import GenerationCases
from tfc.steps.int8.verdict import Agreement
from tfc.steps.record import versions_of
from tfc.steps.verification.relations import Relation
from tfc.steps.verification.task_metrics import EngineMetrics, Judge

VERIFIED, FAILED, NOT_RUN = "verified", "failed", "not run"
KEPT_OUTPUTS = "what PyTorch gave at export"


@dataclass(frozen=True)
class EngineVerdict:
    """What was found for one engine.

    `parity` and `tolerance` are None where it was not run, `metrics` also where the data has no
    labels, `agreement` but for int8. `relations` are what must hold for any data; empty where they
    were not wanted.
    """

    engine: str
    verdict: str
    reason: str
    parity: Parity | None
    tolerance: Tolerance | None
    metrics: EngineMetrics | None = None
    agreement: Agreement | None = None
    relations: tuple[Relation, ...] = ()


@dataclass(frozen=True)
class VerifyResult:
    """The verdicts, and what they were found on.

    `judge` holds PyTorch's metrics on labelled rows, `max_drop` how much worse an engine's may be.
    `bisections` says where engines leave PyTorch, if that was asked for.
    """

    artifact: Artifact
    verdicts: tuple[EngineVerdict, ...]
    cases: Cases | GenerationCases
    judge: Judge | None = None
    max_drop: float | None = None
    bisections: tuple[Bisection, ...] = ()

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

    def as_json(self) -> dict[str, Any]:
        """The report as reports/verify.json holds it."""
        records = verdicts_of(self)
        report = {
            "data": self.cases.origin,
            "reference": self.reference,
            "rows": self.rows,
            "engines": {name: dataclasses.asdict(record) for name, record in records.items()},
            "tolerance_source": {
                v.engine: v.tolerance.source for v in self.verdicts if v.tolerance is not None
            },
        }
        if self.judge is not None:
            engines = {v.engine: v.metrics.as_json() for v in self.verdicts if v.metrics}
            report["metrics"] = {
                **self.judge.as_json(),
                "max_drop": self.max_drop,
                "engines": engines,
            }
        relations = {v.engine: [r.as_json() for r in v.relations] for v in self.verdicts}
        if any(relations.values()):
            report["relations"] = relations
        if self.bisections:
            report["bisect"] = {each.engine: each.as_json() for each in self.bisections}
        plain: dict[str, Any] = _without_nan(report)
        return plain


def verdicts_of(result: VerifyResult) -> dict[str, Verdict]:
    """The verdicts as the manifest holds them, by engine."""
    artifact = result.artifact
    versions = versions_of("torch", "transformers")
    gate = {} if result.max_drop is None else {"max_drop": result.max_drop}
    records = {}
    for found in result.verdicts:
        engine = artifact.manifest.engines[found.engine]
        outputs = {result.output: found.parity.as_json()} if found.parity else {}
        if found.agreement is not None:
            outputs[result.output]["agreement"] = found.agreement.value
            outputs[result.output]["distance"] = found.agreement.distance
        records[found.engine] = Verdict(
            verdict=found.verdict,
            reason=found.reason,
            engine_sha256=artifact.engine_sha256(engine),
            data_sha256=result.cases.sha256,
            tolerance={**found.tolerance.as_json(), **gate} if found.tolerance else {},
            outputs=_without_nan(outputs),
            versions={**versions, **engine.versions},
            hardware=backend_of(engine.backend).availability().hardware,
        )
    return records


def record_result(result: VerifyResult) -> None:
    """Write reports/verify.json and the verdicts into the manifest."""
    verdicts = {**result.artifact.manifest.verdicts, **verdicts_of(result)}
    with result.artifact.change() as change:
        text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, default=float)
        change.path(VERIFY_REPORT).write_text(text + "\n", encoding="utf-8")
        _write_reproducers(result, change)
        change.manifest = dataclasses.replace(change.manifest, verdicts=verdicts)


def _write_reproducers(result: VerifyResult, change: Change) -> None:
    """The sub-graphs of these bisections, in place of those of earlier ones."""
    for bisection in result.bisections:
        prefix = f"{BISECT_FOLDER}/{bisection.engine}/"
        for name in [name for name in change.manifest.files if name.startswith(prefix)]:
            change.drop(name)
        if bisection.reproducer is not None:
            bisection.reproducer.write(change.folder / bisection.reproducer.folder)


def _without_nan(value: Any) -> Any:
    """JSON has no infinity and no NaN: a value that is neither finite is left out."""
    if isinstance(value, dict):
        return {
            k: _without_nan(v)
            for k, v in value.items()
            if not (isinstance(v, float) and not math.isfinite(v))
        }
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return value
