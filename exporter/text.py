"""Export a model that reads text and answers at once: one graph, a tokenizer, sample texts."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tfc.artifact import SAMPLES, TOKENIZER, graph_file
from tfc.errors import BadCheckpoint
from tfc.exporter.comparison import check_outputs
from tfc.exporter.cross_encoder import score_activation_of
from tfc.exporter.exported import Exported, Loaded, identity_of
from tfc.exporter.fusion_sites import fusion_sites_of
from tfc.exporter.loading import (
    check_vocabulary,
    max_length_of,
    max_positions_of,
    tokenizer_from_source,
    wrapped,
)
from tfc.exporter.modules import is_projected
from tfc.exporter.portable_tokenizer import portable_from_tokenizer
from tfc.exporter.samples import SAMPLE_TEXTS
from tfc.exporter.sentence_embedding import (
    IDENTITY,
    NO_POOLING,
    PROJECTION,
    EmbeddingHead,
    embedding_head_of,
    lowercases,
    prompts_of,
)
from tfc.exporter.source import Source
from tfc.exporter.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    ZERO_SHOT_CLASSIFICATION,
    TaskSpec,
)
from tfc.exporter.text_feeds import feeds_from_texts
from tfc.exporter.to_onnx import onnx_from_module, signature_of, text_inputs
from tfc.manifest import MODEL, Graph, Preprocess, Task
from tfc.onnx_files import save_onnx

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_LABELLED = frozenset({TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, ZERO_SHOT_CLASSIFICATION})


@dataclass(frozen=True)
class TextParts:
    """A text model ready for export: what is exported, what reads the text, and its limits.

    `max_length` is the most tokens of a text, `longest` what its positions reach (None: any).
    `inputs` are the tensors that the module takes, in order.
    """

    source: Source
    spec: TaskSpec
    model: Any
    head: EmbeddingHead
    module: torch.nn.Module
    tokenizer: Any
    inputs: tuple[str, ...]
    max_length: int
    longest: int | None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what the module gives."""
        return output_names(self.spec, self.model, self.head)

    @property
    def task(self) -> Task:
        """What the manifest says of its task."""
        return task_record(self.spec, self.model, self.head)


def text_parts_of(loaded: Loaded) -> TextParts:
    """The model with its tokenizer, and what limits its texts.

    Raises:
        BadCheckpoint: the tokenizer is missing, or does not fit the model.
    """
    source, spec, model = loaded.source, loaded.spec, loaded.model
    head = head_of(source, spec)
    tokenizer = tokenizer_from_source(
        source,
        trust_remote_code=loaded.trust_remote_code,
        writes_text=spec.name == FILL_MASK,
    )
    check_vocabulary(source, model, tokenizer)
    if lowercases(source):
        _lowercase(tokenizer, source)
    _give_pad_token(model, tokenizer)
    return TextParts(
        source,
        spec,
        model,
        head,
        text_module(source, spec, model),
        tokenizer,
        tuple(_input_names(model, tokenizer)),
        max_length_of(model, tokenizer, head, loaded.max_length),
        max_positions_of(model),
    )


def export_text(loaded: Loaded) -> Exported:
    """Write the graph and the tokenizer, and compare the graph with the checkpoint.

    Raises:
        BadCheckpoint: the tokenizer is missing, or the model cannot be exported.
        CheckFailed: the graph does not say what the checkpoint says.
    """
    source, parts = loaded.source, text_parts_of(loaded)
    limit, tokenizer = parts.max_length, parts.tokenizer

    loaded.on_stage("exporting to ONNX")
    inputs = text_inputs(parts.inputs, parts.longest)
    graph = onnx_from_module(parts.module, inputs, parts.outputs)
    path = loaded.folder / graph_file(MODEL)
    save_onnx(graph, path)
    preprocess = write_tokenizer(tokenizer, loaded.folder, limit, *prompts_of(source))
    write_samples(loaded.folder)

    loaded.on_stage("checking parity with the checkpoint")
    checkpoint = identity_of(source, parts.model)
    feeds = feeds_from_texts(tokenizer, SAMPLE_TEXTS, parts.inputs, limit, checkpoint.parameters)
    parity = check_outputs(parts.module, path, feeds, where=source.given)
    return Exported(
        checkpoint=checkpoint,
        task=parts.task,
        graphs={MODEL: Graph(signature_of(graph), fusion_sites_of(parts.model.config))},
        preprocess=preprocess,
        parity=parity,
    )


