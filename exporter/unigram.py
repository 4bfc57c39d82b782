"""A sentencepiece Unigram model whose ids come from a vocabulary file, as a Rust tokenizer.

    source.spm, {token: id}  →  charsmap → trim → ▁ for spaces → Unigram → decoder

Why its ids are those of sentencepiece 0.2, with tokenizers 0.23:

1. Both search the best path through the whole text by the same scores, and of equal paths take the
   one found first. There is no pre-tokenizer: pieces may span words, and unknown characters fuse
   over them. sentencepiece adds the scores in 32 bits and Rust in 64, so of two paths whose scores
   are equal ("999" as 9+99 and as 99+9) each may take another.
2. An unknown character costs 10 (kUnkPenalty) more than the worst piece, in both. So no token may
   score below the worst piece; what is no piece gets just its score.
3. A token that is no piece (of the target language only) is found in one place: where a whole run
   of unknown characters spells it, because transformers looks such a run up in the vocabulary. So
   the normalizer brackets these runs, and the token is stored with its brackets. One that has a
   known character can be no run: it is stored with the first bracket only and never matches.
4. A piece that the vocabulary lacks must match, because it decides where the text around it is
   cut, and is the unknown token then. It gets an id above all others: ids from the vocabulary's
   size on stand for the unknown token.
5. A language code (`>>fra<<`) counts at the start of a text only, before the charsmap: its first
   two characters become one that no text has, and it is stored as that is normalized. An unknown
   code becomes one unknown character. The text after it is trimmed and prefixed as any text is.

What differs: the charsmap is applied to whole graphemes in Rust, and to the longest match in
sentencepiece, so that rare sequences of combining marks do, as for every fast tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

SPACE = "▁"
# Noncharacters of Unicode, which mean nothing in a text: brackets, `>>` of a code, a whole code
# that is unknown, and what those four become where a text has them all the same.
_OPEN, _CLOSE, _CODE, _OTHER_CODE, _STRANGE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"
_CODE_START = ">>"
# Where a text begins: at the start, or after the code that stands there (nothing else is tried).
_TEXT_START = rf"\A(?>{_CODE}[\s\S]*?<<|{_OTHER_CODE}|)\K"
# Of the enums in sentencepiece_model.proto: the model type, and the pieces that match text.
_UNIGRAM = 1
_NORMAL, _USER_DEFINED = 1, 4


class Pieces(NamedTuple):
    """What a sentencepiece model says: the score of each piece, and how text is normalized."""

    scores: dict[str, float]
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    @property
    def characters(self) -> set[str]:
        """Those that are not unknown."""
        return set("".join(self.scores))


def pieces_from_spm(path: Path) -> Pieces | None:
    """Read a sentencepiece model; None where it is not a Unigram model."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(path.read_bytes())
    if proto.trainer_spec.model_type != _UNIGRAM:
        return None
    spec = proto.normalizer_spec
    return Pieces(
        {p.piece: p.score for p in proto.pieces if p.type in (_NORMAL, _USER_DEFINED)},
        spec.precompiled_charsmap,
        spec.add_dummy_prefix,
        spec.remove_extra_whitespaces,
    )


def unigram_from_pieces(
    pieces: Pieces,
    ids: Mapping[str, int],
    unknown: str,
    added: Sequence[AddedToken],
    codes: Collection[str] | None = None,
) -> Tokenizer:
    """The tokenizer without its post-processor.

    Args:
        pieces: how text is cut.
        ids: the vocabulary: each of 0 to its size - 1 once.
        unknown: the unknown token.
        added: the tokens that match the raw text, in `ids` as well.
        codes: the language codes, if texts may begin with one.
    """
    worst = min(pieces.scores.values())
    characters = pieces.characters
    normalizer = _normalizer(pieces, codes)
    named = {token.content: token.content for token in added}
    named |= {code: normalizer.normalize_str(code) for code in codes or ()}
    tokens = []
    for token in sorted(ids, key=ids.__getitem__):
        score = pieces.scores.get(token)
        name = token if score is not None else named.get(token) or _bracketed(token, characters)
        tokens.append((name, worst if score is None else score))
    missing = [(piece, score) for piece, score in pieces.scores.items() if piece not in ids]
    model = models.Unigram(tokens + missing, unk_id=ids[unknown], byte_fallback=False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.decoder = _decoder()
    tokenizer.add_tokens(list(added))
    return tokenizer


def _bracketed(token: str, characters: set[str]) -> str:
    return _OPEN + token if characters & set(token) else _OPEN + token + _CLOSE


def _decoder() -> Any:
    return decoders.Sequence(
        [
            decoders.Replace(Regex(f"[{_OPEN}{_CLOSE}]"), ""),
            decoders.Replace(_CODE, _CODE_START),
            decoders.Replace(SPACE, " "),
            decoders.Fuse(),
            # Not decoders.Strip: on an empty text it panics (tokenizers 0.23).
            decoders.Replace(Regex(r"\A +| +\z"), ""),
        ]
    )


def _normalizer(pieces: Pieces, codes: Collection[str] | None) -> Any:
    """sentencepiece's: charsmap, no spaces at the ends or in a row, ▁ in front and for spaces.

    Nothing may be inserted before the charsmap: it panics after that (tokenizers 0.23).
    """
    steps = [_replace(f"[{_OPEN}{_CLOSE}{_CODE}{_OTHER_CODE}]", _STRANGE)]
    if codes is not None:
        steps += _code_steps([re.escape(code.removeprefix(_CODE_START)) for code in codes])
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.remove_extra_whitespaces:
        steps += [_replace(rf"{_TEXT_START} +| +\z", ""), _replace(" {2,}", " ")]
    if pieces.add_dummy_prefix:
        steps.append(_replace(rf"{_TEXT_START}(?=[\s\S])", SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    known_characters = "".join(re.escape(c) for c in sorted(pieces.characters))
    unknown = f"[^{known_characters}{SPACE}{_CODE}{_OTHER_CODE}]"
    steps.append(_replace(rf"(?<!{unknown})(?={unknown})", _OPEN))
    steps.append(_replace(rf"(?<={unknown})(?!{unknown})", _CLOSE))
    return normalizers.Sequence(steps)


def _code_steps(known: Sequence[str]) -> list[Any]:
    """Mark a code at the start of the raw text, and make one character of an unknown one."""
    if not known:
        return [_replace(rf"\A{_CODE_START}[\s\S]*?<<", _OTHER_CODE)]
    any_known = "|".join(known)
    return [
        _replace(rf"\A{_CODE_START}(?!{any_known})[\s\S]*?<<", _OTHER_CODE),
        _replace(rf"\A{_CODE_START}(?={any_known})", _CODE),
    ]


def _replace(pattern: str, content: str) -> Any:
    return normalizers.Replace(Regex(pattern), content)
