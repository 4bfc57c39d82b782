"""A tokenizer with fewer tokens: the same text, the same tokens, and nothing newly unknown."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from checkpoints import TOKENIZER_FOLDER

from tfc.errors import CheckFailed, UsageError
from tfc.steps.vocabulary.tokenizer_file import TokenizerFile
from tfc.steps.vocabulary.tokens import check_same_tokens, on_new_text, used_ids
from tfc.vocabulary import Vocabulary

CORPUS = [
    "Ada met Charles in London, and a question was answered.",
    "bank 漢字 \ue000nothing parcel\ue001",
    "refunds",
]


def _trimmed(content: dict[str, Any], corpus: list[str]) -> tuple[TokenizerFile, Any, Any, Any]:
    """The file, both tokenizers, and the vocabulary."""
    from tokenizers import Tokenizer

    file = TokenizerFile(content, "here")
    before = Tokenizer.from_str(json.dumps(content))
    before.no_truncation()
    before.no_padding()
    wanted = file.structural() | used_ids(before, file, corpus)
    vocabulary = Vocabulary(file.size, sorted(file.closed(wanted)))
    after = Tokenizer.from_str(json.dumps(file.trimmed(vocabulary.new_ids)))
    after.no_truncation()
    return file, before, after, vocabulary


def _wordpiece() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((TOKENIZER_FOLDER / "tokenizer.json").read_text())
    return content


def _byte_level() -> dict[str, Any]:
    from tokenizers_made import byte_level

    content: dict[str, Any] = json.loads(byte_level().backend_tokenizer.to_str())
    return content


def _unigram() -> dict[str, Any]:
    from tokenizers_made import unigram

    content: dict[str, Any] = json.loads(unigram().backend_tokenizer.to_str())
    return content


def _file(model: dict[str, Any], **others: Any) -> dict[str, Any]:
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    return {"version": "1.0", "added_tokens": [], **dict.fromkeys(parts), "model": model, **others}


def _bpe_with_bytes() -> dict[str, Any]:
    """`abc` comes of two merges; merges are written as lines; bytes stand for what is unknown."""
    tokens = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *"abcdr", "ab", "bc", "abc", "abcd"]
    tokens += ["dr", "rd", "<s>"]
    merges = ["d r", "a b", "b c", "ab c", "a bc", "abc d", "r d"]
    model = {
        **dict.fromkeys(("dropout", "continuing_subword_prefix", "end_of_word_suffix")),
        **{"type": "BPE", "unk_token": "<unk>", "fuse_unk": False, "byte_fallback": True},
        **{"vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
    }
    start = {"id": len(tokens) - 1, "content": "<s>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return _file(model, added_tokens=[{**start, **flags}])


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "WordPiece": _wordpiece,
    "byte-level BPE": _byte_level,
    "BPE with bytes": _bpe_with_bytes,
    "Unigram": _unigram,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_and_no_new_unknown_ones(kind: str) -> None:
    content = KINDS[kind]()
    corpus = ["abcd", "bcd", "ab"] if kind == "BPE with bytes" else CORPUS
    file, before, after, vocabulary = _trimmed(content, corpus)
    new = vocabulary.new_ids
    assert len(new) < file.size
    assert check_same_tokens(before, after, new, corpus) > len(corpus)
    for first, second in zip(corpus, reversed(corpus), strict=True):
        pairs = (each.encode(first, second) for each in (before, after))
        old, cut = ((pair.ids, pair.type_ids) for pair in pairs)
        assert ([new[i] for i in old[0]], old[1]) == cut
    for token in content["added_tokens"]:
        assert after.token_to_id(token["content"]) == new[token["id"]]
    # What was cut, and texts made of it, in any order: other tokens, the same text, none unknown.
    removed = [t for t, i in file.ids.items() if i not in new]
    shuffled = random.Random(0)
    texts = ["".join(shuffled.choices(removed, k=4)).replace("##", "") for _ in range(200)]
    texts += [text.replace("▁", " ").replace("Ġ", " ") for text in (*removed[:500], *corpus)]
    found = on_new_text(before, after, new, file.unknown_id, texts)
    assert found.changed_texts > 0
    assert found.unknown_after <= found.unknown


def test_merges_that_kept_tokens_need_stay_and_no_others() -> None:
    _, before, after, vocabulary = _trimmed(_bpe_with_bytes(), ["abcd"])
    kept = json.loads(after.to_str())["model"]
    assert [" ".join(m) for m in kept["merges"]] == ["a b", "b c", "ab c", "a bc", "abc d"]
    assert {t for t in kept["vocab"] if len(t) > 1 and t[0] != "<"} == {"ab", "bc", "abc", "abcd"}
    assert [after.id_to_token(i) for i in after.encode("drabcé").ids] == [
        *("d", "r", "abc", "<0xC3>", "<0xA9>")
    ]
    assert before.encode("drabcé").tokens[0] == "dr"
    assert len(vocabulary.kept) == len(kept["vocab"]) == 1 + 256 + 5 + 4 + 1


def test_a_word_that_is_unknown_stays_unknown() -> None:
    """`ab` matches first, so that `X` fails; `a` and `##bX` would cover the word."""
    tokens = ["[UNK]", "a", "ab", "##bX", "##b", "##c", "##bc", "b"]
    model = {
        **{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"},
        **{"max_input_chars_per_word": 100, "vocab": {t: i for i, t in enumerate(tokens)}},
    }
    content = _file(model, pre_tokenizer={"type": "Whitespace"})
    _, _, after, _ = _trimmed(content, ["abX", "a"])
    assert after.encode("abX").tokens == ["[UNK]"]
    assert "##bX" in after.get_vocab()  # its X is no token by itself
    assert "##bc" not in after.get_vocab()


def test_an_unknown_character_costs_as_much_as_before() -> None:
    """Without the worst piece, `<unk>` would cost less, and `ab` with it less than `a`, `b`."""
    pieces = [["<unk>", 0.0], ["a", -1.0], ["b", -1.0], ["ab", -3.0], ["abab", -50.0], ["ba", -4.0]]
    content = _file({"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False})
    _, before, after, vocabulary = _trimmed(content, ["abé"])
    assert json.loads(after.to_str())["model"]["vocab"] == pieces[:3] + pieces[4:5]
    assert check_same_tokens(before, after, vocabulary.new_ids, ["abé", "aébb"]) == 7


def test_word_level_knows_the_corpus_only() -> None:
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "no": 1, "yes": 2}, "unk_token": "<unk>"}
    file, before, after, vocabulary = _trimmed(
        _file(model, pre_tokenizer={"type": "Whitespace"}), ["yes yes"]
    )
    assert after.get_vocab() == {"<unk>": 0, "yes": 1}
    found = on_new_text(before, after, vocabulary.new_ids, file.unknown_id, ["no yes", "yes"])
    assert (found.changed_texts, found.removed, found.unknown, found.unknown_after) == (1, 1, 0, 1)


def test_templates_of_every_kind_take_the_new_ids() -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[S]": 5, "u": 7}, "unk_token": "u"}
    special = {"sep": {"id": "sep", "ids": [5], "tokens": ["[S]"]}}
    template = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": special}
    roberta = {"type": "RobertaProcessing", "sep": ["[S]", 5], "cls": ["[S]", 5]}
    both = {"type": "Sequence", "processors": [template, roberta, {"type": "ByteLevel"}]}
    file = TokenizerFile(_file(model, post_processor=both), "here")
    assert file.structural() == {0, 1, 5, 7}
    cut = file.trimmed({0: 0, 5: 1, 7: 2})["post_processor"]["processors"]
    assert cut[0]["special_tokens"]["sep"]["ids"] == [1]
    assert cut[1] == {"type": "RobertaProcessing", "sep": ["[S]", 1], "cls": ["[S]", 1]}
    assert cut[2] == {"type": "ByteLevel"}


def test_another_kind_is_refused_and_other_tokens_are_found() -> None:
    with pytest.raises(UsageError) as refused:
        TokenizerFile(_file({"type": "Chars", "vocab": {}}), "tokenizer.json")
    assert refused.value.what == "a tokenizer of the kind 'Chars' cannot be trimmed"
    _, before, after, vocabulary = _trimmed(_bpe_with_bytes(), ["abcd"])
    with pytest.raises(CheckFailed) as error:
        check_same_tokens(before, after, vocabulary.new_ids, ["abcd", "dr"])
    assert error.value.what == "the trimmed tokenizer cuts 'dr' into other tokens"
