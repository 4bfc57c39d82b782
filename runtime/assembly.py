"""What a session puts together to predict with a model: its task, its feeder, its batch runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.manifest import MODEL, Engine, Signature
from tfc.runtime.backends.base import Runner
from tfc.runtime.feeding import BatchRunner, Feeder, GraphRunner, TextFeeder
from tfc.runtime.rows import Columns
from tfc.runtime.tasks import TEXT_TASKS
from tfc.runtime.tasks.base import Task, TextModel, TextTask, check_outputs
from tfc.runtime.tasks.options import options_from_values
from tfc.runtime.tensors import profile_of
from tfc.runtime.tokenization import TextEncoder


@dataclass(frozen=True)
class TextAssembly:
    """The parts for a model that reads text and answers at once."""

    kind: type[TextTask[Any]]
    model: TextModel
    feeder: Feeder
    signature: Signature

    @property
    def columns(self) -> Columns:
        """The fields of a job's rows, where the caller names none."""
        return self.kind.columns

    @property
    def options(self) -> type:
        """The dataclass of what a call may choose."""
        return self.kind.options

    def task(self, options: Mapping[str, object]) -> Task:
        """The task with the options of one call.

        Raises:
            UsageError: an option that the task does not have, or a value that it does not take.
        """
        values = options_from_values(self.kind.name, self.kind.options, options)
        return self.kind(self.model, values)

    def batch_runner(self, runners: Mapping[str, Runner]) -> BatchRunner:
        """What runs the graph."""
        names = self.kind.outputs(self.model.task)
        return GraphRunner(runners[MODEL], self.signature, names)


def assembly_of(artifact: Artifact, engine: Engine) -> TextAssembly | None:
    """The parts for the artifact's task; None for a model that takes tensors only.

    Raises:
        BadArtifact: the graph or the tokenizer does not fit the task.
    """
    manifest = artifact.manifest
    kind = TEXT_TASKS.get(manifest.task.name)
    if manifest.preprocess is None or kind is None:
        return None
    signature = manifest.graphs[MODEL].signature
    check_outputs(kind.outputs(manifest.task), manifest.task, signature)
    encoder = TextEncoder(
        artifact.file(manifest.preprocess.tokenizer),
        manifest.preprocess,
        manifest.graphs[MODEL].input_names,
        offsets=kind.offsets,
    )
    feeder = TextFeeder(encoder, signature, profile_of(engine))
    longest = min(manifest.preprocess.max_length, feeder.longest)
    return TextAssembly(kind, TextModel(manifest.task, encoder, longest), feeder, signature)


def takes_tensors_only(task: str) -> UsageError:
    """What calls with items say where there is no assembly."""
    return UsageError(f"this model ({task}) takes tensors, not text", fix="Call Session.run")
