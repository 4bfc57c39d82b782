"""Export several checkpoints and their combination as one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tfc.artifact import STAGE, TOKENIZER, graph_file
from tfc.ensemble import FEATURES, HEADS, SOFTMAX, Combination
from tfc.exporter.comparison import check_outputs
from tfc.exporter.ensemble.members import Members, common_task, heads_of, members_of
from tfc.exporter.ensemble.module import Listed, ensemble_module
from tfc.exporter.ensemble.shared import Shared, share_identical
from tfc.exporter.exported import Exported, Loaded, identity_of
from tfc.exporter.fusion_sites import fusion_sites_of
from tfc.exporter.loading import model_from_source
from tfc.exporter.samples import SAMPLE_TEXTS
from tfc.exporter.sentence_embedding import prompts_of
from tfc.exporter.source import Source
from tfc.exporter.standard import check_standard
from tfc.exporter.tasks import FEATURE_EXTRACTION
from tfc.exporter.text import TextParts, text_parts_of, write_samples, write_tokenizer
from tfc.exporter.text_feeds import feeds_from_texts
from tfc.exporter.to_onnx import GraphInput, onnx_from_module, signature_of, text_inputs
from tfc.files import sha256_of_json
from tfc.manifest import MODEL, Checkpoint, Ensemble, Graph, Member, Preprocess, Stage, Task
from tfc.onnx_files import save_onnx
from tfc.runtime.padding import Feed, input_name
from tfc.runtime.tasks.classification import REGRESSION, ClassificationHeads
from tfc.runtime.tokenization import INPUT_IDS, TOKEN_TYPE_IDS

# The pooling of an ensemble whose members pool in different ways.
SEVERAL_POOLINGS = "several"


def export_ensemble(
    sources: Sequence[Source],
    folder: Path,
    combination: Combination,
    *,
    heads: Sequence[str] = (),
    task: str | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write one graph of all members and their combination, and check parity.

    The reference is the same ensemble in PyTorch. Members with the same tokenizer share their
    inputs; what they compute in common is computed once.

    Args:
        sources: the checkpoints, two or more. The first one's labels are the ensemble's.
        folder: an existing folder to write into.
        combination: the rule.
        heads: with the rule `heads`, the name of each one's output.
        task: the task of all, or None to tell it from their architectures.
        max_length: a limit on the tokens of a text, below the members' own.
        trust_remote_code: run the Python code that comes with the checkpoints.
        allow_pickle: read weights that are pickles.
        on_stage: called with a few words whenever a stage begins.

    Raises:
        UsageError: the members do not fit each other or the combination.
        BadCheckpoint: a checkpoint cannot be loaded or exported.
        CheckFailed: the graph does not say what the ensemble says.
    """
    spec = common_task(sources, task)
    parts = []
    for number, source in enumerate(sources, start=1):
        on_stage(f"loading checkpoint {number} of {len(sources)}")
        model = model_from_source(
            source, spec, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )
        loaded = Loaded(source, spec, model, folder, max_length, trust_remote_code, on_stage)
        parts.append(text_parts_of(loaded))
    members = heads_of(parts) if heads else members_of(parts, combination)
    named = " + ".join(source.given for source in sources)
    record, outcome = _record(members, combination), _task(members, combination, heads)

    on_stage("exporting to ONNX")
    inputs = _inputs(members)
    names = [each.name for each in inputs]
    modules = [each.module for each in parts]
    module = ensemble_module(record, members.first.task, modules, names, combination.stage)
    graph = onnx_from_module(Listed(module), [inputs], heads or members.first.outputs)
    shared = share_identical(graph)
    path = folder / graph_file(MODEL)
    save_onnx(graph, path)
    preprocess = _written_tokenizers(members, folder)
    write_samples(folder)
    if combination.stage is not None:
        combination.stage.save(folder / STAGE)

    on_stage("checking parity with the checkpoints")
    parity = check_outputs(module, path, _feeds(members, preprocess), where=named)
    signature = signature_of(graph)
    check_standard(path, signature, named)
    return Exported(
        checkpoint=_checkpoint(record, named),
        task=outcome,
        graphs={MODEL: Graph(signature, _fusion_sites(parts, shared))},
        preprocess=preprocess[0],
        parity=parity,
        ensemble=replace(record, preprocess=preprocess[1:]),
        shared={"nodes": shared.nodes, "weight_bytes": shared.weight_bytes},
    )


