"""What a session puts together to predict with a model: its task, its feeder, its batch runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfc.artifact import Artifact
from tfc.errors import BadArtifact, UsageError
from tfc.manifest import DECODER, MODEL, Engine, Manifest
from tfc.runtime.audio import AudioEncoder
from tfc.runtime.backends.base import Profile, Runner
from tfc.runtime.feeding import (
    BatchRunner,
    Feeder,
    GraphRunner,
    MediaEncoder,
    MediaFeeder,
    TextFeeder,
)
from tfc.runtime.generation_runner import GenerationRunner
from tfc.runtime.images import ImageEncoder
from tfc.runtime.padding import input_name
from tfc.runtime.rows import Columns
from tfc.runtime.several_tokenizers import SeveralTextEncoders
from tfc.runtime.tasks import GENERATION_TASKS, MEDIA_TASKS, TEXT_TASKS
from tfc.runtime.tasks.base import Task, TextModel, check_outputs
from tfc.runtime.tasks.generation import DecodingOptions, settings_of
from tfc.runtime.tasks.media import MediaModel
from tfc.runtime.tasks.options import options_from_values
from tfc.runtime.tensors import profile_of
from tfc.runtime.tokenization import INPUT_IDS, TOKENIZER_INPUTS, TextEncoder

Runners = Mapping[str, Runner]
# What becomes of a text that is longer than the model reads.
TRUNCATE, FAIL = TOO_LONG = ("truncate", "fail")


@dataclass(frozen=True)
class Assembly:
    """The parts for one model.

    Attributes:
        kind: the task's class; called with `model` and the options of a call.
        model: what the task knows of the model.
        feeder: makes batches.
        run: makes what runs batches, from the loaded graphs and the options of a call.
    """

    kind: Any
    model: Any
    feeder: Feeder
    run: Callable[[Runners, Any], BatchRunner]

    @property
    def columns(self) -> Columns:
        """The fields of a job's rows, where the caller names none."""
        columns: Columns = self.kind.columns
        return columns

    @property
    def options(self) -> type:
        """The dataclass of what a call may choose."""
        kind: type = self.kind.options
        return kind

    def task(self, options: Mapping[str, object], too_long: str = "truncate") -> Task:
        """The task with the options of one call; `too_long` is ``truncate`` or ``fail``.

        Raises:
            UsageError: an option that the task does not have, or a value that it does not take.
        """
        if too_long not in TOO_LONG:
            raise UsageError(f"too_long is '{too_long}'", fix=f"Give one of: {', '.join(TOO_LONG)}")
        model = self.model
        if too_long == FAIL:
            if not isinstance(model, TextModel):
                raise UsageError(
                    f"{self.kind.name} reads no texts that could be too long",
                    fix="Leave too_long out",
                )
            model = replace(model, refuse_long=True)
        task: Task = self.kind(model, self._parsed(options))
        return task

    def batch_runner(self, runners: Runners, options: Mapping[str, object]) -> BatchRunner:
        """What runs the graphs, with the options of one call."""
        return self.run(runners, self._parsed(options))

    def _parsed(self, options: Mapping[str, object]) -> Any:
        return options_from_values(self.kind.name, self.kind.options, options)


def assembly_of(artifact: Artifact, engine: Engine) -> Assembly | None:
    """The parts for the artifact's task; None for a model that takes tensors only.

    Raises:
        BadArtifact: the graphs or the preprocessing do not fit the task.
    """
    manifest, profile = artifact.manifest, profile_of(engine)
    name = manifest.task.name
    if name in MEDIA_TASKS:
        return _media_assembly(artifact, profile)
    if manifest.preprocess is None:
        return None
    if name in GENERATION_TASKS:
        return _generation_assembly(artifact, profile)
    widths = engine.traffic.widths if engine.traffic is not None else ()
    return _text_assembly(artifact, profile, widths) if name in TEXT_TASKS else None


