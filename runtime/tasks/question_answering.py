"""Question answering: a question and a context → the part of the context that answers.

An item is a tuple ``(question, context)``. A prediction holds ``answer`` (the text), ``score``
(its probability), ``start`` and ``end`` (characters of the context); with `top_k` above 1 also
``answers``, a list of such, best first. Where nothing answers ``answer`` is empty and start and
end are 0; with `handle_impossible_answer` that competes with the others.

A long context is read in windows that overlap. Answers are those of the last question-answering
pipeline of transformers (4.57): of each window the likeliest spans of up to `max_answer_len`
tokens, each widened to whole words; spans of equal text, also of several windows, are one answer
whose score is the sum. Where that pipeline strays from its documentation this does not: a
question is cut at `max_question_len`, answers are spans of the context only, wherever padding
stands, and no span of probability 0 fills up the `top_k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfc.errors import BadInput, TfcError, UsageError
from tfc.manifest import Task as TaskRecord
from tfc.runtime.pieces import cut, windows_of
from tfc.runtime.rows import Columns
from tfc.runtime.tasks.base import (
    Item,
    Prediction,
    Row,
    RowOutputs,
    TextModel,
    TextTask,
    too_long,
)
from tfc.runtime.tasks.options import option
from tfc.runtime.tasks.spans import best_spans, candidates_of, characters_of

if TYPE_CHECKING:
    from tokenizers import Encoding

Answer = dict[str, Any]

# The lengths that BERT was fine-tuned with on SQuAD: windows of 384 tokens, 128 of them shared.
DEFAULT_SEQ_LEN, DEFAULT_STRIDE = 384, 128


@dataclass(frozen=True)
class AnswerOptions:
    """What a call may choose; lengths are in tokens."""

    top_k: int = option("how many answers to give", 1)
    max_answer_len: int = option("the longest answer, in tokens", 15)
    max_question_len: int = option("cut questions at so many tokens", 64)
    max_seq_len: int | None = option(
        "tokens of a window; if left out 384 or the model's limit", None
    )
    doc_stride: int | None = option("overlap of windows; if left out 128 or half a window", None)
    handle_impossible_answer: bool = option("whether 'no answer' may win", False)
    align_to_words: bool = option("widen answers to whole words", True)

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "max_question_len", "max_seq_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} {value} is not possible", fix="Give 1 or more")
        if self.doc_stride is not None and self.doc_stride < 0:
            raise UsageError(f"doc_stride {self.doc_stride} is not possible", fix="Give 0 or more")


class QuestionAnswering(TextTask[AnswerOptions]):
    """A row per window: question and part of the context; the outputs are `[tokens]` each.

    The question comes first, or where padding stands left the context, as transformers has it.
    """

    name = "question-answering"
    options = AnswerOptions
    columns = Columns("question", "context")
    offsets = True
    pairs = True

    def __init__(self, model: TextModel, options: AnswerOptions) -> None:
        super().__init__(model, options)
        self._question_first = model.encoder.preprocess.padding_side == "right"
        self._length = options.max_seq_len or min(DEFAULT_SEQ_LEN, model.longest)
        stride = options.doc_stride
        self._stride = min(DEFAULT_STRIDE, self._length // 2) if stride is None else stride
        if self._length > model.longest:
            raise UsageError(
                f"max_seq_len {self._length} is not possible: the model takes {model.longest}",
                fix="Give a smaller one, or leave it out",
            )
        if self._stride >= self._length:
            raise UsageError(
                f"doc_stride {self._stride} is not possible: a window has {self._length} tokens",
                fix="Give a smaller one, or leave it out",
            )

    @classmethod
    def outputs(cls, record: TaskRecord) -> tuple[str, ...]:
        """Where an answer starts, and where it ends."""
        return "start_logits", "end_logits"

    def check(self, item: Item) -> None:
        """Refuse what is not two texts, and empty ones."""
        super().check(item)
        if not isinstance(item.value, tuple):
            raise BadInput(
                "question-answering takes a question and a context, not one text",
                where=item.where,
                fix="Give tuples: (question, context)",
            )
        for name, text in zip(("question", "context"), item.value, strict=True):
            if not text:
                raise BadInput(f"the {name} is empty", where=item.where, fix=f"Give a {name}")

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        """The windows of each context, each with the question."""
        encoder = self._model.encoder
        questions = encoder.tokenize([item.value[0] for item in items])
        contexts = encoder.tokenize([item.value[1] for item in items])
        return [self._windows(*each) for each in zip(items, questions, contexts, strict=True)]

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The best answers."""
        options, context = self._options, item.value[1]
        answers: dict[str, Answer] = {}
        impossible = 1.0
        for row, output in zip(rows, outputs, strict=True):
            candidates = candidates_of(output, row, context_first=not self._question_first)
            impossible = min(impossible, candidates.impossible)
            for span in best_spans(candidates, self._wanted, options.max_answer_len):
                places = characters_of(
                    row, span, candidates.allowed, whole_words=options.align_to_words
                )
                _add(answers, context, places, span.score)
        found = list(answers.values())
        if options.handle_impossible_answer or not found:
            score = impossible if options.handle_impossible_answer else 0.0
            found.append(_answer("", score, 0, 0))
        found = sorted(found, key=lambda answer: -float(answer["score"]))[: options.top_k]
        return found[0] if options.top_k == 1 else {**found[0], "answers": found}

    @property
    def _wanted(self) -> int:
        """How many spans to take of a window: some become one when they are widened to words."""
        return self._options.top_k * 2 + 10 if self._options.align_to_words else self._options.top_k

    def _windows(
        self, item: Item, question: Encoding, context: Encoding
    ) -> list[Encoding] | BadInput:
        encoder = self._model.encoder
        if self._model.refuse_long and len(question) > self._options.max_question_len:
            return too_long(item, self._options.max_question_len)
        question = cut(question, self._options.max_question_len)
        room = self._length - encoder.special_tokens(pair=True) - len(question)
        if room < 1:
            return BadInput(
                f"the question has {len(question)} tokens, which leave no room for the context in"
                f" windows of {self._length}",
                where=item.where,
                fix="Cut the question with max_question_len, or raise max_seq_len",
            )
        # A long question may leave less than the stride.
        stride = self._stride if self._stride < room else room // 2
        return [
            encoder.join(question, piece) if self._question_first else encoder.join(piece, question)
            for piece in windows_of(context, room, stride)
        ]


def _add(answers: dict[str, Answer], context: str, places: tuple[int, int], score: float) -> None:
    """Add a span to the answer of its text; upper and lower case are one."""
    text = context[slice(*places)]
    known = answers.setdefault(text.lower(), _answer(text, 0.0, *places))
    known["score"] += score


def _answer(text: str, score: float, start: int, end: int) -> Answer:
    return {"answer": text, "score": score, "start": start, "end": end}
