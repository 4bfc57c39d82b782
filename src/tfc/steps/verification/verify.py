"""`tfc verify`: does each engine still say what PyTorch says?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.simplified_graph import simplify_step
from tfc.steps.cases import Cases, cases_of
from tfc.steps.generation_cases import GenerationCases
from tfc.steps.record import OnProgress, no_progress
from tfc.steps.reference import reference_from_artifact
from tfc.steps.verification.labelled import LabelColumns, labelled_from_jsonl
from tfc.steps.verification.relations import Relations
from tfc.steps.verification.report import VerifyResult, record_result
from tfc.steps.verification.yardstick import yardstick_of

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
    relations: bool = True,
    bisect: bool = False,
    checkpoint: str | Sequence[str] | None = None,
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
        relations: check as well what must hold for any data
            (`tfc.steps.verification.relations`): padding on either side, the independence of rows,
            odd texts.
        bisect: find the first pass, layer and node where an engine leaves PyTorch.
        checkpoint: where the checkpoint is now, if it was moved since export; for an ensemble
            one for each member, in their order.
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
    if bisect and simplify_step(artifact) is not None:
        raise UsageError(
            "PyTorch's modules are not those of a simplified graph, so they cannot be compared",
            where=str(artifact.path),
            fix="Go back to the exported graph first: tfc optimize --no-simplify",
        )
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
    yardstick = yardstick_of(artifact, cases, labelled, reference, max_drop, on_progress)
    if relations:
        checks = Relations(artifact, yardstick.reference, yardstick.noise, yardstick.scale)
        yardstick = replace(yardstick, relations=checks)
    found = tuple(yardstick.verdict(name) for name in names)
    bisections = tuple(yardstick.bisection(one) for one in found) if bisect else ()
    result = VerifyResult(artifact, found, yardstick.cases, yardstick.judge, max_drop, bisections)
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
