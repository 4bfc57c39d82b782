"""Who takes part in `tfc bench`: engines, PyTorch in its forms, other artifacts, ONNX files.

A contestant is described by plain data, so that a fresh process can open it too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tfc.artifact import MANIFEST, VOCABULARY, Artifact
from tfc.errors import BackendUnavailable, BadInput, TfcError, UsageError, first_line
from tfc.manifest import MODEL
from tfc.runtime.backends import backend as backend_of
from tfc.runtime.batching import CPU
from tfc.runtime.engine import close_all, runners_from_engine
from tfc.runtime.padding import Feed
from tfc.runtime.throughput import Call
from tfc.steps.reference import reference_from_artifact

PYTORCH = "pytorch"
SDPA, EAGER, COMPILE = "sdpa", "eager", "compile"
FORMS = (SDPA, EAGER, COMPILE)
ONNX_BACKEND = "onnxruntime"
_ENGINE, _ONNX = "engine", "onnx"


@dataclass(frozen=True)
class CheckpointPlace:
    """Where the checkpoint is now, and what it may do; see `reference_from_artifact`."""

    checkpoint: str | Sequence[str] | None = None
    base: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class Entry:
    """A contestant that is not loaded yet.

    Attributes:
        name: what the tables call it.
        kind: `engine`, `onnx` or `pytorch`.
        path: the artifact, or the ONNX file.
        which: the engine's name, or PyTorch's form.
        place: where PyTorch finds the checkpoint.
    """

    name: str
    kind: str
    path: str
    which: str = ""
    place: CheckpointPlace = CheckpointPlace()

    def as_json(self) -> dict[str, Any]:
        """Plain data, for another process."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Entry:
        """What `as_json` gave."""
        return cls(**{**found, "place": CheckpointPlace(**found["place"])})


@dataclass(frozen=True)
class Contestant:
    """A loaded one: `run` takes a batch, `close` gives back what it holds."""

    run: Call
    close: Callable[[], None]


def engine_entries(artifact: Artifact, asked: Sequence[str]) -> tuple[list[Entry], dict[str, str]]:
    """The engines that can run here, of those that are asked for or of all; why others cannot.

    Raises:
        UsageError: there is no engine of that name.
        BackendUnavailable: none can run here.
    """
    engines = artifact.manifest.engines
    for name in asked:
        if name not in engines:
            raise UsageError(
                f"this artifact has no engine '{name}'",
                where=str(artifact.path),
                fix=f"Choose among: {', '.join(engines) or 'none; run tfc build-engine first'}",
            )
    left_out = {}
    for name in asked or engines:
        reason = backend_of(engines[name].backend).availability().why_not_run
        if reason:
            left_out[name] = reason
    names = [name for name in asked or engines if name not in left_out]
    if not names:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise BackendUnavailable(
            f"no engine of this artifact can run here ({reasons or 'it has none'})",
            where=str(artifact.path),
            fix=f"Build one for this machine with: tfc build-engine {artifact.path}",
        )
    return [Entry(name, _ENGINE, str(artifact.path), name) for name in names], left_out


def pytorch_entries(
    artifact: Artifact, forms: Sequence[str], place: CheckpointPlace
) -> list[Entry]:
    """PyTorch in fp32: SDPA attention, eager attention, or SDPA through `torch.compile`.

    Raises:
        UsageError: there is no such form.
    """
    for form in forms:
        if form not in FORMS:
            raise UsageError(f"PyTorch has no form '{form}'", fix=f"Give: {', '.join(FORMS)}")
    return [
        Entry(
            PYTORCH if form == SDPA else f"{PYTORCH}-{form}",
            PYTORCH,
            str(artifact.path),
            form,
            place,
        )
        for form in dict.fromkeys(forms)
    ]


def other_entries(paths: Sequence[str | Path]) -> tuple[list[Entry], dict[str, str]]:
    """The engines of other artifacts, and ONNX files on ONNX Runtime.

    Raises:
        UsageError: a path is neither, or two contestants would have one name.
    """
    entries: list[Entry] = []
    left_out: dict[str, str] = {}
    for path in map(Path, paths):
        if (path / MANIFEST).is_file():
            found, reasons = engine_entries(Artifact.open(path), ())
            entries += [dataclasses.replace(e, name=f"{path.name}/{e.name}") for e in found]
            left_out.update({f"{path.name}/{name}": why for name, why in reasons.items()})
        elif path.suffix == ".onnx" and path.is_file():
            entries.append(Entry(path.name, _ONNX, str(path)))
        else:
            raise UsageError(
                "this is neither an artifact nor an ONNX file",
                where=str(path),
                fix="Give the folder of an artifact, or a file that ends in .onnx",
            )
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"two of the things to compare with are called {twice}", fix="Rename one of them"
        )
    return entries, left_out


