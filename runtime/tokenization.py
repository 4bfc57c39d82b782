"""Text → the graph's input tensors, with the Rust tokenizer that the checkpoint came with.

Tokens equal those of transformers' `AutoTokenizer(text, truncation=True, max_length=…)`; padding
is a separate step, so that texts can be sorted by length between the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfc.errors import BadArtifact, BadInput, UsageError
from tfc.manifest import Preprocess
from tfc.runtime.pieces import Tokens

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Text = str | tuple[str, str]
Ints = npt.NDArray[np.int64]

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPE_IDS = "token_type_ids"
TOKENIZER_INPUTS = (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS)
_SIDES = ("left", "right")


def checked_text(item: object, where: str) -> Text:
    """`item` as what `TextEncoder.encode` takes: a text, or a tuple of two.

    Raises:
        BadInput: it is something else, or a text is not valid Unicode; `where` is in the message.
    """
    parts = item if isinstance(item, tuple) and len(item) == 2 else (item,)
    if not all(isinstance(part, str) for part in parts):
        raise BadInput(
            f"this is a {type(item).__name__}, not a text",
            where=where,
            fix="Give a str, or a tuple of two str for a pair",
        )
    if not all(_is_unicode(str(part)) for part in parts):
        raise BadInput(
            "the text has a lone surrogate, which is half a character",
            where=where,
            fix="Decode the text again from its source, as UTF-8 or UTF-16",
        )
    return item  # type: ignore[return-value]  # the guards above narrow what mypy cannot


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class TextEncoder:
    """Turns texts and pairs of texts into token ids, and those into padded batches.

    Safe to call from several threads: nothing changes after construction.

    Args:
        path: the `tokenizer.json`.
        preprocess: the length limit, and how to pad.
        input_names: the graph's inputs, which `pad` is to give.
        offsets: whether encodings are to keep character offsets (it is faster without).

    Attributes:
        direction: the side that texts are cut from: ``right`` or ``left``.

    Raises:
        BadArtifact: the file is not a tokenizer, or does not fit `preprocess` or the inputs.
    """

    def __init__(
        self,
        path: Path,
        preprocess: Preprocess,
        input_names: Sequence[str],
        *,
        offsets: bool = False,
    ) -> None:
        self.preprocess = preprocess
        self._path = path
        self._input_names = tuple(input_names)
        _check_inputs(self._input_names, path)
        self._tokenizer = tokenizer_from_file(path)
        self.direction = _limit_length(self._tokenizer, preprocess, path)
        self._offsets = offsets

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """Token ids of each text: special tokens added, cut to `max_length`, not padded.

        A pair that is too long loses tokens from its longer text first. An empty text is its
        special tokens only.
        """
        return self._encoded(self._tokenizer, texts)

    @property
    def limits(self) -> tuple[Preprocess, ...]:
        """The limits of each tokenizer that reads a text: of this one only."""
        return (self.preprocess,)

    def each(self, encoding: Any) -> tuple[Encoding, ...]:
        """What each of these tokenizers gave for a text."""
        return (encoding,)

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """All tokens of each text, however many, without special tokens: what `join` takes."""
        return self._encoded(self._whole, texts, add_special_tokens=False)

    def join(self, first: Encoding, second: Encoding | None = None) -> Encoding:
        """A row of what `tokenize` gave: a text, or a pair, and the special tokens around.

        It is to have no more than `max_length` tokens: cut what is longer before.
        """
        return self._tokenizer.post_process(first, second)

    def special_tokens(self, *, pair: bool) -> int:
        """How many tokens `join` adds."""
        return self._tokenizer.num_special_tokens_to_add(is_pair=pair)

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary; None where there is no such token."""
        return self._tokenizer.token_to_id(token)

    def token(self, id: int) -> str:
        """The token of an id."""
        return self._tokenizer.id_to_token(id) or ""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text that tokens spell: transformers' `decode` with the same `skip_special_tokens`.

        The default is another: who reads a generated text does not want its `</s>`.
        """
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    @cached_property
    def subword_prefix(self) -> str:
        """What tokens that go on with a word begin with (``##``); empty where none do."""
        return getattr(self._tokenizer.model, "continuing_subword_prefix", None) or ""

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for text outside the vocabulary."""
        model = json.loads(self._tokenizer.to_str())["model"]
        if model.get("unk_token") is not None:
            return self._tokenizer.token_to_id(model["unk_token"])
        unknown: int | None = model.get("unk_id")
        return unknown

    def pad(self, encodings: Sequence[Tokens], width: int | None = None) -> dict[str, Ints]:
        """The graph's inputs: int64 arrays `[batch, seq]` by name, padded to the longest.

        Args:
            encodings: what `encode` gave; at least one.
            width: pad to this many tokens instead of to the longest.
        """
        longest = max(len(encoding) for encoding in encodings)
        width = longest if width is None else width
        if width < longest:
            raise UsageError(
                f"a text has {longest} tokens, more than the {width} to pad to",
                fix="Leave the width out to pad to the longest text",
            )
        shape = (len(encodings), width)
        arrays = {
            name: np.full(shape, self._pad_value(name), np.int64) for name in self._input_names
        }
        for row, encoding in enumerate(encodings):
            place = self.place(len(encoding), width)
            for name, array in arrays.items():
                array[row, place] = self._known(_values(encoding, name), name)
        return arrays

    def place(self, length: int, width: int) -> slice:
        """Where the tokens of a text of `length` tokens stand in a row of `width`."""
        if self.preprocess.padding_side == "left":
            return slice(width - length, width)
        return slice(0, length)

    def _known(self, values: list[int], name: str) -> list[int]:
        """The ids with the unknown token for those that the model has no embedding of."""
        first, unknown = self.preprocess.missing_from, self.preprocess.unknown_id
        if name != INPUT_IDS or first is None or unknown is None:
            return values
        return [unknown if value >= first else value for value in values]

    @cached_property
    def _whole(self) -> Tokenizer:
        """The tokenizer that cuts nothing; made when it is first needed, it takes memory.

        Its post-processor is left to `join`: run twice it would trim the spaces of offsets twice.
        """
        tokenizer = tokenizer_from_file(self._path)
        tokenizer.post_processor = None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _encoded(
        self, tokenizer: Tokenizer, texts: Sequence[Text], add_special_tokens: bool = True
    ) -> list[Encoding]:
        # `encode_batch_fast` gives the same ids and leaves the offsets zero.
        encode = tokenizer.encode_batch if self._offsets else tokenizer.encode_batch_fast
        return list(encode(list(texts), add_special_tokens=add_special_tokens))

    def _pad_value(self, name: str) -> int:
        pads = {INPUT_IDS: self.preprocess.pad_id, TOKEN_TYPE_IDS: self.preprocess.pad_type_id}
        return pads.get(name, 0)


def _values(encoding: Tokens, name: str) -> list[int]:
    if name == INPUT_IDS:
        return encoding.ids
    if name == TOKEN_TYPE_IDS:
        return encoding.type_ids
    return encoding.attention_mask


def _check_inputs(names: tuple[str, ...], path: Path) -> None:
    unknown = sorted(set(names) - frozenset(TOKENIZER_INPUTS))
    if not unknown and INPUT_IDS in names:
        return
    what = f"an input '{unknown[0]}'" if unknown else f"no input '{INPUT_IDS}'"
    raise BadArtifact(
        f"the graph has {what}, which a tokenizer does not give",
        where=str(path),
        fix="Call the graph with tensors instead: Session.run",
    )


def tokenizer_from_file(path: Path) -> Tokenizer:
    """The Rust tokenizer of a `tokenizer.json`, with the truncation and padding that it says.

    Raises:
        BadArtifact: the file is not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises a bare Exception for every cause
        raise BadArtifact(
            f"the tokenizer cannot be read: {error}",
            where=str(path),
            fix="Export the checkpoint again with: tfc export --overwrite",
        ) from error


def _limit_length(tokenizer: Tokenizer, preprocess: Preprocess, path: Path) -> str:
    """Cut at `max_length` and never pad, whatever the file says; keep the side it cuts from.

    Returns that side.
    """
    special = tokenizer.num_special_tokens_to_add(is_pair=True)
    if preprocess.max_length <= special or preprocess.padding_side not in _SIDES:
        raise BadArtifact(
            f"max_length {preprocess.max_length} and padding side '{preprocess.padding_side}'"
            f" do not fit: a pair has {special} special tokens, and the sides are left and right",
            where=str(path),
            fix="Export the checkpoint again with: tfc export --overwrite",
        )
    saved: dict[str, Any] = tokenizer.truncation or {}
    direction = str(saved.get("direction", "right")).lower()
    tokenizer.enable_truncation(
        preprocess.max_length, strategy="longest_first", direction=direction
    )
    tokenizer.no_padding()
    return direction
