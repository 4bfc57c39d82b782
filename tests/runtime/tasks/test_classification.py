"""Text classification: by hand where the arithmetic is short, and against transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from text_models import TEXTS, Both, names

from tfc.errors import BadArtifact, UsageError
from tfc.manifest import Task
from tfc.runtime.tasks.base import Item, TextModel
from tfc.runtime.tasks.classification import ClassificationOptions, TextClassification
from tfc.runtime.tasks.scores import sigmoid, softmax

SINGLE = Task("text-classification", "single_label", ["a", "b", "c"])
MULTI = Task("text-classification", "multi_label", ["a", "b", "c"])


def predict(task: Task, *rows: Any, dtype: Any = np.float32) -> list[dict[str, Any]]:
    encoder: Any = None  # the logits are all that it reads
    reader = TextClassification(TextModel(task, encoder, 128), ClassificationOptions())
    outputs = [{"logits": np.asarray(row, dtype)} for row in rows]
    return [reader.read(Item("", "item 0"), [None], [output]) for output in outputs]


def test_single_label_gives_probabilities_in_the_order_of_the_labels() -> None:
    (found,) = predict(SINGLE, [0.0, math.log(2), math.log(5)])
    assert found["label"] == "c"
    assert found["score"] == pytest.approx(5 / 8)
    assert found["scores"] == pytest.approx({"a": 1 / 8, "b": 2 / 8, "c": 5 / 8})
    assert list(found["scores"]) == ["a", "b", "c"]


def test_rows_are_independent() -> None:
    together = predict(SINGLE, [3, 1, 0], [0, 9, 0])
    assert together == [predict(SINGLE, [3, 1, 0])[0], predict(SINGLE, [0, 9, 0])[0]]
    assert [row["label"] for row in together] == ["a", "b"]


def test_large_half_precision_logits_do_not_overflow() -> None:
    (found,) = predict(SINGLE, [60000, -60000, 59990], dtype=np.float16)
    assert found["scores"]["b"] == 0.0
    assert sum(found["scores"].values()) == pytest.approx(1.0, abs=1e-12)
    assert found["label"] == "a"


def test_softmax_is_computed_in_float64() -> None:
    logits = np.array([[0.1, 0.2, 0.3]])
    exact = [math.exp(x) / sum(math.exp(y) for y in (0.1, 0.2, 0.3)) for x in (0.1, 0.2, 0.3)]
    assert softmax(logits)[0].tolist() == pytest.approx(exact, abs=1e-15)


def test_sigmoid_is_stable_on_both_sides() -> None:
    found = sigmoid(np.array([-1e4, -2.0, 0.0, 2.0, 1e4]))
    assert found.tolist() == pytest.approx(
        [0.0, 1 / (1 + math.exp(2)), 0.5, 1 / (1 + math.exp(-2)), 1.0], abs=1e-15
    )


def test_multi_label_gives_those_that_are_more_likely_than_not() -> None:
    found = predict(MULTI, [0.0, -1e-3, 4.0], [-1, -2, -3])
    assert [row["labels"] for row in found] == [["a", "c"], []]
    assert found[0]["scores"]["c"] == pytest.approx(1 / (1 + math.exp(-4)))


def test_regression_gives_the_value_itself() -> None:
    one = Task("text-classification", "regression", ["LABEL_0"])
    three = Task("text-classification", "regression", ["x", "y", "z"])
    assert predict(one, [-2.5]) == [{"score": -2.5}]
    assert predict(three, [1, 2, -3]) == [{"scores": {"x": 1.0, "y": 2.0, "z": -3.0}}]


def test_predictions_are_json() -> None:
    for task in (SINGLE, MULTI):
        assert json.loads(json.dumps(predict(task, [1, 2, 3]))) == predict(task, [1, 2, 3])


def test_refuses_an_output_that_does_not_fit_the_labels() -> None:
    with pytest.raises(BadArtifact, match="2 logits, and there are 3 labels"):
        predict(SINGLE, [1, 2])


def test_refuses_an_unknown_problem() -> None:
    with pytest.raises(BadArtifact, match="'ranking'"):
        predict(Task("text-classification", "ranking", ["a"]), [1])


@pytest.mark.ort
@pytest.mark.parametrize(
    ("problem", "function"),
    [
        ("single_label_classification", None),
        ("multi_label_classification", None),
        ("regression", None),
        ("single_label_classification", "sigmoid"),
        ("multi_label_classification", "softmax"),
        ("single_label_classification", "none"),
    ],
)
def test_equals_transformers(both: Callable[..., Both], problem: str, function: str | None) -> None:
    model = both("text-classification", "SequenceClassification", problem_type=problem)
    pipeline = model.pipeline("text-classification")
    found = model.session.predict(TEXTS, function_to_apply=function)
    best = model.session.predict(TEXTS, function_to_apply=function, top_k=2)
    for text, whole, two in zip(TEXTS, found, best, strict=True):
        expected = pipeline(text, top_k=None, function_to_apply=function)
        named = {entry["label"]: entry["score"] for entry in expected}
        assert whole["scores"] == pytest.approx(named, rel=1e-5, abs=1e-6)
        assert two["scores"] == pytest.approx(dict([*named.items()][:2]), rel=1e-5, abs=1e-6)
        assert list(two["scores"]) == [*named][:2]
        if problem.startswith("single"):
            assert whole["label"] == expected[0]["label"]
            assert whole["score"] == pytest.approx(expected[0]["score"], rel=1e-5)


@pytest.mark.ort
def test_one_logit_can_be_read_as_the_pipeline_does(both: Callable[..., Both]) -> None:
    """A config without a problem and with one label: transformers' pipeline takes the sigmoid."""
    model = both("text-classification", "SequenceClassification", id2label=names(["relevance"]))
    found = model.session.predict(TEXTS, function_to_apply="sigmoid")
    expected = [entry["score"] for entry in model.pipeline("text-classification")(TEXTS)]
    assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-5)


def test_refuses_no_labels_at_all() -> None:
    with pytest.raises(UsageError, match="top_k 0"):
        ClassificationOptions(top_k=0)
