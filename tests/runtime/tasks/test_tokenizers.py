"""Every task with tokenizers of other kinds: their words, spaces and unknown tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from span_search import BruteForce, expected_prediction
from text_models import TEXTS, Both, names
from tokenizers_made import byte_level, unigram

pytestmark = [
    pytest.mark.ort,
    pytest.mark.parametrize("tokenizer", [byte_level, unigram], ids=["byte-level", "unigram"]),
]

IOB = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NLI = ["contradiction", "neutral", "entailment"]
Make = Callable[..., Both]
Tokenizer = Callable[[], Any]


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_entities(both: Make, tokenizer: Tokenizer, aggregation: str) -> None:
    model = both(
        "token-classification",
        "TokenClassification",
        tokenizer=tokenizer,
        id2label=names(IOB),
    )
    options: dict[str, Any] = {"ignore_labels": []}
    pipeline = model.pipeline("token-classification", aggregation_strategy=aggregation, **options)
    found = model.session.predict(TEXTS, aggregation=aggregation, **options)
    for text, prediction in zip(TEXTS, found, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it guesses where words begin
            expected = pipeline(text)
        assert [(e["label"], e["start"], e["end"]) for e in prediction["entities"]] == [
            (e.get("entity_group", e.get("entity")), e["start"], e["end"]) for e in expected
        ]
        assert [e["score"] for e in prediction["entities"]] == pytest.approx(
            [e["score"] for e in expected], abs=1e-5
        )


def test_masks(both: Make, tokenizer: Tokenizer) -> None:
    model = both("fill-mask", "MaskedLM", tokenizer=tokenizer)
    pipeline = model.pipeline("fill-mask")
    texts = ["who met <mask> in London?", "a <mask> b<mask>, and <unk>"]
    for text, found in zip(texts, model.session.predict(texts), strict=True):
        expected = pipeline(text)
        masks = expected if isinstance(expected[0], list) else [expected]
        for ours, theirs in zip(found["masks"], masks, strict=True):
            close = [{**e, "score": pytest.approx(e["score"], rel=1e-4)} for e in theirs]
            assert ours == close


def test_answers(both: Make, tokenizer: Tokenizer) -> None:
    model = both(
        "question-answering",
        "QuestionAnswering",
        tokenizer=tokenizer,
        id2label=names(["start", "end"]),
    )
    reference = BruteForce(model.checkpoint)
    cases = [("who met whom?", text) for text in [*TEXTS, " ".join(TEXTS)]]
    for options in ({"top_k": 3}, {"top_k": 2, "align_to_words": False}):
        for case, found in zip(cases, model.session.predict(cases, **options), strict=True):
            assert found == expected_prediction(reference.answers(*case, **options), options)


def test_zero_shot(both: Make, tokenizer: Tokenizer) -> None:
    model = both(
        "zero-shot-classification",
        "SequenceClassification",
        tokenizer=tokenizer,
        id2label=names(NLI),
        label2id={name: place for place, name in enumerate(NLI)},
    )
    pipeline = model.pipeline("zero-shot-classification")
    labels = ["refund", "London"]
    for text, found in zip(TEXTS, model.session.predict(TEXTS, labels=labels), strict=True):
        expected = pipeline(text, labels)
        assert list(found["scores"]) == expected["labels"]
        assert list(found["scores"].values()) == pytest.approx(expected["scores"], abs=1e-5)
