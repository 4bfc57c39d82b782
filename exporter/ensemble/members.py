"""The members of an ensemble: do they fit each other, and which of them share a tokenizer?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfc.ensemble import FEATURES, MEAN, STACK, VOTE, WEIGHTED, ZSCORE, Combination
from tfc.errors import UsageError
from tfc.exporter.cross_encoder import score_activation_of
from tfc.exporter.portable_tokenizer import portable_from_tokenizer
from tfc.exporter.sentence_embedding import NO_POOLING, prompts_of
from tfc.exporter.source import Source
from tfc.exporter.tasks import (
    FEATURE_EXTRACTION,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    ZERO_SHOT_CLASSIFICATION,
    TaskSpec,
    task_of,
)
from tfc.exporter.text import INPUTS, TextParts
from tfc.runtime.padding import input_name
from tfc.runtime.tasks.classification import MULTI_LABEL, REGRESSION
from tfc.stage import stage_order

TASKS = (
    TEXT_CLASSIFICATION,
    ZERO_SHOT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    FEATURE_EXTRACTION,
)
# Their predictions are read by the places of tokens, of which there is one set.
_READ_BY_TOKENS = frozenset({ZERO_SHOT_CLASSIFICATION, TOKEN_CLASSIFICATION})
# Two values, standardised, are 1 and -1 whatever they were.
_LEAST_FOR_ZSCORE = 3
# Parts of a tokenizer.json that do not decide which ids a text gets.
_NOT_READING = ("version", "truncation", "padding", "decoder")
_RENAME = "Correct id2label in the config.json of one of them"


@dataclass(frozen=True)
class Members:
    """Members that fit each other.

    `readers` are members with different tokenizers; `reads[m]` says which of them reads as member
    m does.
    """

    parts: tuple[TextParts, ...]
    readers: tuple[TextParts, ...]
    reads: tuple[int, ...]

    @property
    def first(self) -> TextParts:
        """The member whose labels, and their order, are the ensemble's."""
        return self.parts[0]

    @property
    def max_length(self) -> int:
        """The most tokens of a text: what the shortest-sighted member reads."""
        return min(parts.max_length for parts in self.parts)

    @property
    def longest(self) -> int | None:
        """What the positions of all members reach."""
        return min((p.longest for p in self.parts if p.longest is not None), default=None)

    def inputs_of(self, member: int) -> tuple[str, ...]:
        """The graph's inputs that a member reads, in the order in which its module takes them."""
        return tuple(input_name(name, self.reads[member]) for name in self.parts[member].inputs)

    def given_by(self, reader: int) -> list[str]:
        """What a tokenizer gives, by the names of the first tokenizer's."""
        read = {name for p, r in zip(self.parts, self.reads, strict=True) if r == reader
                for name in p.inputs}  # fmt: skip
        return [name for name in INPUTS if name in read]


def common_task(sources: Sequence[Source], asked: str | None) -> TaskSpec:
    """The task of all members.

    Raises:
        UsageError: they have several, or it is one that cannot be combined.
    """
    specs = [task_of(source, asked) for source in sources]
    for source, spec in zip(sources, specs, strict=True):
        if spec.name != specs[0].name:
            raise UsageError(
                f"the members of an ensemble do one task: {sources[0].given} does "
                f"{specs[0].name}, and {source.given} {spec.name}",
                fix="Give checkpoints of one task, or name it with --task if all do it",
            )
    if specs[0].name not in TASKS:
        raise UsageError(
            f"models for {specs[0].name} are not combined",
            fix=f"An ensemble does one of: {', '.join(TASKS)}",
        )
    return specs[0]


def members_of(parts: Sequence[TextParts], combination: Combination) -> Members:
    """The members, once they are known to fit each other and the combination.

    Raises:
        UsageError: they do not.
    """
    _check_problems(parts)
    _check_combination(parts[0], combination)
    readers, reads = _by_tokenizer(parts)
    if parts[0].spec.name in _READ_BY_TOKENS and len(readers) > 1:
        raise UsageError(
            f"the members of an ensemble for {parts[0].spec.name} share a tokenizer, and "
            f"{parts[0].source.given} and {readers[1].source.given} have different ones",
            fix="Combine models that were fine-tuned from bases with the same tokenizer",
        )
    for each in parts:
        _check_labels(parts[0], each)
    if combination.stage is not None:
        task = parts[0].task
        stage_order(combination.stage, len(parts), task.labels, task.problem)
    return Members(tuple(parts), readers, reads)


def heads_of(parts: Sequence[TextParts]) -> Members:
    """Classifiers that read the same inputs, each with labels of its own.

    Raises:
        UsageError: one is no classifier of texts, or has another tokenizer.
    """
    if parts[0].spec.name != TEXT_CLASSIFICATION:
        raise UsageError(
            f"heads are classifiers of texts, and {parts[0].source.given} does "
            f"{parts[0].spec.name}",
            fix=f"Give checkpoints for {TEXT_CLASSIFICATION}",
        )
    readers, reads = _by_tokenizer(parts)
    if len(readers) > 1:
        raise UsageError(
            f"heads share a tokenizer, and {parts[0].source.given} and "
            f"{readers[1].source.given} have different ones",
            fix="Give models that were fine-tuned from one base",
        )
    return Members(tuple(parts), readers, reads)


