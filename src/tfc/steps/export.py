"""`tfc export`: a checkpoint becomes an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfc.artifact import MANIFEST, VOCABULARY, Artifact, new_manifest_files
from tfc.errors import TfcError, UsageError, require
from tfc.files import staged_folder
from tfc.manifest import Manifest, Step
from tfc.manifest_json import manifest_to_json
from tfc.steps.record import onnxruntime_version, versions_of

if TYPE_CHECKING:
    from tfc.exporter.exported import Exported
    from tfc.exporter.source import Source

NAME = "export"
PACKAGES = ("torch", "transformers", "onnx", "onnxscript")


@dataclass(frozen=True)
class ExportResult:
    """The artifact, and whether it was there already with nothing to change."""

    artifact: Artifact
    skipped: bool


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    task: str | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    tokenizer: bool = True,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_stage: Callable[[str], None] = lambda what: None,
) -> ExportResult:
    """Export a checkpoint to ONNX and check at once that the graph says the same.

    Args:
        checkpoint: the folder of a Hugging Face or sentence-transformers checkpoint or of an
            adapter, or a hub id.
        output: the folder to create.
        task: the task, if the checkpoint's architecture does not tell it.
        max_length: a limit in tokens on the length of a text, below the model's own.
        revision: the revision of a hub model.
        base: the base model of an adapter, if its config does not tell it (any more).
        tokenizer: without it a text model takes tensors only, and needs none in its folder.
        overwrite: replace an artifact that is there already.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: read weights that are pickles.
        on_stage: called with a few words whenever a stage begins.

    Raises:
        MissingPackage: torch, transformers or onnx, or peft for an adapter, is not installed.
        BadCheckpoint: the checkpoint is missing, incomplete or of a kind that tfc does not take.
        CheckFailed: the exported graph does not say what the checkpoint says.
        UsageError: `output` holds something else.
    """
    for package in ("torch", "transformers", "onnx", "onnxscript"):
        require(package, "compile")
    from tfc.exporter.source import source_from_checkpoint
    from tfc.exporter.tasks import task_of

    target = Path(output)
    source = source_from_checkpoint(
        str(checkpoint),
        revision=revision,
        base=base,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    task_of(source, task)  # what cannot be exported is said before torch is loaded
    step = Step(
        name=NAME,
        options={"task": task, "max_length": max_length, "tokenizer": tokenizer},
        inputs={"checkpoint": source.sha256},
        outputs=[],
        versions={**versions_of(*PACKAGES), **onnxruntime_version()},
        seconds=0.0,
    )
    existing = existing_artifact(target, step, overwrite)
    if existing is not None:
        return ExportResult(existing, skipped=True)
    artifact = write_artifact(
        target,
        step,
        lambda folder: _exported(
            source,
            folder,
            task=task,
            max_length=max_length,
            tokenizer=tokenizer,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            on_stage=on_stage,
        ),
    )
    return ExportResult(artifact, skipped=False)


def _exported(source: Source, folder: Path, **options: Any) -> Exported:
    """`export_checkpoint`, whose packages take seconds to load, when there is something to do."""
    from tfc.exporter.export import export_checkpoint

    return export_checkpoint(source, folder, **options)


def existing_artifact(target: Path, step: Step | None, overwrite: bool) -> Artifact | None:
    """The artifact that is already there and up to date; None if one is to be written.

    Without a step nothing that is there counts as up to date.

    Raises:
        UsageError: something else is there, or an artifact that was not to be replaced.
    """
    if not target.exists():
        return None
    if target.is_dir() and not any(target.iterdir()):
        return None
    try:
        artifact = Artifact.open(target)
    except TfcError as error:
        if (target / MANIFEST).is_file() and overwrite:
            return None
        if (target / MANIFEST).is_file():
            raise
        raise UsageError(
            "this exists already and is not an artifact",
            where=str(target),
            fix="Choose another folder for -o",
        ) from error
    whole = VOCABULARY not in artifact.manifest.files  # what export writes has all tokens
    if step is not None and whole and artifact.up_to_date(step) is not None:
        return artifact
    if overwrite:
        return None
    raise UsageError(
        "there is an artifact here already, made from another checkpoint or with other options",
        where=str(target),
        fix="Choose another folder for -o, or replace it with --overwrite",
    )


def write_artifact(target: Path, step: Step, work: Callable[[Path], Exported]) -> Artifact:
    """Let `work` write graphs into a folder, add the manifest, and put the folder at `target`.

    Raises:
        CheckFailed: a graph is wrong; what shows it is kept in `<target>.failed`.
    """
    from tfc.exporter.comparison import GraphDiffers
    from tfc.exporter.evidence import failure_with_evidence

    begun = time.perf_counter()
    with staged_folder(target) as folder:
        try:
            exported = work(folder)
        except GraphDiffers as error:
            raise failure_with_evidence(error, target) from error
        manifest = _manifest(exported, folder, step, time.perf_counter() - begun)
        (folder / MANIFEST).write_text(manifest_to_json(manifest), encoding="utf-8")
    return Artifact.open(target)


def _manifest(exported: Exported, folder: Path, step: Step, seconds: float) -> Manifest:
    files = new_manifest_files(folder)
    result: dict[str, Any] = {"parity": exported.parity.as_json()}
    if exported.longest:
        result["longest"] = exported.longest
    if exported.shared:
        result["shared"] = exported.shared
    done = Step(
        name=step.name,
        options=step.options,
        inputs=step.inputs,
        outputs=sorted(files),
        versions=step.versions,
        seconds=seconds,
        result=result,
    )
    return Manifest(
        tfc=step.versions["tfc"],
        checkpoint=exported.checkpoint,
        task=exported.task,
        graphs=exported.graphs,
        preprocess=exported.preprocess,
        images=exported.images,
        audio=exported.audio,
        ensemble=exported.ensemble,
        files=files,
        steps=[done],
    )
