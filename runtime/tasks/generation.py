"""Text generation: a text → what the model writes next, or its translation or summary.

A prediction holds ``text``; with `num_return_sequences` above 1 also ``texts``, all of them. The
text of a model without an encoder is what it adds to the prompt. Tokens are those of transformers'
`generate` with the same settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfc.errors import BadInput, TfcError, UsageError
from tfc.runtime.generation import GenerationSettings, settings_from_config
from tfc.runtime.tasks.base import Item, Prediction, Row, RowOutputs, TextModel, TextTask
from tfc.runtime.tasks.embedding import prompt_of
from tfc.runtime.tasks.options import option

# The output of `tfc.runtime.generation_runner`: ids `[sequences, tokens]` of each row.
TOKENS = "tokens"


@dataclass(frozen=True)
class DecodingOptions:
    """How tokens are chosen; None is what the checkpoint's generation config says."""

    max_new_tokens: int | None = option("write at most so many tokens", None)
    min_new_tokens: int | None = option("write at least so many tokens", None)
    num_beams: int | None = option("beams of beam search; 1 is greedy search", None)
    length_penalty: float | None = option("above 0: beam search likes longer texts", None)
    num_return_sequences: int | None = option("so many texts for each input", None)
    do_sample: bool | None = option("draw tokens instead of taking the most likely", None)
    temperature: float | None = option("of the draw; below 1 is closer to the likeliest", None)
    top_k: int | None = option("draw among the k most likely tokens", None)
    top_p: float | None = option("draw among the likeliest that make up this share", None)
    repetition_penalty: float | None = option("above 1: what was said is less likely", None)
    no_repeat_ngram_size: int | None = option("say no n tokens in a row twice", None)
    seed: int = option("the same seed draws the same text", 0)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"the seed is {self.seed}", fix="Give 0 or more")


@dataclass(frozen=True)
class GenerationOptions(DecodingOptions):
    """What a call may choose where the model reads text."""

    prompt: str | None = option("the name of the prompt to put before the text", None)


@dataclass(frozen=True)
class SpeechOptions(DecodingOptions):
    """What a call may choose where the model hears."""

    language: str | None = option("the language that is spoken, e.g. de; else found out", None)
    task: str | None = option("transcribe, or translate into English", None)


_SETTINGS = [f.name for f in dataclasses.fields(DecodingOptions) if f.name != "seed"]


def settings_of(generation: dict[str, Any], options: DecodingOptions) -> GenerationSettings:
    """The model's own settings with those of a call in their place.

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """
    given = {name: getattr(options, name) for name in _SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    return settings_from_config({**generation, **given})


class TextGeneration(TextTask[GenerationOptions]):
    """One row per text, padded on the left, so that its last token is read on from."""

    name = "text-generation"
    options = GenerationOptions

    def __init__(self, model: TextModel, options: GenerationOptions) -> None:
        super().__init__(model, options)
        self._settings = settings_of(model.task.generation, options)
        self._prompt = prompt_of(model.encoder.preprocess, options.prompt)

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        """One row per item, the prompt before it."""
        encoded = self._encoded(items, [self._prompt + item.value for item in items])
        return [
            rows if isinstance(rows, TfcError) else self._checked(item, rows[0])
            for item, rows in zip(items, encoded, strict=True)
        ]

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The text of each sequence, without special tokens."""
        texts = [self._text(rows[0], ids) for ids in outputs[0][TOKENS].tolist()]
        return {"text": texts[0], **({"texts": texts} if len(texts) > 1 else {})}

    def _checked(self, item: Item, row: Row) -> Sequence[Row] | TfcError:
        """The row, if there is something to read and room for what is to be written."""
        room = self._model.encoder.preprocess.max_length - len(row)
        wanted = self._settings.max_new_tokens or 1
        if not len(row):
            return BadInput(
                "the text has no tokens to go on from",
                where=item.where,
                fix="Give at least one word",
            )
        if wanted > room:
            return BadInput(
                f"the text has {len(row)} tokens, and the model reads {len(row) + room}: there is "
                f"no room for {wanted} more",
                where=item.where,
                fix="Give a shorter text, or a smaller max_new_tokens",
            )
        return [row]

    def _text(self, row: Row, tokens: list[int]) -> str:
        """What the tokens add to the prompt: some tokenizers join a text at its words."""
        decode = self._model.encoder.decode
        return decode([*row.ids, *tokens])[len(decode(row.ids)) :]


class Text2TextGeneration(TextGeneration):
    """One row per text, which the encoder reads."""

    name = "text2text-generation"

    def _checked(self, item: Item, row: Row) -> Sequence[Row] | TfcError:
        return [row]

    def _text(self, row: Row, tokens: list[int]) -> str:
        return self._model.encoder.decode(tokens)