def _record(members: Members, combination: Combination) -> Ensemble:
    """The ensemble as the manifest describes it, without its tokenizers."""
    first = members.first.task
    labelled = first.problem != REGRESSION and first.labels and combination.rule != HEADS
    stage = combination.stage
    return Ensemble(
        combination.rule,
        (combination.normalize or SOFTMAX) if labelled else "",
        [
            Member(
                identity_of(parts.source, parts.model),
                parts.task.labels,
                combination.weights[number],
                combination.temperatures[number],
                list(members.inputs_of(number)),
            )
            for number, parts in enumerate(members.parts)
        ],
        stage=Stage(stage.kind, stage.parameters, STAGE) if stage is not None else None,
    )


def _task(members: Members, combination: Combination, heads: Sequence[str]) -> Task:
    """That of the first member, or of every head; embeddings come out with length 1.

    Features are numbers, with names that tell the member.
    """
    task = members.first.task
    if combination.rule == FEATURES:
        each = range(1, len(members.parts) + 1)
        names = [f"{number} {label}" for number in each for label in task.labels or ["score"]]
        return Task(task.name, REGRESSION, names)
    if heads:
        tasks = (parts.task for parts in members.parts)
        return Task(ClassificationHeads.name, heads=dict(zip(heads, tasks, strict=True)))
    if task.name != FEATURE_EXTRACTION:
        return task
    poolings = {parts.task.pooling for parts in members.parts}
    pooling = poolings.pop() if len(poolings) == 1 else SEVERAL_POOLINGS
    return replace(task, pooling=pooling, normalize=True)


def _checkpoint(record: Ensemble, named: str) -> Checkpoint:
    """The members as one: all their names, and a hash over theirs."""
    each = [member.checkpoint for member in record.members]
    return Checkpoint(
        source=named,
        sha256=sha256_of_json([checkpoint.sha256 for checkpoint in each]),
        model_type=", ".join(dict.fromkeys(checkpoint.model_type for checkpoint in each)),
        architecture=", ".join(dict.fromkeys(checkpoint.architecture for checkpoint in each)),
        parameters=sum(checkpoint.parameters for checkpoint in each),
    )


def _inputs(members: Members) -> list[GraphInput]:
    """The inputs of every tokenizer. All have one width, so that a batch has one size."""
    return [
        replace(each, name=input_name(each.name, reader))
        for reader in range(len(members.readers))
        for each in text_inputs(members.given_by(reader), members.longest)
    ]


def _written_tokenizers(members: Members, folder: Path) -> list[Preprocess]:
    """Write each tokenizer; the first where that of a single model is."""
    place = Path(TOKENIZER)
    return [
        write_tokenizer(
            parts.tokenizer,
            folder,
            members.max_length,
            *prompts_of(parts.source),
            file=f"{input_name(place.parent.name, reader)}/{place.name}",
        )
        for reader, parts in enumerate(members.readers)
    ]


def _feeds(members: Members, preprocess: Sequence[Preprocess]) -> list[Feed]:
    """The texts as each tokenizer gives them, padded on the right to one width."""
    parameters = sum(p.numel() for parts in members.parts for p in parts.model.parameters())
    each = [
        feeds_from_texts(
            parts.tokenizer,
            SAMPLE_TEXTS,
            members.given_by(reader),
            members.max_length,
            parameters,
        )
        for reader, parts in enumerate(members.readers)
    ]
    return [_joined(feeds, preprocess) for feeds in zip(*each, strict=True)]


def _joined(feeds: Sequence[Feed], preprocess: Sequence[Preprocess]) -> Feed:
    width = max(array.shape[1] for feed in feeds for array in feed.values())
    joined = {}
    for reader, (feed, reading) in enumerate(zip(feeds, preprocess, strict=True)):
        padding = {INPUT_IDS: reading.pad_id, TOKEN_TYPE_IDS: reading.pad_type_id}
        for name, array in feed.items():
            room = ((0, 0), (0, width - array.shape[1]))
            filled = np.pad(array, room, constant_values=padding.get(name, 0))
            joined[input_name(name, reader)] = filled
    return joined


def _fusion_sites(parts: Iterable[TextParts], shared: Shared) -> dict[str, int]:
    """What the configs of all members say, less what is shared; nothing where one does not say."""
    each = [fusion_sites_of(member.model.config) for member in parts]
    if not all(each):
        return {}
    return {kind: sum(s[kind] for s in each) - count for kind, count in shared.sites.items()}
