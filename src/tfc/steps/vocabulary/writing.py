"""A trimmed artifact on disk: what export wrote, with fewer tokens, and nothing made from more."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from tfc.artifact import MANIFEST, VOCABULARY, Artifact, graph_file
from tfc.files import DATA_SUFFIX
from tfc.manifest import Manifest, Step
from tfc.manifest_json import manifest_to_json
from tfc.steps.vocabulary.choosing import Choice
from tfc.steps.vocabulary.graphs import Cut
from tfc.steps.vocabulary.ids import graph_with, preprocess_with, task_with
from tfc.vocabulary import vocabulary_outputs

_EXPORT = "export"


def copied(source: Artifact, folder: Path) -> Artifact:
    """What export wrote, in another folder."""
    manifest = _exported(source.manifest)
    for name in manifest.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.file(name), target)
    (folder / MANIFEST).write_text(manifest_to_json(manifest), encoding="utf-8")
    return Artifact.open(folder)


def _exported(manifest: Manifest) -> Manifest:
    """The manifest as export left it."""
    export = [step for step in manifest.steps if step.name == _EXPORT]
    written = {name for step in export for name in step.outputs}
    files = {name: record for name, record in manifest.files.items() if name in written}
    return dataclasses.replace(manifest, files=files, steps=export, engines={}, verdicts={})


def write_trimmed(
    artifact: Artifact,
    step: Step,
    tokens: Choice,
    cuts: dict[str, Cut],
    report: dict[str, Any],
    begun: float,
) -> None:
    """Put the trimmed graphs and tokenizer in place of the whole ones, and record the step.

    `begun` is when the step did, by `time.perf_counter`.
    """
    from tfc.onnx_files import save_onnx

    preprocess = artifact.manifest.preprocess
    assert preprocess is not None
    with artifact.change() as change:
        exported = _exported(change.manifest)
        for name in set(change.manifest.files) - set(exported.files):
            change.drop(name)
        new, kept = tokens.vocabulary.new_ids, tokens.vocabulary.kept
        outputs = vocabulary_outputs(exported.task.name)
        change.manifest = dataclasses.replace(
            exported,
            task=task_with(exported.task, new),
            preprocess=preprocess_with(preprocess, new),
            graphs={n: graph_with(g, outputs, kept) for n, g in exported.graphs.items()},
        )
        written = [preprocess.tokenizer, VOCABULARY]
        change.path(preprocess.tokenizer).write_text(tokens.tokenizer, encoding="utf-8")
        change.path(VOCABULARY).write_text(tokens.vocabulary.to_json(), encoding="utf-8")
        for name, cut in cuts.items():
            path = change.path(graph_file(name))
            save_onnx(cut.model, path)
            written.append(graph_file(name))
            data = graph_file(name) + DATA_SUFFIX
            if (change.folder / data).is_file():
                written.append(data)
            elif data in change.manifest.files:
                change.drop(data)
        seconds = time.perf_counter() - begun
        change.record(dataclasses.replace(step, outputs=written, seconds=seconds, result=report))
