"""Fill-mask: the tokens, scores and sequences of transformers' pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from text_models import Both

from tfc.errors import BadArtifact, BadInput, UsageError
from tfc.manifest import Preprocess, Task
from tfc.runtime.tasks.base import TextModel
from tfc.runtime.tasks.fill_mask import FillMask, FillMaskOptions

pytestmark = pytest.mark.ort

TEXTS = [
    "The capital of France is [MASK].",
    "a [MASK] b [MASK] c 東京, naïve",
    "[MASK]",
    "don't [PAD] is [MASK] ?",
]


@pytest.fixture
def model(both: Callable[..., Both]) -> Both:
    return both("fill-mask", "MaskedLM")


def same(found: dict[str, Any], expected: Any) -> None:
    masks = expected if isinstance(expected[0], list) else [expected]
    assert len(found["masks"]) == len(masks)
    for ours, theirs in zip(found["masks"], masks, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one == {**other, "score": pytest.approx(other["score"], rel=1e-4)}


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 50}])
def test_equals_transformers(model: Both, options: dict[str, Any]) -> None:
    pipeline = model.pipeline("fill-mask")
    for text, found in zip(TEXTS, model.session.predict(TEXTS, **options), strict=True):
        same(found, pipeline(text, **options))


def test_targets_equal_transformers(model: Both, caplog: pytest.LogCaptureFixture) -> None:
    targets = ["paris", "london", "unbelievably", "paris"]  # the third is of several tokens
    with caplog.at_level(logging.CRITICAL):
        expected = model.pipeline("fill-mask")(TEXTS[0], targets=targets, top_k=7)
    (found,) = model.session.predict([TEXTS[0]], targets=targets, top_k=7)
    same(found, expected)
    assert {entry["token_str"] for entry in found["masks"][0]} == {"paris", "london", "un"}


def test_a_text_without_a_mask_concerns_itself_only(model: Both) -> None:
    texts = ["no mask", "a [MASK]", "word " * 200 + "[MASK]"]
    first, second, third = model.session.outcomes(texts)
    assert second.error is None
    assert isinstance(first.error, BadInput)
    assert str(first.error) == (
        "item 0: the text has no mask token in its first 128 tokens. "
        "Put [MASK] where a token is to be found"
    )
    assert isinstance(third.error, BadInput)
    with pytest.raises(BadInput, match=r"^item 1: fill-mask takes one text, not a pair"):
        model.session.predict(["a [MASK]", ("a [MASK]", "b")])


@pytest.mark.parametrize(
    ("options", "match"),
    [({"top_k": 0}, "top_k 0"), ({"targets": []}, "no targets"), ({"targets": [" "]}, "' '")],
)
def test_options_that_make_no_sense(model: Both, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        model.session.map([], **options)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    class Encoder:
        preprocess = Preprocess("t", 128, 0, 0, "right")

    encoder: Any = Encoder()
    with pytest.raises(BadArtifact, match="no mask token"):
        FillMask(TextModel(Task("fill-mask"), encoder, 128), FillMaskOptions())
