"""The tokenizer.json of an artifact: all that a checkpoint's tokenizer does, without Python.

    transformers' tokenizer  →  its Rust tokenizer, with what Python does after it → compared

A fast tokenizer of transformers is a Rust one with a little Python behind `decode`, which becomes
steps of the Rust decoder here:

1. `clean_up_tokenization_spaces` removes the space before punctuation and contractions. It is
   False by default in transformers 5, true in what older ones saved, and never done for BPE.
2. Whisper's time stamps (`<|1.08|>`) are no special tokens, and are taken out of the text.
3. CLIP ends its words with `</w>`, which become spaces.

A slow one is converted (slow_tokenizers.py). Either is compared with the original on texts before
anything is exported, which finds tokenizers that do more in Python, such as a checkpoint's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders

from tfc.errors import BadCheckpoint, first_line
from tfc.exporter.samples import SAMPLE_TEXTS
from tfc.exporter.slow_tokenizers import fast_from_slow

# transformers' PreTrainedTokenizerBase.clean_up_tokenization, in its order.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# Two ways to cut a text are a tie when their scores differ by less: sentencepiece adds scores of
# 10 or so in 32 bits, and after a few hundred the last bit of the sum is worth this.
_TIE = 1e-3
_TOKENS_PER_TEXT = 32
_SHOWN = 60
_FIX = "Fine-tune from a base model whose tokenizer.json does all that its tokenizer does"


class PortableTokenizer(NamedTuple):
    """A tokenizer that runs without Python.

    Ids from `missing_from` on, where it is not None, stand for the token `unknown_id`.
    """

    rust: Tokenizer
    missing_from: int | None = None
    unknown_id: int | None = None

    def ids(self, text: str) -> list[int]:
        """The tokens of `text`, special ones included."""
        ids: list[int] = self.rust.encode(text).ids
        if self.missing_from is None or self.unknown_id is None:
            return ids
        return [self.unknown_id if i >= self.missing_from else i for i in ids]


def portable_from_tokenizer(tokenizer: Any, where: str) -> PortableTokenizer:
    """The Rust tokenizer that reads and writes text as transformers' `tokenizer` does.

    Raises:
        BadCheckpoint: it runs in Python only.
    """
    if not getattr(tokenizer, "is_fast", False):
        rust, known = fast_from_slow(tokenizer, where)
        missing = (known, int(tokenizer.unk_token_id)) if rust.get_vocab_size() > known else ()
    else:
        rust, missing = _copy(tokenizer, where), ()
    steps = _decoding_steps(tokenizer, rust)
    if steps:
        rust.decoder = decoders.Sequence([*_joined(rust), *steps])
    rust.no_truncation()
    rust.no_padding()
    return PortableTokenizer(rust, *missing)


def check_portable(
    tokenizer: Any, portable: PortableTokenizer, where: str, *, writes_text: bool
) -> None:
    """Compare ids with transformers', and decoded texts where the model writes any.

    The texts are samples and, for a converted tokenizer, some that have every token.

    Raises:
        BadCheckpoint: they differ; the first such text is in the message.
    """
    texts = [*SAMPLE_TEXTS, *_vocabulary_texts(tokenizer)]
    name = type(tokenizer).__name__
    for text in texts:
        expected = list(tokenizer(text)["input_ids"])
        found = portable.ids(text)
        if found != expected and not _is_tie(portable.rust, found, expected):
            raise BadCheckpoint(
                f"without Python, the tokenizer {name} would cut {text[:_SHOWN]!r} into other "
                f"tokens ({_difference(found, expected)})",
                where=where,
                fix=_FIX,
            )
        if not writes_text:
            continue
        spelled = tokenizer.decode(expected, skip_special_tokens=True)
        if portable.rust.decode(expected) != spelled:
            raise BadCheckpoint(
                f"without Python, the tokenizer {name} would write another text "
                f"than {spelled[:_SHOWN]!r}",
                where=where,
                fix=_FIX,
            )


def _copy(tokenizer: Any, where: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # the Rust library raises a bare Exception for every cause
        raise BadCheckpoint(
            f"the tokenizer {type(tokenizer).__name__} has parts in Python ({first_line(error)})",
            where=where,
            fix=_FIX,
        ) from error


def _decoding_steps(tokenizer: Any, rust: Tokenizer) -> list[Any]:
    """What transformers does to the text that the Rust tokenizer decoded."""
    steps: list[Any] = []
    name = "clean_up_tokenization_spaces"
    forced = getattr(tokenizer, f"{name}_for_bpe_even_though_it_will_corrupt_output", False)
    if getattr(tokenizer, name, False) and (forced or type(rust.model).__name__ != "BPE"):
        steps += [decoders.Replace(old, new) for old, new in _CLEAN_UP]
    time_stamp = getattr(tokenizer, "timestamp_pat", None)
    if time_stamp is not None:
        steps.append(decoders.Replace(Regex(time_stamp.pattern), ""))
    if type(tokenizer).__name__ == "CLIPTokenizer":
        steps.append(decoders.Replace(rust.model.end_of_word_suffix, " "))
        steps.append(decoders.Replace(Regex(r"\A\s+|\s+\z"), ""))
    return steps


def _joined(rust: Tokenizer) -> list[Any]:
    """The decoder so far, giving one text; without a decoder there are spaces between tokens."""
    if rust.decoder is not None:
        return [rust.decoder, decoders.Fuse()]
    spaced = decoders.Replace(Regex(r"\A"), " ")
    return [spaced, decoders.Fuse(), decoders.Replace(Regex(r"\A "), "")]


def _vocabulary_texts(tokenizer: Any) -> Iterator[str]:
    """Every token of a converted tokenizer once, in texts, and each language code before one."""
    if getattr(tokenizer, "is_fast", False):
        return
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    for start in range(0, len(tokens), _TOKENS_PER_TEXT):
        yield "".join(tokens[start : start + _TOKENS_PER_TEXT]).replace("▁", " ")
    for code in getattr(tokenizer, "supported_language_codes", ()):
        yield f"{code} {SAMPLE_TEXTS[0]}"


def _is_tie(rust: Tokenizer, found: list[int], expected: list[int]) -> bool:
    """Whether a Unigram model gives both ways to cut the text the same score."""
    model = json.loads(rust.to_str())["model"]
    if model["type"] != "Unigram" or rust.decode(found) != rust.decode(expected):
        return False
    ours, theirs = (
        sum(model["vocab"][i][1] for i in ids if i != model["unk_id"]) for ids in (found, expected)
    )
    unknown = (ids.count(model["unk_id"]) for ids in (found, expected))
    return len(set(unknown)) == 1 and abs(ours - theirs) < _TIE


def _difference(found: list[int], expected: list[int]) -> str:
    """The ids around the first place where two lists differ."""
    pairs = zip(found, expected, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
    ours, theirs = found[place : place + 3], expected[place : place + 3]
    return f"{ours} for {theirs}, from token {place} on"