def _text_assembly(artifact: Artifact, profile: Profile, widths: Sequence[int]) -> Assembly:
    manifest = artifact.manifest
    kind = TEXT_TASKS[manifest.task.name]
    signature = manifest.graphs[MODEL].signature
    names = kind.outputs(manifest.task)
    check_outputs(names, manifest.task, signature)
    encoder = text_encoder_of(artifact, kind.offsets)
    feeder = TextFeeder(encoder, signature, profile, widths)
    longest = min(encoder.preprocess.max_length, feeder.longest)
    return Assembly(
        kind,
        TextModel(manifest.task, encoder, longest),
        feeder,
        lambda runners, _: GraphRunner(runners[MODEL], signature, names),
    )


def _generation_assembly(artifact: Artifact, profile: Profile) -> Assembly:
    manifest = artifact.manifest
    encoder = text_encoder_of(artifact)
    feeder = TextFeeder(encoder, manifest.signature, profile)
    longest = min(encoder.preprocess.max_length, feeder.longest)
    return Assembly(
        GENERATION_TASKS[manifest.task.name],
        TextModel(manifest.task, encoder, longest),
        feeder,
        _decoding(manifest, feeder.most_rows),
    )


def _media_assembly(artifact: Artifact, profile: Profile) -> Assembly:
    manifest = artifact.manifest
    kind = MEDIA_TASKS[manifest.task.name]
    writes = DECODER in manifest.graphs
    text = text_encoder_of(artifact) if writes else None
    feeder = MediaFeeder(_media_encoder(manifest), profile)
    if writes:
        run = _decoding(manifest, feeder.most_rows)
    else:
        names, signature = kind.outputs(manifest.task), manifest.signature
        check_outputs(names, manifest.task, signature)

        def run(runners: Runners, _: Any) -> BatchRunner:
            return GraphRunner(runners[MODEL], signature, names)

    return Assembly(kind, MediaModel(manifest.task, feeder.encoder, text), feeder, run)


def _decoding(manifest: Manifest, most_rows: int) -> Callable[[Runners, Any], BatchRunner]:
    limit = manifest.preprocess.max_length if manifest.preprocess is not None else None

    def run(runners: Runners, options: DecodingOptions) -> BatchRunner:
        settings = settings_of(manifest.task.generation, options)
        return GenerationRunner(
            runners,
            manifest.graphs,
            settings,
            options,
            positions=limit,
            most_rows=most_rows,
            speech=manifest.task.speech,
        )

    return run


def _media_encoder(manifest: Manifest) -> MediaEncoder:
    if manifest.images is not None:
        return ImageEncoder(manifest.images)
    if manifest.audio is not None:
        return AudioEncoder(manifest.audio)
    raise BadArtifact(
        f"the manifest does not say how the inputs of {manifest.task.name} become tensors",
        fix="Export the checkpoint again with: tfc export --overwrite",
    )


def text_encoder_of(artifact: Artifact, offsets: bool = False) -> TextEncoder:
    """The artifact's tokenizer, for the inputs of its first graph.

    Raises:
        UsageError: it has none.
    """
    manifest = artifact.manifest
    if manifest.preprocess is None:
        raise UsageError(
            "this artifact takes tensors, not text",
            where=str(artifact.path),
            fix="Compare its engines with Session.run on your own tensors",
        )
    names = [spec.name for spec in manifest.signature.inputs if spec.name in TOKENIZER_INPUTS]
    names = names or [INPUT_IDS]  # a model that hears: its tokenizer gives what its decoder reads
    path = artifact.file(manifest.preprocess.tokenizer)
    further = manifest.ensemble.preprocess if manifest.ensemble is not None else []
    if further:
        others = [
            TextEncoder(artifact.file(each.tokenizer), each, _inputs_of(manifest, number))
            for number, each in enumerate(further, start=1)
        ]
        return SeveralTextEncoders(path, manifest.preprocess, names, others)
    return TextEncoder(path, manifest.preprocess, names, offsets=offsets)


def _inputs_of(manifest: Manifest, tokenizer: int) -> list[str]:
    """The inputs that a tokenizer gives, by the names that the first one's have."""
    given = {spec.name for spec in manifest.signature.inputs}
    return [name for name in TOKENIZER_INPUTS if input_name(name, tokenizer) in given]


def takes_tensors_only(task: str) -> UsageError:
    """What calls with items say where there is no assembly."""
    return UsageError(f"this model ({task}) takes tensors, not text", fix="Call Session.run")