def text_module(source: Source, spec: TaskSpec, model: Any) -> torch.nn.Module:
    """What is exported, and what engines are compared with: the model and what follows it."""
    scores = spec.name == TEXT_CLASSIFICATION
    activation = score_activation_of(source) if scores else IDENTITY
    return wrapped(model, spec, head_of(source, spec), activation)


def head_of(source: Source, spec: TaskSpec) -> EmbeddingHead:
    """What follows the Transformer: nothing, but for embeddings."""
    return embedding_head_of(source) if spec.name == FEATURE_EXTRACTION else EmbeddingHead()


def write_tokenizer(
    tokenizer: Any,
    folder: Path,
    max_length: int,
    prompts: dict[str, str] | None = None,
    default_prompt: str = "",
    file: str = TOKENIZER,
) -> Preprocess:
    """Write the tokenizer to `file` of the folder, and say how text becomes tensors."""
    portable = portable_from_tokenizer(tokenizer, where=str(folder))
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(portable.rust.to_str(pretty=False), encoding="utf-8")
    mask_id = getattr(tokenizer, "mask_token_id", None)
    return Preprocess(
        tokenizer=file,
        max_length=max_length,
        pad_id=int(tokenizer.pad_token_id or 0),
        pad_type_id=int(tokenizer.pad_token_type_id),
        padding_side=str(tokenizer.padding_side),
        prompts=prompts or {},
        default_prompt=default_prompt,
        mask_id=int(mask_id) if mask_id is not None else None,
        missing_from=portable.missing_from,
        unknown_id=portable.unknown_id,
    )


def write_samples(folder: Path) -> None:
    """Keep the texts on which graphs are checked."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in SAMPLE_TEXTS]
    (folder / SAMPLES).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _lowercase(tokenizer: Any, source: Source) -> None:
    """Lower-case the text before anything else, as sentence-transformers does.

    Raises:
        BadCheckpoint: the tokenizer runs in Python, where nothing can be put before it.
    """
    from tokenizers import normalizers

    if not tokenizer.is_fast:
        raise BadCheckpoint(
            f"the text is to be lower-cased for {type(tokenizer).__name__}, which has no fast form",
            where=source.given,
            fix="Take do_lower_case out of sentence_bert_config.json, and lower-case texts first",
        )
    backend = tokenizer.backend_tokenizer
    inner = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *inner])


def _give_pad_token(model: Any, tokenizer: Any) -> None:
    """Decoder-only classifiers find the last token by their config's padding token."""
    if getattr(model.config, "pad_token_id", None) is None and tokenizer.pad_token_id is not None:
        model.config.pad_token_id = int(tokenizer.pad_token_id)


def _input_names(model: Any, tokenizer: Any) -> list[str]:
    """The tensors that both the tokenizer gives and the model takes, in our order."""
    taken = inspect.signature(model.forward).parameters
    given = set(tokenizer.model_input_names) | {"input_ids", "attention_mask"}
    return [name for name in INPUTS if name in taken and name in given]


def output_names(spec: TaskSpec, model: Any, head: EmbeddingHead) -> tuple[str, ...]:
    """The names of the outputs of a text model's graph."""
    if spec.name != FEATURE_EXTRACTION:
        return spec.outputs
    per_token = head.pooling == NO_POOLING and not is_projected(model)
    return ("last_hidden_state" if per_token else "embedding",)


def task_record(spec: TaskSpec, model: Any, head: EmbeddingHead) -> Task:
    """What the manifest says of a text model's task."""
    if spec.name == FEATURE_EXTRACTION:
        pooling = PROJECTION if is_projected(model) else head.pooling
        return Task(spec.name, pooling=pooling, normalize=head.normalize)
    if spec.name not in _LABELLED:
        return Task(spec.name)
    problem = _problem(model.config) if spec.name == TEXT_CLASSIFICATION else ""
    return Task(spec.name, problem=problem, labels=labels_of(model.config))


def labels_of(config: Any) -> list[str]:
    """The names of the logits, in order."""
    return [str(config.id2label[i]) for i in range(config.num_labels)]


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
