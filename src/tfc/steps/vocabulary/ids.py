"""Token ids in the manifest: padding, mask, what generation begins with, forces and forbids."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tfc.manifest import Graph, Preprocess, Speech, Task, TensorSpec

NewIds = Mapping[int, int]
# Of a generation config: fields that name tokens the model needs.
_NEEDED = (
    *("forced_bos_token_id", "forced_eos_token_id", "eos_token_id", "pad_token_id"),
    *("bos_token_id", "decoder_start_token_id"),
)
# What is forbidden or weighted is left out with its token.
_FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens")
_SEQUENCES, _BIASES = "bad_words_ids", "sequence_bias"


def ids_in_use(preprocess: Preprocess, task: Task) -> set[int]:
    """The tokens that the manifest names and cannot do without."""
    found = {preprocess.pad_id, preprocess.mask_id, preprocess.unknown_id}
    for name in _NEEDED:
        found.update(_listed(task.generation.get(name)))
    if task.speech is not None:
        found.update(_ids_of_speech(task.speech))
    return {i for i in found if i is not None}


def preprocess_with(preprocess: Preprocess, new: NewIds) -> Preprocess:
    """The same with new ids."""
    first = preprocess.missing_from
    return dataclasses.replace(
        preprocess,
        pad_id=new[preprocess.pad_id],
        mask_id=None if preprocess.mask_id is None else new[preprocess.mask_id],
        unknown_id=None if preprocess.unknown_id is None else new[preprocess.unknown_id],
        missing_from=None if first is None else sum(1 for old in new if old < first),
    )


def task_with(task: Task, new: NewIds) -> Task:
    """The same with new ids."""
    generation = {name: _setting(name, value, new) for name, value in task.generation.items()}
    speech = None if task.speech is None else _speech_with(task.speech, new)
    return dataclasses.replace(task, generation=generation, speech=speech)


def graph_with(graph: Graph, outputs: tuple[str, ...], kept: list[int]) -> Graph:
    """The signature with the new size of the outputs that have the vocabulary as last axis."""
    signature = graph.signature
    changed = [_cut(spec, kept) if spec.name in outputs else spec for spec in signature.outputs]
    return dataclasses.replace(graph, signature=dataclasses.replace(signature, outputs=changed))


def _cut(spec: TensorSpec, kept: list[int]) -> TensorSpec:
    size = spec.shape[-1]
    if not isinstance(size, int):
        return spec
    return dataclasses.replace(spec, shape=[*spec.shape[:-1], sum(1 for i in kept if i < size)])


def _setting(name: str, value: Any, new: NewIds) -> Any:
    if value is None:
        return None
    if name in _NEEDED:
        return [new[i] for i in value] if isinstance(value, list) else new[value]
    if name in _FORBIDDEN:
        return [new[i] for i in _listed(value) if i in new]
    if name == _SEQUENCES:
        return [[new[i] for i in ids] for ids in value if all(i in new for i in ids)]
    if name == _BIASES:
        return [[[new[i] for i in ids], bias] for ids, bias in value if all(i in new for i in ids)]
    return value


def _listed(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _ids_of_speech(speech: Speech) -> Iterator[int | None]:
    yield from speech.languages.values()
    yield from speech.tasks.values()
    yield from speech.forced
    yield speech.no_timestamps


def _speech_with(speech: Speech, new: NewIds) -> Speech:
    def of(token: int | None) -> int | None:
        return None if token is None else new[token]

    return dataclasses.replace(
        speech,
        languages={name: new[token] for name, token in speech.languages.items()},
        tasks={name: new[token] for name, token in speech.tasks.items()},
        no_timestamps=of(speech.no_timestamps),
        forced=[of(token) for token in speech.forced],
    )
