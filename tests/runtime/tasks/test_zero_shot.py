"""Zero-shot classification: the labels and scores of transformers' pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from text_models import TEXTS, Both, names

from tfc.errors import BadArtifact, BadInput, UsageError
from tfc.runtime.tasks.zero_shot import ZeroShotOptions, entailment_id

NLI = ["contradiction", "neutral", "entailment"]
OTHER_ORDER = ["ENTAILMENT", "neutral", "contradiction"]
CANDIDATES = ["politics", "sport", "a very long label indeed", "科学"]


def made(both: Callable[..., Both], labels: list[str]) -> Both:
    values = {"id2label": names(labels), "label2id": {n: i for i, n in enumerate(labels)}}
    return both("zero-shot-classification", "SequenceClassification", **values)


@pytest.mark.ort
@pytest.mark.parametrize("labels", [NLI, OTHER_ORDER])
@pytest.mark.parametrize(
    ("candidates", "multi_label"), [(CANDIDATES, False), (CANDIDATES, True), (["sport"], False)]
)
@pytest.mark.parametrize("hypothesis", ["This example is {}.", "{}!"])
def test_equals_transformers(
    both: Callable[..., Both],
    labels: list[str],
    candidates: list[str],
    multi_label: bool,
    hypothesis: str,
) -> None:
    model = made(both, labels)
    pipeline = model.pipeline("zero-shot-classification")
    texts = [*TEXTS, " ".join(TEXTS) * 4]  # the last one is cut, its hypotheses are not
    found = model.session.predict(
        texts, labels=candidates, multi_label=multi_label, hypothesis=hypothesis
    )
    for text, prediction in zip(texts, found, strict=True):
        expected = pipeline(
            text, candidates, multi_label=multi_label, hypothesis_template=hypothesis
        )
        assert list(prediction["scores"]) == expected["labels"]
        scores = list(prediction["scores"].values())
        assert scores == pytest.approx(expected["scores"], abs=1e-5)
        assert prediction["label"] == expected["labels"][0]
        assert prediction["score"] == scores[0]


@pytest.mark.ort
def test_what_cannot_be_classified(both: Callable[..., Both]) -> None:
    session = made(both, NLI).session
    texts = ["a", "", ("a", "b"), "c"]
    errors = [outcome.error for outcome in session.outcomes(texts, labels=["x", "y"])]
    assert [type(error) for error in errors] == [type(None), BadInput, BadInput, type(None)]
    with pytest.raises(UsageError, match=r"needs the option 'labels'.*--set labels="):
        session.predict(["a"])
    with pytest.raises(UsageError, match="leaves no room for the text: the model takes 128"):
        session.predict(["a"], labels=["x", "long " * 125])


@pytest.mark.ort
def test_tokens_of_all_rows_are_counted(both: Callable[..., Both]) -> None:
    session = made(both, NLI).session
    (outcome,) = session.outcomes(["one two"], labels=["x", "y"], hypothesis="{}")
    assert (outcome.tokens, outcome.padded) == (12, 12)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labels": ()}, "empty"),
        ({"labels": ("a", "a")}, "twice"),
        ({"labels": ("a",), "hypothesis": "This is it"}, "no place for the label"),
        ({"labels": ("a",), "hypothesis": "{} {}"}, "no place"),
        ({"labels": ("a",), "hypothesis": "{name}"}, "no place"),
        ({"labels": ("a",), "hypothesis": "{"}, "no place"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        ZeroShotOptions(**options)


@pytest.mark.parametrize(
    ("labels", "place"), [(NLI, 2), (OTHER_ORDER, 0), (["not_entailment", "Entails"], 1)]
)
def test_finds_entailment_by_its_name(labels: list[str], place: int) -> None:
    assert entailment_id(labels) == place


def test_refuses_a_model_without_entailment() -> None:
    with pytest.raises(BadArtifact, match="no label of this model is entailment: a, b"):
        entailment_id(["a", "b"])