def check_same_vocabulary(artifact: Artifact, paths: Sequence[str | Path]) -> None:
    """Refuse artifacts that do not know the tokens which the measured one is given.

    Raises:
        UsageError: the vocabulary of one is trimmed, and that of the measured one not the same way.
    """
    for path in map(Path, paths):
        if not (path / MANIFEST).is_file():
            continue
        other = Artifact.open(path)
        trimmed = VOCABULARY in other.manifest.files
        if trimmed and other.sha256(VOCABULARY) != artifact.sha256(VOCABULARY):
            raise UsageError(
                "its vocabulary is trimmed, and what is measured has tokens that it does not know",
                where=str(path),
                fix="Measure the trimmed artifact, against the whole one",
            )


def hardware_of(entry: Entry) -> str:
    """What a contestant runs on: `CPU`, or the name of a GPU. PyTorch runs on the CPU here."""
    if entry.kind == PYTORCH:
        return CPU
    name = ONNX_BACKEND
    if entry.kind == _ENGINE:
        name = Artifact.open(entry.path).manifest.engines[entry.which].backend
    return backend_of(name).availability().hardware


def opened(entry: Entry, threads: int) -> Contestant:
    """Load a contestant, to run on `threads` CPU threads.

    Raises:
        TfcError: what its file, its backend or its checkpoint lacks.
    """
    if entry.kind == PYTORCH:
        return _pytorch(entry, threads)
    if entry.kind == _ONNX:
        runner = backend_of(ONNX_BACKEND).load(Path(entry.path), threads)
        return Contestant(runner.run, runner.close)
    artifact = Artifact.open(entry.path)
    engine = artifact.manifest.engines[entry.which]
    loaded = runners_from_engine(artifact, engine, threads)
    if MODEL not in loaded:
        close_all(loaded)
        raise UsageError(
            f"{artifact.manifest.task.name} is not measured: it does not answer at once",
            where=entry.path,
        )
    names = artifact.manifest.graphs[MODEL].input_names
    run = partial(_run_some, loaded[MODEL].run, names, entry.name)
    return Contestant(run, partial(close_all, loaded))


def _run_some(run: Call, names: Sequence[str], who: str, feed: Feed) -> object:
    """Run a batch without the inputs that this model does not read."""
    if missing := [name for name in names if name not in feed]:
        raise BadInput(
            f"{who} reads {', '.join(missing)}, which the measured artifact's tokenizer does not"
            " give",
            fix="Compare models of one tokenizer",
        )
    return run({name: feed[name] for name in names})


def _pytorch(entry: Entry, threads: int) -> Contestant:
    artifact = Artifact.open(entry.path)
    reference = reference_from_artifact(artifact, **dataclasses.asdict(entry.place))
    import torch

    torch.set_num_threads(threads)
    if entry.which == EAGER:
        _use_eager_attention(reference.module)
    if entry.which == COMPILE:
        compiled = torch.compile(reference.module)
        return Contestant(dataclasses.replace(reference, module=compiled), _nothing)
    return Contestant(reference, _nothing)


def _use_eager_attention(module: Any) -> None:
    import transformers

    for part in module.modules():
        if isinstance(part, transformers.PreTrainedModel):
            part.set_attn_implementation("eager")


def _nothing() -> None:
    """Give nothing back: PyTorch has no call for it."""


def open_each(
    entries: Sequence[Entry], threads: int, feed: Feed
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Load every contestant and run a batch with it; and why some could not.

    A measured engine that does not run is an error. Something to compare it with that does not,
    such as `torch.compile` without a C++ compiler, is left out with the reason.

    Raises:
        TfcError: an engine cannot run.
    """
    found: dict[str, Contestant] = {}
    left_out: dict[str, str] = {}
    for entry in entries:
        contestant = opened(entry, threads)
        found[entry.name] = contestant
        try:
            contestant.run(feed)
        except TfcError:
            raise
        except Exception as error:
            if entry.which != COMPILE:
                raise
            left_out[entry.name] = f"PyTorch cannot compile it here: {first_line(error)}"
            found.pop(entry.name).close()
    return found, left_out