def _check_problems(parts: Sequence[TextParts]) -> None:
    """All read their logits alike: as one label, several, a number; as what kind of embedding."""
    first = parts[0]
    for each in parts:
        if each.task.problem != first.task.problem:
            raise UsageError(
                f"the members of an ensemble read their logits alike: {first.source.given} as "
                f"{first.task.problem}, and {each.source.given} as {each.task.problem}",
                fix="Give models of one kind, or correct problem_type in their config.json",
            )
        if each.task.pooling == NO_POOLING:
            raise UsageError(
                f"{each.source.given} gives an embedding for each token, and only embeddings "
                "of whole texts are combined",
                fix="Save it with sentence-transformers and a pooling",
            )
        if each.task.problem == REGRESSION:
            _check_scale(first, each)


def _check_scale(first: TextParts, other: TextParts) -> None:
    one, two = score_activation_of(first.source), score_activation_of(other.source)
    if one != two:
        raise UsageError(
            f"the scores of the members are on different scales: {first.source.given} gives its "
            f"logit behind {one}, and {other.source.given} behind {two}",
            fix="Give members with the same activation",
        )


def _check_combination(parts: TextParts, combination: Combination) -> None:
    rule, normalize = combination.rule, combination.normalize
    task = parts.task
    if rule in (STACK, FEATURES):
        if parts.spec.name != TEXT_CLASSIFICATION:
            raise UsageError(
                f"a second stage reads what classifiers of texts give, and {parts.source.given} "
                f"does {parts.spec.name}",
                fix=f"Give checkpoints for {TEXT_CLASSIFICATION}",
            )
        return
    numbers = task.problem == REGRESSION
    if parts.spec.name == FEATURE_EXTRACTION and rule not in (MEAN, WEIGHTED):
        raise UsageError(f"embeddings are not combined by '{rule}'", fix="Choose mean or weighted")
    if numbers and rule == VOTE:
        raise UsageError(
            "these models give numbers, and a vote needs labels",
            fix="Choose mean, weighted or max",
        )
    if normalize and (numbers or parts.spec.name == FEATURE_EXTRACTION):
        what = "numbers" if numbers else "embeddings"
        raise UsageError(
            f"these models give {what}, and only logits of labels are normalised",
            fix="Leave --normalize out",
        )
    if normalize == ZSCORE and task.problem == MULTI_LABEL:
        raise UsageError(
            "the sign of a logit decides where several labels may be right, and a z-score "
            "does not keep it",
            fix="Choose --normalize softmax or temperature",
        )
    if normalize == ZSCORE and len(task.labels) < _LEAST_FOR_ZSCORE:
        raise UsageError(
            f"z-scores of {len(task.labels)} labels are the same for every text",
            fix="Choose --normalize softmax or temperature",
        )


def _check_labels(first: TextParts, other: TextParts) -> None:
    """Both have the same labels, in whatever order. A lone one needs no name."""
    wanted, own = first.task.labels, other.task.labels
    if len(wanted) == len(own) < 2:
        return
    for parts, labels in ((first, wanted), (other, own)):
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise UsageError(
                f"labels are aligned by name, and {parts.source.given} has two called '{twice}'",
                fix="Correct id2label in its config.json",
            )
    missing = [label for label in wanted if label not in own]
    extra = [label for label in own if label not in wanted]
    if missing or extra:
        lacks = f"lacks '{missing[0]}'" if missing else ""
        has = f"has '{extra[0]}', which {first.source.given} lacks" if extra else ""
        raise UsageError(
            f"the members of an ensemble have the same labels: {other.source.given} "
            + " and ".join(part for part in (lacks, has) if part),
            fix=_RENAME,
        )


def _by_tokenizer(parts: Sequence[TextParts]) -> tuple[tuple[TextParts, ...], tuple[int, ...]]:
    """A member for each tokenizer, and which of them reads text as each member does."""
    known: list[dict[str, Any]] = []
    readers, reads = [], []
    for each in parts:
        reading = _reading(each)
        if reading not in known:
            known.append(reading)
            readers.append(each)
        reads.append(known.index(reading))
    return tuple(readers), tuple(reads)


def _reading(parts: TextParts) -> dict[str, Any]:
    """All that decides which tensors a text becomes, apart from its length."""
    tokenizer = parts.tokenizer
    portable = portable_from_tokenizer(tokenizer, parts.source.given)
    described = json.loads(portable.rust.to_str())
    cut_from = str((described.get("truncation") or {}).get("direction", "right")).lower()
    for part in _NOT_READING:
        described.pop(part, None)
    return {
        "tokenizer": described,
        "cut_from": cut_from,
        "unknown": (portable.missing_from, portable.unknown_id),
        "padding": (
            tokenizer.pad_token_id,
            tokenizer.pad_token_type_id,
            tokenizer.padding_side,
        ),
        "prompts": prompts_of(parts.source),
    }
