"""`export_checkpoint`: the whole way from a checkpoint to files in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tfc.artifact import graph_file
from tfc.exporter.exported import Exported, Loaded
from tfc.exporter.generation.export import export_generation
from tfc.exporter.image import export_image
from tfc.exporter.loading import model_from_source
from tfc.exporter.source import Source
from tfc.exporter.standard import check_standard
from tfc.exporter.tasks import IMAGE, task_of
from tfc.exporter.text import export_text
from tfc.exporter.without_tokenizer import export_without_tokenizer


def export_checkpoint(
    source: Source,
    folder: Path,
    *,
    task: str | None = None,
    max_length: int | None = None,
    tokenizer: bool = True,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the model's graphs and its preprocessing into `folder`, and check parity.

    Args:
        source: the checkpoint.
        folder: an existing folder to write into.
        task: the task, or None to tell it from the checkpoint's architecture.
        max_length: a limit on the tokens of a text, below the model's own.
        tokenizer: without it a text model takes tensors only.
        trust_remote_code: run the Python code that comes with the checkpoint.
        allow_pickle: read weights that are pickles.
        on_stage: called with a few words whenever a stage begins.

    Raises:
        BadCheckpoint: the checkpoint cannot be loaded or exported.
        CheckFailed: the graph does not say what the checkpoint says.
    """
    spec = task_of(source, task)
    on_stage("loading the checkpoint")
    model = model_from_source(
        source, spec, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    loaded = Loaded(source, spec, model, folder, max_length, trust_remote_code, on_stage)
    if not tokenizer:
        exported = export_without_tokenizer(loaded)
    elif spec.generates:
        exported = export_generation(loaded)
    elif spec.reads == IMAGE:
        exported = export_image(loaded)
    else:
        exported = export_text(loaded)
    for name, graph in exported.graphs.items():
        check_standard(folder / graph_file(name), graph.signature, source.given)
    return exported
