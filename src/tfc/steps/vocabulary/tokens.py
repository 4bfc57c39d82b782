"""Which tokens a corpus uses, and what a trimmed tokenizer makes of text, beside the whole one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from tfc.errors import CheckFailed
from tfc.steps.vocabulary.tokenizer_file import TokenizerFile, pieces_before_failure

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Texts that are tokenized at once.
_CHUNK = 1024
_SHOWN = 60


@dataclass(frozen=True)
class NewText:
    """What a trimmed tokenizer makes of texts that it was not made from.

    Of `texts`, `changed_texts` give other tokens than before: their `tokens` become
    `tokens_after`. `removed` of the tokens are not in the vocabulary any more, and `unknown` of
    them were the unknown token before, `unknown_after` now.
    """

    texts: int
    changed_texts: int
    tokens: int
    tokens_after: int
    removed: int
    unknown: int
    unknown_after: int


def whole(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without truncation and padding."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """The tokens of each text, special ones included."""
    for start in range(0, len(texts), _CHUNK):
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + _CHUNK])):
            yield encoding.ids


def used_ids(tokenizer: Tokenizer, file: TokenizerFile, texts: Sequence[str]) -> set[int]:
    """The tokens of the texts, and the pieces that WordPiece matches in words it does not know."""
    found: set[int] = set()
    with_unknown = []
    for text, ids in zip(texts, ids_of(tokenizer, texts), strict=True):
        found.update(ids)
        if file.kind == "WordPiece" and file.unknown_id in ids:
            with_unknown.append(text)
    words = set(chain.from_iterable(_words(tokenizer, text) for text in with_unknown))
    for word in words:
        found.update(pieces_before_failure(word, file.ids, file.prefix))
    return found


def check_same_tokens(
    before: Tokenizer, after: Tokenizer, new_ids: Mapping[int, int], texts: Sequence[str]
) -> int:
    """Tokenize all texts with both, and count the tokens.

    Raises:
        CheckFailed: the tokens of a text are others, not the same ones under new ids.
    """
    tokens = 0
    both = zip(ids_of(before, texts), ids_of(after, texts), strict=True)
    for text, (old, new) in zip(texts, both, strict=True):
        tokens += len(old)
        if [new_ids.get(i) for i in old] != new:
            raise CheckFailed(
                f"the trimmed tokenizer cuts {text[:_SHOWN]!r} into other tokens",
                fix="Leave --trim-vocab out: this tokenizer cannot be trimmed",
            )
    return tokens


def on_new_text(
    before: Tokenizer,
    after: Tokenizer,
    new_ids: Mapping[int, int],
    unknown: int | None,
    texts: Sequence[str],
) -> NewText:
    """Compare the two on texts of which tokens may have been removed."""
    counts = dict.fromkeys(("changed", "tokens", "after", "removed", "unknown", "unknown_after"), 0)
    unknown_after = None if unknown is None else new_ids[unknown]
    for old, new in zip(ids_of(before, texts), ids_of(after, texts), strict=True):
        counts["changed"] += [new_ids.get(i) for i in old] != new
        counts["tokens"] += len(old)
        counts["after"] += len(new)
        counts["removed"] += sum(1 for i in old if i not in new_ids)
        counts["unknown"] += _count(old, unknown)
        counts["unknown_after"] += _count(new, unknown_after)
    return NewText(
        len(texts),
        counts["changed"],
        counts["tokens"],
        counts["after"],
        counts["removed"],
        counts["unknown"],
        counts["unknown_after"],
    )


def _count(ids: Collection[int], token: int | None) -> int:
    return 0 if token is None else list(ids).count(token)


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    """What the model is given of a text, one after the other."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
