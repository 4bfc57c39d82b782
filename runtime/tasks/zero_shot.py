"""Zero-shot classification: a text → how likely each of the labels is that the call names.

A model of natural language inference says whether the text entails a hypothesis about each label
("This example is {}."). A prediction holds ``label``, ``score``, and ``scores`` (label →
probability, best first; they sum to 1 unless ``multi_label``).

Numbers are those of transformers' zero-shot pipeline: softmax of the entailment logits over the
labels; with ``multi_label``, or one label only, of entailment against contradiction for each.
Where the text is too long it is cut, and the hypothesis stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfc.errors import BadArtifact, BadInput, TfcError, UsageError
from tfc.runtime.pieces import BareTokens, bare, cut
from tfc.runtime.tasks.base import (
    Item,
    Prediction,
    Row,
    RowOutputs,
    TextModel,
    TextTask,
    too_long,
)
from tfc.runtime.tasks.options import option
from tfc.runtime.tasks.scores import softmax

if TYPE_CHECKING:
    from tokenizers import Encoding

# As transformers finds it; what is left of "entailment", "entailed", "ENTAILS".
ENTAILMENT = "entail"


@dataclass(frozen=True)
class ZeroShotOptions:
    """What a call may choose."""

    labels: tuple[str, ...] = option("the labels to choose among")
    hypothesis: str = option("what a label claims; {} is the label", "This example is {}.")
    multi_label: bool = option("whether several labels may be true", False)

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise UsageError(
                "the labels are empty, or one stands twice", fix="Give labels that differ"
            )
        try:
            fits = self.hypotheses[0] != self.hypothesis
        except (LookupError, ValueError, AttributeError):  # what str.format makes of other braces
            fits = False
        if not fits:
            raise UsageError(
                f"the hypothesis '{self.hypothesis}' has no place for the label",
                fix="Put {} where the label is to stand",
            )

    @property
    def hypotheses(self) -> list[str]:
        """What each label claims."""
        return [self.hypothesis.format(label) for label in self.labels]


class ZeroShotClassification(TextTask[ZeroShotOptions]):
    """One row per label: the text and the hypothesis; the logits are those of the NLI labels."""

    name = "zero-shot-classification"
    options = ZeroShotOptions

    def __init__(self, model: TextModel, options: ZeroShotOptions) -> None:
        super().__init__(model, options)
        self._entailment = entailment_id(model.task.labels)
        self._hypotheses = model.encoder.tokenize(options.hypotheses)
        special = model.encoder.special_tokens(pair=True)
        self._rooms = [model.longest - special - len(tokens) for tokens in self._hypotheses]
        if min(self._rooms) < 1:
            longest = options.labels[int(np.argmin(self._rooms))]
            raise UsageError(
                f"the hypothesis about '{longest}' leaves no room for the text: the model takes"
                f" {model.longest} tokens",
                fix="Give shorter labels, or a shorter hypothesis",
            )

    def check(self, item: Item) -> None:
        """Refuse what is no text, pairs and empty texts."""
        super().check(item)
        if not item.value:
            raise BadInput("the text is empty", where=item.where, fix="Give a text to classify")

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        """One row per label for each text."""
        texts = self._model.encoder.tokenize([item.value for item in items])
        return [
            too_long(item, self._model.longest)
            if self._model.refuse_long and len(text) > min(self._rooms)
            else self._pairs(text)
            for item, text in zip(items, texts, strict=True)
        ]

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The labels, best first."""
        logits = np.stack([output["logits"] for output in outputs])
        if self._options.multi_label or len(rows) == 1:
            contradiction = -1 if self._entailment == 0 else 0
            values = softmax(logits[:, [contradiction, self._entailment]])[:, 1].tolist()
        else:
            values = softmax(logits[:, self._entailment]).tolist()
        found = dict(zip(self._options.labels, values, strict=True))
        scores = {label: found[label] for label in sorted(found, key=lambda name: -found[name])}
        best = next(iter(scores))
        return {"label": best, "score": scores[best], "scores": scores}

    def _pairs(self, text: Encoding) -> list[BareTokens]:
        encoder = self._model.encoder
        return [
            bare(encoder.join(cut(text, room, encoder.direction), hypothesis))
            for room, hypothesis in zip(self._rooms, self._hypotheses, strict=True)
        ]


def entailment_id(labels: Sequence[str]) -> int:
    """The place of the label that says that the hypothesis follows from the text.

    Raises:
        BadArtifact: no label says so.
    """
    for place, label in enumerate(labels):
        if label.lower().startswith(ENTAILMENT):
            return place
    raise BadArtifact(
        f"no label of this model is entailment: {', '.join(labels)}",
        fix="Export a model of natural language inference, with its labels named in id2label",
    )
