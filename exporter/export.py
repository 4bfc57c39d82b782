"""`export_checkpoint`: the whole way from a checkpoint to files in a folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from tfc.artifact import MODEL, SAMPLES, TOKENIZER
from tfc.exporter.fusion_sites import fusion_sites_of
from tfc.exporter.loading import (
    check_vocabulary,
    max_length_of,
    max_positions_of,
    model_from_source,
    tokenizer_from_source,
    wrapped,
)
from tfc.exporter.parity import ExportParity, check_export, feeds_from_texts
from tfc.exporter.samples import SAMPLE_TEXTS
from tfc.exporter.sentence_embedding import NO_POOLING, EmbeddingHead, embedding_head_of
from tfc.exporter.source import Source
from tfc.exporter.tasks import (
    FEATURE_EXTRACTION,
    TEXT_CLASSIFICATION,
    TaskSpec,
    task_of,
)
from tfc.exporter.to_onnx import onnx_from_module, signature_of
from tfc.manifest import Checkpoint, Preprocess, Signature, Task

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Exported:
    """What the manifest records about an export."""

    checkpoint: Checkpoint
    task: Task
    signature: Signature
    preprocess: Preprocess
    fusion_sites: dict[str, int]
    parity: ExportParity


def export_checkpoint(
    source: Source,
    folder: Path,
    *,
    task: str | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the model, its tokenizer and the sample texts into `folder`, and check parity.

    Args:
        source: the checkpoint.
        folder: an existing folder to write into.
        task: the task, or None to tell it from the checkpoint's architecture.
        max_length: a limit on the tokens of a text, below the model's own.
        trust_remote_code: run the Python code that comes with the checkpoint.
        allow_pickle: read weights that are pickles.
        on_stage: called with a few words whenever a stage begins.

    Raises:
        BadCheckpoint: the checkpoint cannot be loaded or exported.
        CheckFailed: the graph does not say what the checkpoint says.
    """
    spec = task_of(source, task)
    head = embedding_head_of(source) if spec.name == FEATURE_EXTRACTION else EmbeddingHead()
    on_stage("loading the checkpoint")
    model = model_from_source(
        source, spec, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    tokenizer = tokenizer_from_source(source, trust_remote_code=trust_remote_code)
    check_vocabulary(source, model, tokenizer)
    limit = max_length_of(model, tokenizer, head, max_length)
    names = _input_names(model, tokenizer)
    module = wrapped(model, spec, head)

    on_stage("exporting to ONNX")
    graph = onnx_from_module(module, names, _output_name(spec, head), max_positions_of(model))
    ir.save(graph, folder / MODEL)
    preprocess = _write_tokenizer(tokenizer, folder, limit)
    _write_samples(folder)

    on_stage("checking parity with the checkpoint")
    feeds = feeds_from_texts(tokenizer, SAMPLE_TEXTS, names, limit)
    parity = check_export(module, folder / MODEL, feeds, where=source.given)
    return Exported(
        checkpoint=_identity(source, model),
        task=_task_record(spec, model, head),
        signature=signature_of(graph),
        preprocess=preprocess,
        fusion_sites=fusion_sites_of(model.config),
        parity=parity,
    )


def _input_names(model: Any, tokenizer: Any) -> list[str]:
    """The tensors that both the tokenizer gives and the model takes, in our order."""
    taken = inspect.signature(model.forward).parameters
    given = set(tokenizer.model_input_names) | {"input_ids", "attention_mask"}
    return [name for name in _INPUTS if name in taken and name in given]


def _output_name(spec: TaskSpec, head: EmbeddingHead) -> str:
    if spec.name != FEATURE_EXTRACTION:
        return "logits"
    return "last_hidden_state" if head.pooling == NO_POOLING else "embedding"


def _identity(source: Source, model: torch.nn.Module) -> Checkpoint:
    return Checkpoint(
        source=source.given,
        sha256=source.sha256,
        model_type=source.model_type,
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        revision=source.revision,
    )


def _task_record(spec: TaskSpec, model: Any, head: EmbeddingHead) -> Task:
    if spec.name == FEATURE_EXTRACTION:
        return Task(spec.name, pooling=head.pooling, normalize=head.normalize)
    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    problem = _problem(model.config) if spec.name == TEXT_CLASSIFICATION else ""
    return Task(spec.name, problem=problem, labels=labels)


def _problem(config: Any) -> str:
    """How the logits are read; transformers takes one label without a type for a regression."""
    declared = {
        "regression": "regression",
        "single_label_classification": "single_label",
        "multi_label_classification": "multi_label",
    }
    if config.problem_type in declared:
        return declared[config.problem_type]
    return "regression" if config.num_labels == 1 else "single_label"


def _write_tokenizer(tokenizer: Any, folder: Path, max_length: int) -> Preprocess:
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    path = folder / TOKENIZER
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(backend.to_str(pretty=False), encoding="utf-8")
    return Preprocess(
        tokenizer=TOKENIZER,
        max_length=max_length,
        pad_id=int(tokenizer.pad_token_id or 0),
        pad_type_id=int(tokenizer.pad_token_type_id),
        padding_side=str(tokenizer.padding_side),
    )


def _write_samples(folder: Path) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in SAMPLE_TEXTS]
    (folder / SAMPLES).write_text("\n".join(lines) + "\n", encoding="utf-8")
