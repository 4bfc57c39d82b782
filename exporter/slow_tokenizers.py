"""Rust forms of the tokenizers that transformers 5 has in Python only.

Marian (`source.spm`, `vocab.json`) and M2M-100 (`sentencepiece.bpe.model`, `vocab.json`) cut text
with a sentencepiece model and look the pieces up in a vocabulary of their own: unigram.py says how
that becomes a Rust tokenizer. Special tokens stand where `build_inputs_with_special_tokens` puts
them. Marian decodes with its source model whatever the language, which changes nothing: pieces
that a model does not know are written as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, processors

from tfc.errors import BadCheckpoint, require
from tfc.exporter.unigram import pieces_from_spm, unigram_from_pieces

_FIX = (
    "Fine-tune from a base model that has a tokenizer.json; if this folder has one, set "
    "tokenizer_class in tokenizer_config.json to PreTrainedTokenizerFast"
)
# Ids that no vocabulary has: they stand for the tokens of a text, and of the second of a pair.
_FIRST, _SECOND = -1, -2


class Spm(NamedTuple):
    """What the converter reads off a slow tokenizer; `codes` as in `unigram_from_pieces`."""

    path: Path
    ids: dict[str, int]
    codes: Collection[str] | None


def fast_from_slow(tokenizer: Any, where: str) -> tuple[Tokenizer, int]:
    """The Rust form of a tokenizer written in Python, and how many of its ids the model knows.

    Raises:
        BadCheckpoint: there is none for its class, or for its files.
        MissingPackage: sentencepiece is not installed.
    """
    name = type(tokenizer).__name__
    if name not in _READERS:
        raise BadCheckpoint(
            f"the tokenizer {name} is written in Python, and an artifact tokenizes without Python",
            where=where,
            fix=_FIX,
        )
    require("sentencepiece", "compile")
    path, ids, codes = _READERS[name](tokenizer, where)
    pieces = pieces_from_spm(path)
    if pieces is None:
        raise BadCheckpoint(
            f"{path.name} is not a Unigram model, the only kind that tfc converts for {name}",
            where=where,
            fix=_FIX,
        )
    if sorted(ids.values()) != list(range(len(ids))):
        raise BadCheckpoint(
            "vocab.json gives an id twice, or leaves one out",
            where=where,
            fix="Take vocab.json from the checkpoint that this one was trained from",
        )
    fast = unigram_from_pieces(pieces, ids, str(tokenizer.unk_token), _added(tokenizer), codes)
    fast.post_processor = _post_processor(tokenizer)
    return fast, len(ids)


def _added(tokenizer: Any) -> list[AddedToken]:
    special = set(tokenizer.all_special_tokens)
    return [
        AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=False,  # Python finds them in the raw text, whatever the flag says
            special=token.content in special,
        )
        for token in tokenizer.added_tokens_decoder.values()
    ]


def _post_processor(tokenizer: Any) -> Any:
    """The template behind `build_inputs_with_special_tokens`."""
    build = tokenizer.build_inputs_with_special_tokens
    single, pair = build([_FIRST]), build([_FIRST], [_SECOND])
    names = {_FIRST: "$A", _SECOND: "$B"}
    special = {i: tokenizer.convert_ids_to_tokens(i) for i in single + pair if i not in names}
    names.update(special)
    return processors.TemplateProcessing(
        single=[names[i] for i in single],
        pair=[names[i] for i in pair],
        special_tokens=[(token, i) for i, token in special.items()],
    )


def _marian(tokenizer: Any, where: str) -> Spm:
    if tokenizer.separate_vocabs:
        raise BadCheckpoint(
            "the tokenizer has a vocabulary for each of its two languages, and an artifact has one",
            where=where,
            fix="Give a Marian model with one vocabulary (vocab.json)",
        )
    codes = list(tokenizer.supported_language_codes)
    return Spm(Path(tokenizer.spm_files[0]), tokenizer.get_vocab(), codes)


def _m2m_100(tokenizer: Any, where: str) -> Spm:
    ids = {**tokenizer.get_vocab(), **tokenizer.lang_token_to_id}
    return Spm(Path(tokenizer.spm_file), ids, None)


_READERS: dict[str, Callable[[Any, str], Spm]] = {
    "MarianTokenizer": _marian,
    "M2M100Tokenizer": _m2m_100,
}
