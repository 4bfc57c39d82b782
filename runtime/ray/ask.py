"""What a caller wants of a Ray job, checked without a cluster, and without Ray."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.manifest import Manifest
from tfc.runtime.assembly import takes_tensors_only
from tfc.runtime.formats.predictions import VECTOR, VECTORS, prediction_fields
from tfc.runtime.rows import Columns
from tfc.runtime.tasks import EVERY_TASK, MEDIA_TASKS
from tfc.runtime.tasks.options import options_from_values, values_from_settings


@dataclass(frozen=True)
class Ask:
    """What a caller wants; `predict_dataset` says what each of it means."""

    artifact: str
    engine: str | None = None
    require_verified: bool = False
    workers: int | None = None
    threads: int | None = None
    text_column: str | None = None
    pair_column: str | None = None
    half_embeddings: bool = False
    window: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The artifact's."""
        return Artifact.open(self.artifact).manifest

    @property
    def columns(self) -> Columns:
        """Where the texts are: the named columns, or the task's own."""
        own: Columns = EVERY_TASK[self.manifest.task.name].columns
        return Columns(self.text_column or own.text, self.pair_column or own.pair)


def values_of_settings(ask: Ask, settings: Sequence[str]) -> dict[str, object]:
    """``NAME=VALUE`` → the task's options by name.

    Raises:
        BadArtifact: there is no artifact here.
        UsageError: the model reads no texts, or has no such option.
    """
    _check_task(ask)
    name = ask.manifest.task.name
    return values_from_settings(name, EVERY_TASK[name].options, settings)


def checked(ask: Ask) -> None:
    """Refuse a model, or options, that a Ray job cannot do with; it needs no cluster.

    Raises:
        BadArtifact: there is no artifact here.
        UsageError: the model reads no texts, or does not take the options.
    """
    _check_task(ask)
    manifest, name = ask.manifest, ask.manifest.task.name
    own = {key: value for key, value in ask.options.items() if key != "too_long"}
    options_from_values(name, EVERY_TASK[name].options, own)
    fields = prediction_fields(manifest.task, manifest.signature)
    if ask.half_embeddings and not any(field.kind in (VECTOR, VECTORS) for field in fields):
        raise UsageError(
            f"the predictions of {name} are no embeddings", fix="Leave the half embeddings out"
        )


def _check_task(ask: Ask) -> None:
    name = ask.manifest.task.name
    if name in MEDIA_TASKS:
        raise UsageError(
            f"a Ray job reads texts, and {name} reads files",
            fix="Run it on one machine: tfc run without --ray",
        )
    if name not in EVERY_TASK or ask.manifest.preprocess is None:
        raise takes_tensors_only(name)
