"""Text classification: the logits of a text or a pair → labels and their probabilities.

A prediction holds, by the model's problem:

- ``single_label``: ``label``, ``score`` (its probability), ``scores`` (label → probability; they
  sum to 1);
- ``multi_label``: ``labels`` (those of probability ≥ 0.5), ``scores``;
- ``regression``: ``score``; with several outputs ``scores``.

A model of one logit is a regression unless its config says otherwise; transformers' pipeline takes
the sigmoid of it where the config says nothing, as `function_to_apply` "sigmoid" does here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tfc.errors import BadArtifact, UsageError
from tfc.manifest import Task as TaskRecord
from tfc.runtime.tasks.base import (
    Array,
    Item,
    Prediction,
    Row,
    RowOutputs,
    TextModel,
    TextTask,
    check_labels,
)
from tfc.runtime.tasks.options import option
from tfc.runtime.tasks.scores import Floats, sigmoid, softmax

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label", "multi_label", "regression"
# A label is given where it is more likely than not: the logit 0 that binary cross-entropy, with
# which transformers trains multi-label classifiers, separates at.
LEAST_LOGIT = 0.0


def _unchanged(logits: Array) -> Floats:
    return logits.astype(np.float64)


_FUNCTIONS: dict[str, Callable[[Array], Floats]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": _unchanged,
}
_DEFAULTS = {SINGLE_LABEL: "softmax", MULTI_LABEL: "sigmoid", REGRESSION: "none"}


@dataclass(frozen=True)
class ClassificationOptions:
    """What a call may choose."""

    top_k: int | None = option("keep so many of 'scores', best first", None)
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = option(
        "softmax, sigmoid or none, instead of the model's own", None
    )

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k {self.top_k} is not possible", fix="Give 1 or more")


class LabelReader:
    """Logits `[labels]` → a prediction.

    Raises:
        BadArtifact: the manifest names a problem that there is not.
    """

    def __init__(self, record: TaskRecord, options: ClassificationOptions) -> None:
        if record.problem not in _DEFAULTS:
            raise BadArtifact(
                f"the manifest names an unknown kind of {record.name}: '{record.problem}'",
                fix="Export the checkpoint again with: tfc export --overwrite",
            )
        self._labels, self._problem = record.labels, record.problem
        self._top_k = options.top_k
        self._function = _FUNCTIONS[options.function_to_apply or _DEFAULTS[record.problem]]

    def read(self, logits: Array) -> Prediction:
        """The prediction of one item."""
        labels, problem = self._labels, self._problem
        check_labels(logits.shape[-1], labels)
        values = self._function(logits).tolist()
        if problem == REGRESSION and len(values) == 1:
            return {"score": values[0]}
        scores = self._kept(dict(zip(labels, values, strict=True)))
        if problem == REGRESSION:
            return {"scores": scores}
        if problem == MULTI_LABEL:
            given = zip(labels, logits.tolist(), strict=True)
            return {"labels": [n for n, logit in given if logit >= LEAST_LOGIT], "scores": scores}
        best = int(logits.argmax())
        return {"label": labels[best], "score": values[best], "scores": scores}

    def _kept(self, scores: dict[str, float]) -> dict[str, float]:
        if self._top_k is None:
            return scores
        best = sorted(scores, key=lambda label: -scores[label])
        return {label: scores[label] for label in best[: self._top_k]}


class TextClassification(TextTask[ClassificationOptions]):
    """One row per text; the logits are `[labels]`."""

    name = "text-classification"
    options = ClassificationOptions
    pairs = True

    def __init__(self, model: TextModel, options: ClassificationOptions) -> None:
        super().__init__(model, options)
        self._reader = LabelReader(model.task, options)

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The prediction of one text."""
        return self._reader.read(outputs[0]["logits"])


class ClassificationHeads(TextTask[ClassificationOptions]):
    """Several classifiers on the same text: one row, and the logits `[labels]` of each by name."""

    name = "classification-heads"
    options = ClassificationOptions
    pairs = True

    def __init__(self, model: TextModel, options: ClassificationOptions) -> None:
        super().__init__(model, options)
        self._readers = {
            name: LabelReader(record, options) for name, record in model.task.heads.items()
        }

    @classmethod
    def outputs(cls, record: TaskRecord) -> tuple[str, ...]:
        """One for each head, with its name."""
        return tuple(record.heads)

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """What each head says of one text, by its name."""
        return {name: reader.read(outputs[0][name]) for name, reader in self._readers.items()}
