"""Feature extraction: a text or a pair → its embedding, as the engine gives it.

A prediction holds ``embedding``; where the model does no pooling ``token_embeddings``, one vector
per token, special tokens included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfc.errors import TfcError, UsageError
from tfc.manifest import Preprocess
from tfc.manifest import Task as TaskRecord
from tfc.runtime.tasks.base import Item, Prediction, Row, RowOutputs, TextModel, TextTask
from tfc.runtime.tasks.options import option
from tfc.runtime.tokenization import Text

EMBEDDING = "embedding"
LAST_HIDDEN_STATE = "last_hidden_state"
NO_POOLING = "none"


@dataclass(frozen=True)
class EmbeddingOptions:
    """What a call may choose; an empty `prompt` is none, None is the model's default one."""

    prompt: str | None = option("the name of the prompt to put before the text", None)


class FeatureExtraction(TextTask[EmbeddingOptions]):
    """One row per text; the output is `[hidden]`, or `[tokens, hidden]` without pooling."""

    name = "feature-extraction"
    options = EmbeddingOptions
    pairs = True

    def __init__(self, model: TextModel, options: EmbeddingOptions) -> None:
        super().__init__(model, options)
        self._prompt = prompt_of(model.encoder.preprocess, options.prompt)

    @classmethod
    def outputs(cls, record: TaskRecord) -> tuple[str, ...]:
        """`embedding`, or `last_hidden_state` without pooling."""
        return (LAST_HIDDEN_STATE if record.pooling == NO_POOLING else EMBEDDING,)

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        """One row per item, the prompt before it."""
        texts = [self._prompted(item.value) for item in items]
        return self._encoded(items, texts)

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The vector, or the vectors, of one text: an array of float32 of its own."""
        (name,) = self.outputs(self._model.task)
        key = "token_embeddings" if name == LAST_HIDDEN_STATE else "embedding"
        return {key: outputs[0][name].astype(np.float32)}

    def _prompted(self, text: Text) -> Text:
        if isinstance(text, tuple):
            return self._prompt + text[0], text[1]
        return self._prompt + text


def prompt_of(preprocess: Preprocess, name: str | None) -> str:
    """The text of the prompt called `name`; None is the model's default one, "" is none.

    Raises:
        UsageError: the model has no such prompt.
    """
    chosen = preprocess.default_prompt if name is None else name
    if chosen and chosen not in preprocess.prompts:
        raise UsageError(
            f"this model has no prompt '{chosen}'",
            fix=f"It has: {', '.join(preprocess.prompts) or 'none'}",
        )
    return preprocess.prompts[chosen] if chosen else ""
