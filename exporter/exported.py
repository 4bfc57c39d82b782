"""What an export is asked for, what it loaded, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfc.exporter.comparison import ExportParity
from tfc.exporter.source import Source
from tfc.exporter.tasks import TaskSpec
from tfc.manifest import (
    AudioPreprocess,
    Checkpoint,
    Ensemble,
    Graph,
    ImagePreprocess,
    Preprocess,
    Task,
)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's model, and where its graphs are to be written.

    `max_length` is the limit in tokens that the caller asked for; `on_stage` is called with a few
    words whenever a stage begins.
    """

    source: Source
    spec: TaskSpec
    model: Any
    folder: Path
    max_length: int | None
    trust_remote_code: bool
    on_stage: Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What the manifest records about an export; `longest` are limits of dynamic axes.

    `shared` counts what several models had in common: nodes, and bytes of weights.
    """

    checkpoint: Checkpoint
    task: Task
    graphs: dict[str, Graph]
    parity: ExportParity
    preprocess: Preprocess | None = None
    images: ImagePreprocess | None = None
    audio: AudioPreprocess | None = None
    longest: dict[str, int] = field(default_factory=dict)
    ensemble: Ensemble | None = None
    shared: dict[str, int] = field(default_factory=dict)


def identity_of(source: Source, model: Any) -> Checkpoint:
    """What the artifact is made from."""
    return Checkpoint(
        source=source.given,
        sha256=source.sha256,
        model_type=source.model_type,
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        revision=source.revision,
        base=source.base.given if source.base is not None else None,
    )
