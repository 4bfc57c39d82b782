"""Token classification: a text → its entities, with their places in it.

A prediction holds ``entities``: each ``label``, ``score``, ``start``, ``end`` (characters of the
text) and ``text`` (those characters).

By `aggregation`, as transformers' pipeline of that strategy finds them:

- ``none``: every token with its label as the model names it (``B-PER``);
- ``simple``: neighbouring tokens of one label are one entity. A ``B-`` token starts one, an ``I-``
  token (or one of a bare label) goes on with one; its score is the mean of its tokens';
- ``first``, ``average``, ``max``: the tokens of a word get one label before that: the first
  token's, the one of the best mean probability, or the surest token's.

A bare label with a dash in it (``CREDIT-CARD``) stays whole, which transformers halves.

A text longer than the model takes is cut; with `stride` it is read in windows that overlap by so
many tokens, and of entities that overlap the longest is kept, or the surest of equals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tfc.errors import TfcError, UsageError
from tfc.runtime.pieces import windows_of
from tfc.runtime.tasks.base import (
    Item,
    Prediction,
    Row,
    RowOutputs,
    TextModel,
    TextTask,
    check_labels,
)
from tfc.runtime.tasks.options import option
from tfc.runtime.tasks.scores import softmax
from tfc.runtime.tasks.words import Span, Words, grouped, labelled, merged_words

if TYPE_CHECKING:
    from tokenizers import Encoding

Entity = dict[str, Any]


@dataclass(frozen=True)
class EntityOptions:
    """What a call may choose."""

    aggregation: Literal["none", "simple", "first", "average", "max"] = option(
        "none, simple, first, average or max", "simple"
    )
    ignore_labels: tuple[str, ...] = option("labels to leave out", ("O",))
    stride: int | None = option("read long texts in windows with this overlap", None)

    def __post_init__(self) -> None:
        if self.stride is None:
            return
        if self.stride < 0:
            raise UsageError(f"stride {self.stride} is not possible", fix="Give 0 or more")
        if self.aggregation == "none":
            raise UsageError(
                "windows overlap, and so would the tokens of aggregation 'none'",
                fix="Choose another aggregation, or leave the stride out",
            )


class TokenClassification(TextTask[EntityOptions]):
    """A row per text, or per window of it; the logits are `[tokens, labels]`."""

    name = "token-classification"
    options = EntityOptions
    offsets = True

    def __init__(self, model: TextModel, options: EntityOptions) -> None:
        super().__init__(model, options)
        self._room = model.longest - model.encoder.special_tokens(pair=False)
        if options.stride is not None and options.stride >= self._room:
            raise UsageError(
                f"stride {options.stride} is not possible: a window has {self._room} tokens",
                fix="Give a smaller stride",
            )

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        """One row per text, or one per window."""
        stride = self._options.stride
        if stride is None:
            return super().rows(items)
        encoder = self._model.encoder
        return [
            [encoder.join(piece) for piece in windows_of(text, self._room, stride)]
            for text in encoder.tokenize([item.value for item in items])
        ]

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The entities of one text, in its order."""
        found: list[Entity] = []
        for row, output in zip(rows, outputs, strict=True):
            spans = self._spans(item.value, row, output)
            found += [
                _entity(span, item.value)
                for span in spans
                if span.label not in self._options.ignore_labels
            ]
        return {"entities": found if len(rows) == 1 else without_overlaps(found)}

    def _spans(self, text: str, row: Encoding, output: RowOutputs) -> list[Span]:
        labels, aggregation = self._model.task.labels, self._options.aggregation
        check_labels(output["logits"].shape[-1], labels)
        probabilities = softmax(output["logits"])
        if aggregation in ("first", "average", "max"):
            encoder = self._model.encoder
            words = Words(encoder.subword_prefix, encoder.unknown_id)
            return grouped(merged_words(words.of(row, text), probabilities, labels, aggregation))
        tokens = [i for i, special in enumerate(row.special_tokens_mask) if not special]
        spans = [labelled([token], probabilities[token], labels, row.offsets) for token in tokens]
        return spans if aggregation == "none" else grouped(spans)


def without_overlaps(entities: Sequence[Entity]) -> list[Entity]:
    """Of entities of which each begins within the one before, the longest; the surest of equals."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: int(entity["start"])):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif _weight(entity) > _weight(kept[-1]):
            kept[-1] = entity
    return kept


def _weight(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _entity(span: Span, text: str) -> Entity:
    return {
        "label": span.label,
        "score": span.score,
        "start": span.start,
        "end": span.end,
        "text": text[span.start : span.end],
    }
