"""The graph's outputs → predictions: one plain dict of JSON values per text.

What a prediction holds, by task:

========================================  =====================================================
text-classification, ``single_label``     ``label``, ``score`` (its probability), ``scores``
                                          (label → probability; they sum to 1)
text-classification, ``multi_label``      ``labels`` (those of probability ≥ 0.5), ``scores``
text-classification, ``regression``       ``score``; with several outputs ``scores``
token-classification                      ``entities``: ``label``, ``score``, ``start``, ``end``
                                          (characters of the text), ``text``
feature-extraction                        ``embedding``; without pooling ``token_embeddings``,
                                          one vector per token, special tokens included
========================================  =====================================================

Probabilities are computed in float64 from the logits, whatever the engine's precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfc.errors import BadArtifact
from tfc.manifest import Task

if TYPE_CHECKING:
    from tokenizers import Encoding

Prediction = dict[str, Any]
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

LOGITS = "logits"
EMBEDDING = "embedding"
LAST_HIDDEN_STATE = "last_hidden_state"

TEXT_CLASSIFICATION = "text-classification"
TOKEN_CLASSIFICATION = "token-classification"
FEATURE_EXTRACTION = "feature-extraction"
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label", "multi_label", "regression"

# A label is given where it is more likely than not: the logit 0 that binary cross-entropy, with
# which transformers trains multi-label classifiers, separates at.
MULTI_LABEL_THRESHOLD = 0.5
OUTSIDE = "O"  # the IOB label of tokens that belong to no entity


def output_name(task: Task) -> str:
    """The graph output that predictions of `task` are read from."""
    if task.name != FEATURE_EXTRACTION:
        return LOGITS
    return LAST_HIDDEN_STATE if task.pooling == "none" else EMBEDDING


def needs_offsets(task: Task) -> bool:
    """Whether predictions hold places in the text."""
    return task.name == TOKEN_CLASSIFICATION


def per_token(task: Task) -> bool:
    """Whether the output is `[batch, seq, n]` instead of `[batch, n]`."""
    return output_name(task) == LAST_HIDDEN_STATE or task.name == TOKEN_CLASSIFICATION


def finite_rows(rows: Sequence[Array]) -> list[bool]:
    """For each row (its padding taken off) whether every value is a finite number."""
    return [bool(np.isfinite(row).all()) for row in rows]


def predictions(
    task: Task, rows: Sequence[Array], texts: Sequence[str], encodings: Sequence[Encoding]
) -> list[Prediction]:
    """One prediction for each row of the output.

    Args:
        task: what the model does.
        rows: the output of each text, its padding taken off: `[n]`, or `[tokens, n]` where
            `per_token(task)`.
        texts: the texts; used for token-classification.
        encodings: their tokens, with offsets; used for token-classification.

    Raises:
        BadArtifact: the output does not fit the task's labels.
    """
    if not rows:
        return []
    if task.labels and rows[0].shape[-1] != len(task.labels):
        raise BadArtifact(
            f"the graph gives {rows[0].shape[-1]} logits, and there are {len(task.labels)} labels",
            fix="Export the checkpoint again with: tfc export --overwrite",
        )
    if task.name == TEXT_CLASSIFICATION:
        return _reader(task)(np.stack(rows).astype(np.float64), task.labels)
    if task.name == TOKEN_CLASSIFICATION:
        return [
            {"entities": entities(row, task.labels, text, encoding)}
            for row, text, encoding in zip(rows, texts, encodings, strict=True)
        ]
    key = "token_embeddings" if task.pooling == "none" else "embedding"
    return [{key: row.astype(np.float32).tolist()} for row in rows]


def softmax(logits: Floats) -> Floats:
    """Probabilities over the last axis; the largest is subtracted first, so none overflows."""
    powers: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return found


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)) in the form in which no exponential overflows."""
    small: Floats = np.exp(-np.abs(logits))
    found: Floats = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return found


def _reader(task: Task) -> Callable[[Floats, Sequence[str]], list[Prediction]]:
    readers = {SINGLE_LABEL: _single_label, MULTI_LABEL: _multi_label, REGRESSION: _regression}
    if task.problem not in readers:
        raise BadArtifact(
            f"the manifest names an unknown kind of text-classification: '{task.problem}'",
            fix="Export the checkpoint again with: tfc export --overwrite",
        )
    return readers[task.problem]


def _single_label(logits: Floats, labels: Sequence[str]) -> list[Prediction]:
    probabilities = softmax(logits)
    best = probabilities.argmax(axis=-1).tolist()
    return [
        {"label": labels[i], "score": row[i], "scores": _named(row, labels)}
        for row, i in zip(probabilities.tolist(), best, strict=True)
    ]


def _multi_label(logits: Floats, labels: Sequence[str]) -> list[Prediction]:
    scored = [_named(row, labels) for row in sigmoid(logits).tolist()]
    return [
        {
            "labels": [label for label, p in scores.items() if p >= MULTI_LABEL_THRESHOLD],
            "scores": scores,
        }
        for scores in scored
    ]


def _regression(logits: Floats, labels: Sequence[str]) -> list[Prediction]:
    if logits.shape[-1] == 1:
        return [{"score": value} for (value,) in logits.tolist()]
    return [{"scores": _named(row, labels)} for row in logits.tolist()]


def _named(row: Sequence[float], labels: Sequence[str]) -> dict[str, float]:
    return dict(zip(labels, row, strict=True))


def entities(
    logits: Array, labels: Sequence[str], text: str, encoding: Encoding
) -> list[Mapping[str, Any]]:
    """Runs of tokens with the same label, as transformers' aggregation "simple" groups them.

    A `B-` token starts a run, an `I-` token (or one of a bare label) goes on with a run of the
    same label, special tokens are skipped, and runs of `O` are dropped. A run's score is the mean
    of its tokens' probabilities.

    Args:
        logits: `[tokens, labels]`.
        labels: the label of each logit.
        text: what was encoded.
        encoding: its tokens, with character offsets.
    """
    probabilities = softmax(logits.astype(np.float64))
    best = probabilities.argmax(axis=-1)
    runs: list[_Run] = []
    for token, special in enumerate(encoding.special_tokens_mask):
        if special:
            continue
        begins, label = _tag(labels[best[token]])
        if begins or not runs or runs[-1].label != label:
            runs.append(_Run(label))
        runs[-1].add(float(probabilities[token, best[token]]), encoding.offsets[token])
    return [run.entity(text) for run in runs if run.label != OUTSIDE]


class _Run:
    """Neighbouring tokens of one label."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._scores: list[float] = []
        self._offsets: list[tuple[int, int]] = []

    def add(self, score: float, offsets: tuple[int, int]) -> None:
        self._scores.append(score)
        self._offsets.append(offsets)

    def entity(self, text: str) -> dict[str, Any]:
        start, end = self._offsets[0][0], self._offsets[-1][1]
        score = sum(self._scores) / len(self._scores)
        return {
            "label": self.label,
            "score": score,
            "start": start,
            "end": end,
            "text": text[start:end],
        }


def _tag(label: str) -> tuple[bool, str]:
    """(whether it begins an entity, the entity's label) of an IOB label or a bare one."""
    if label.startswith("B-"):
        return True, label[2:]
    return False, label.removeprefix("I-")
