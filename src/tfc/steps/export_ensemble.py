"""`tfc export` with `--ensemble` or `--heads`: several checkpoints become one artifact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.artifact import Artifact
from tfc.ensemble import Combination, combination_of, side_by_side
from tfc.errors import require
from tfc.manifest import Step
from tfc.steps.export import NAME, PACKAGES, ExportResult, existing_artifact, write_artifact
from tfc.steps.record import onnxruntime_version, versions_of
from tfc.steps.stack import stage_given


def export_ensemble(
    checkpoints: Sequence[str | Path],
    output: str | Path,
    *,
    ensemble: str,
    weights: Sequence[float] | None = None,
    normalize: str | None = None,
    temperature: Sequence[float] | None = None,
    stack: Any = None,
    task: str | None = None,
    max_length: int | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_stage: Callable[[str], None] = lambda what: None,
) -> ExportResult:
    """Export several models that do one task as one graph that gives their combination.

    It is compared at once with the same ensemble in PyTorch. Models with the same tokenizer share
    their inputs, and what several compute alike (a frozen backbone) is computed once.

    Args:
        checkpoints: two or more, as `export` takes them. They have the same labels, in any order;
            the first one's order is the ensemble's.
        output: the folder to create.
        ensemble: `mean`, `weighted`, `vote`, `max` or `stack` (`tfc.ensemble`).
        weights: for `weighted`, a number above 0 for each checkpoint; their sum need not be 1.
        normalize: what is combined: `softmax` (probabilities; the default), `zscore` (logits
            with mean 0 and standard deviation 1 over the labels of a text) or `temperature`
            (probabilities of logits that are divided by a temperature first).
        temperature: for `temperature`, a number above 0 for each checkpoint.
        stack: for `stack`, the second stage, fitted on what `tfc.stack_features` gives: a model
            that `tfc.second_stage` takes, what it gave, or the place of its file.
        task: the task of all, if their architectures do not tell it.
        max_length: a limit in tokens on the length of a text, below the models' own.
        overwrite: replace an artifact that is there already.
        trust_remote_code: run Python code that comes with the checkpoints.
        allow_pickle: read weights that are pickles.
        on_stage: called with a few words whenever a stage begins.

    Raises:
        MissingPackage: torch, transformers or onnx, or peft for an adapter, is not installed.
        UsageError: the checkpoints do not fit each other, the arguments do not, or `output` holds
            something else.
        BadCheckpoint: a checkpoint is missing, incomplete or of a kind that tfc does not take.
        BadData: the file of the second stage is none.
        CheckFailed: the exported graph does not say what the ensemble says.
    """
    combination = combination_of(
        len(checkpoints),
        ensemble,
        weights=weights,
        normalize=normalize,
        temperatures=temperature,
        stage=stage_given(stack) if stack is not None else None,
    )
    options = {
        "task": task,
        "max_length": max_length,
        "ensemble": ensemble,
        "normalize": normalize,
        "weights": list(combination.weights),
        "temperature": list(combination.temperatures),
    }
    return _exported(
        _Call(checkpoints, Path(output), combination, (), options, overwrite),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        on_stage=on_stage,
    )


def export_combined(
    checkpoints: Sequence[str | Path],
    target: Path,
    combination: Combination,
    *,
    task: str | None,
    max_length: int | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Artifact:
    """Export models and a combination that is no choice of a caller, into a new folder."""
    options = {"task": task, "max_length": max_length, "ensemble": combination.rule}
    return _exported(
        _Call(checkpoints, target, combination, (), options, overwrite=False),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        on_stage=lambda what: None,
    ).artifact


def export_heads(
    checkpoints: Sequence[str | Path],
    output: str | Path,
    *,
    heads: Sequence[str],
    task: str | None = None,
    max_length: int | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_stage: Callable[[str], None] = lambda what: None,
) -> ExportResult:
    """Export several classifiers as one graph with an output for each.

    What they compute alike, a backbone that was frozen, is computed once. A prediction holds what
    each classifier says, by its name.

    Args:
        checkpoints: two or more classifiers of texts with one tokenizer, and labels of their own.
        output: the folder to create.
        heads: a name for each: that of its output, and of its part of a prediction.
        task: the task of all, if their architectures do not tell it.
        max_length: a limit in tokens on the length of a text, below the models' own.
        overwrite: replace an artifact that is there already.
        trust_remote_code: run Python code that comes with the checkpoints.
        allow_pickle: read weights that are pickles.
        on_stage: called with a few words whenever a stage begins.

    Raises:
        MissingPackage: torch, transformers or onnx, or peft for an adapter, is not installed.
        UsageError: names or checkpoints do not fit each other, or `output` holds something else.
        BadCheckpoint: a checkpoint is missing, incomplete or of a kind that tfc does not take.
        CheckFailed: the exported graph does not say what the classifiers say.
    """
    combination = side_by_side(len(checkpoints), heads)
    options = {"task": task, "max_length": max_length, "heads": list(heads)}
    return _exported(
        _Call(checkpoints, Path(output), combination, tuple(heads), options, overwrite),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        on_stage=on_stage,
    )


@dataclass(frozen=True)
class _Call:
    """What is to be made; `options` are what the step's record holds."""

    checkpoints: Sequence[str | Path]
    target: Path
    combination: Combination
    heads: tuple[str, ...]
    options: dict[str, Any]
    overwrite: bool


def _exported(
    call: _Call,
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
    on_stage: Callable[[str], None],
) -> ExportResult:
    for package in PACKAGES:
        require(package, "compile")
    from tfc.exporter.ensemble.export import export_ensemble as export_together
    from tfc.exporter.source import source_from_checkpoint

    sources = [
        source_from_checkpoint(
            str(checkpoint),
            revision=None,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
        for checkpoint in call.checkpoints
    ]
    inputs = {f"checkpoint {n}": source.sha256 for n, source in enumerate(sources, start=1)}
    if call.combination.stage is not None:
        inputs["stage"] = call.combination.stage.sha256
    step = Step(
        name=NAME,
        options=call.options,
        inputs=inputs,
        outputs=[],
        versions={**versions_of(*PACKAGES), **onnxruntime_version()},
        seconds=0.0,
    )
    existing = existing_artifact(call.target, step, call.overwrite)
    if existing is not None:
        return ExportResult(existing, skipped=True)
    artifact = write_artifact(
        call.target,
        step,
        lambda folder: export_together(
            sources,
            folder,
            call.combination,
            heads=call.heads,
            task=call.options["task"],
            max_length=call.options["max_length"],
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            on_stage=on_stage,
        ),
    )
    return ExportResult(artifact, skipped=False)
