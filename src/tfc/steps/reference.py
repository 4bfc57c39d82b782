"""PyTorch as the reference: the checkpoint behind the artifact, run on the same tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import BadCheckpoint, CheckFailed, UsageError, require
from tfc.manifest import MODEL, Checkpoint, Ensemble
from tfc.runtime.padding import Feed
from tfc.stage import stage_from_file
from tfc.tensor_samples import TENSOR_SAMPLES, TensorSample, tensor_samples_from
from tfc.vocabulary import vocabulary_of, vocabulary_outputs

if TYPE_CHECKING:
    from tfc.exporter.source import Source


@dataclass(frozen=True)
class Reference:
    """A loaded checkpoint; call it with the graph's inputs."""

    module: Any
    outputs: tuple[str, ...]
    dtype: str = "float32"

    def __call__(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """The outputs for one batch, as float32 arrays by name."""
        import torch

        with torch.inference_mode():
            given = self.module(*(self._tensor(array) for array in feed.values()))
        found = given if isinstance(given, tuple) else (given,)
        return {
            name: np.asarray(tensor.float().numpy())
            for name, tensor in zip(self.outputs, found, strict=True)
        }

    def _tensor(self, array: npt.NDArray[Any]) -> Any:
        """An input as a tensor; one of floats (pixels) in the module's own precision."""
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(getattr(torch, self.dtype)) if tensor.is_floating_point() else tensor

    def in_precision(self, precision: str) -> Reference:
        """The same model computing in `fp16` or `bf16`: the noise floor of that precision."""
        import copy

        import torch

        dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
        module = copy.deepcopy(self.module).to(getattr(torch, dtype))
        return Reference(module, self.outputs, dtype)


@dataclass(frozen=True)
class Recorded:
    """What PyTorch gave at export for the samples of a module that is not there any more."""

    samples: tuple[TensorSample, ...]
    precision: str = "fp32"

    def __call__(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """The outputs for the inputs of one of the samples."""
        sample = next(each for each in self.samples if each.inputs is feed)
        return sample.outputs[self.precision]

    def in_precision(self, precision: str) -> Recorded:
        """What it gave in `fp16` or `bf16`.

        Raises:
            CheckFailed: PyTorch could not run the module so.
        """
        if any(precision not in sample.outputs for sample in self.samples):
            raise CheckFailed(
                f"PyTorch could not run this module in {precision} at export, so nothing tells "
                f"how far an engine in {precision} may be from fp32",
                fix="Verify the engines in fp32: name them with --engine",
            )
        return Recorded(self.samples, precision)


def recorded_from_artifact(artifact: Artifact) -> Recorded:
    """The samples that export kept with PyTorch's outputs.

    Raises:
        BadArtifact: they are damaged.
    """
    return Recorded(tuple(tensor_samples_from(artifact.file(TENSOR_SAMPLES))))


def reference_from_artifact(
    artifact: Artifact,
    *,
    checkpoint: str | Sequence[str] | None = None,
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Reference:
    """Load the checkpoint that the artifact was exported from, with the same head.

    Of an ensemble its members, and what combines them. With a trimmed vocabulary it takes and
    gives the ids of that one, and computes with all tokens.

    Args:
        artifact: the artifact.
        checkpoint: where the checkpoint is now, if it was moved since export; for an ensemble
            one for each member, in their order.
        base: where the base model of an adapter is now.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: read weights that are pickles.

    Raises:
        MissingPackage: torch or transformers is not installed.
        BadCheckpoint: it is not there any more, or it is not the one that was exported.
        UsageError: the artifact was made from a module, and holds PyTorch's outputs only; or
            there are fewer or more checkpoints than models.
    """
    if TENSOR_SAMPLES in artifact.manifest.files:
        raise UsageError(
            "this artifact was made from a module, whose code it does not hold",
            where=str(artifact.path),
            fix="Compare with what PyTorch gave at export: tfc verify",
        )
    require("torch", "compile")
    require("transformers", "compile")
    manifest, ensemble = artifact.manifest, artifact.manifest.ensemble
    records = [m.checkpoint for m in ensemble.members] if ensemble else [manifest.checkpoint]
    allowed = _Allowed(trust_remote_code, allow_pickle)
    tasks = [head.name for head in manifest.task.heads.values()]
    tasks = tasks or [manifest.task.name] * len(records)
    adapters = any(record.base for record in records)
    modules = [
        # Among adapters a whole model has no base; without any, a base is an error of the call.
        _module(record, task, place, base if record.base or not adapters else None, allowed)
        for record, task, place in zip(
            records, tasks, _places(checkpoint, len(records)), strict=True
        )
    ]
    module = modules[0] if ensemble is None else _ensemble(artifact, ensemble, modules)
    vocabulary = vocabulary_of(artifact)
    if vocabulary is not None:
        from tfc.exporter.kept_vocabulary import use_kept_tokens

        wide = vocabulary_outputs(manifest.task.name)
        use_kept_tokens(module, vocabulary, next(iter(manifest.graphs.values())).input_names, wide)
    return Reference(module, tuple(spec.name for spec in manifest.signature.outputs))


def _ensemble(artifact: Artifact, ensemble: Ensemble, modules: list[Any]) -> Any:
    """What combines the members."""
    from tfc.exporter.ensemble.module import ensemble_module

    names = artifact.manifest.graphs[MODEL].input_names
    stage = stage_from_file(artifact.file(ensemble.stage.file)) if ensemble.stage else None
    return ensemble_module(ensemble, artifact.manifest.task, modules, names, stage)


@dataclass(frozen=True)
class _Allowed:
    """What loading may do."""

    trust_remote_code: bool
    allow_pickle: bool


def _places(checkpoint: str | Sequence[str] | None, models: int) -> list[str | None]:
    """Where the checkpoint of each model is now; None where it is where it was."""
    if not checkpoint:
        return [None] * models
    places: list[str | None] = [checkpoint] if isinstance(checkpoint, str) else [*checkpoint]
    if len(places) != models:
        made = "1 checkpoint" if models == 1 else f"{models} checkpoints"
        raise UsageError(
            f"this artifact was made from {made}, and {len(places)} were given",
            fix="Repeat --checkpoint for each, in the order in which they were exported",
        )
    return places


def _module(
    record: Checkpoint, task: str, place: str | None, base: str | None, allowed: _Allowed
) -> Any:
    """The module that was exported, from its checkpoint."""
    from tfc.exporter.loading import model_from_source
    from tfc.exporter.tasks import task_of
    from tfc.exporter.text import text_module

    source = _source(record, place, base, allowed)
    spec = task_of(source, task)
    model = model_from_source(
        source,
        spec,
        trust_remote_code=allowed.trust_remote_code,
        allow_pickle=allowed.allow_pickle,
    )
    return text_module(source, spec, model)


def _source(record: Checkpoint, place: str | None, base: str | None, allowed: _Allowed) -> Source:
    """The checkpoint of a record, which must be the same still."""
    from tfc.exporter.source import source_from_checkpoint

    given = place or record.source
    try:
        source = source_from_checkpoint(
            given,
            revision=record.revision,
            base=base or (record.base if place is None else None),
            allow_pickle=allowed.allow_pickle,
            trust_remote_code=allowed.trust_remote_code,
        )
    except BadCheckpoint as error:
        if place is not None or base is not None:
            raise
        raise BadCheckpoint(
            f"the checkpoint that this artifact was exported from cannot be read ({error.what})",
            where=given,
            fix="Say where it is with --checkpoint"
            + (", and its base model with --base" if record.base else ""),
        ) from error
    if source.sha256 != record.sha256:
        raise BadCheckpoint(
            "this is not the checkpoint that the artifact was exported from: its files differ",
            where=given,
            fix="Give the one that was exported with --checkpoint, or export this one anew",
        )
    return source
