"""An artifact's tokenizer reads and writes text as the checkpoint's does, whatever its kind."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import (
    CONVERTED,
    FAST,
    SOURCE_WORDS,
    TARGET_WORDS,
    marian_folder,
    sentences,
    spm_file,
    write_json,
)

import tfc
from tfc.artifact import TOKENIZER
from tfc.errors import BadCheckpoint, MissingPackage
from tfc.exporter.loading import tokenizer_from_source
from tfc.exporter.portable_tokenizer import _is_tie, check_portable, portable_from_tokenizer
from tfc.exporter.samples import SAMPLE_TEXTS
from tfc.exporter.source import Source
from tfc.exporter.text import write_tokenizer
from tfc.runtime.tokenization import TextEncoder

pytest.importorskip("sentencepiece")

LENGTH = 24
# Cut at random and joined again: what stands beside what is what goes wrong.
ATOMS = (
    *SOURCE_WORDS[:4],
    *TARGET_WORDS[-4:],
    *(" ", "  ", "\n", "\u00a0", "\u200b", "▁", "日本", "日本語", "ÿ", "ÿÿ", "!", "999", "😀"),
    *(">>fra<<", ">>deu<< ", ">>xx y<<", ">>", "<<", "＞＞fra＜＜"),
    *("</s>", "<pad>", "<unk>", "<s>", "__fr__", "[SEP]", "<|endoftext|>", "<|1.08|>"),
    *(" ' ", " n't", " 's", " .", " ,", "e\u0301", "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"),
)
ATTEMPTS = 400


def texts() -> list[str]:
    chance = random.Random(1)
    mixed = ["".join(chance.choices(ATOMS, k=chance.randint(1, 7))) for _ in range(ATTEMPTS)]
    return [*SAMPLE_TEXTS, *sentences(SOURCE_WORDS)[:20], *sentences(TARGET_WORDS)[:20], *mixed]


def loaded(folder: Path) -> Any:
    """The tokenizer as export loads it, which compares it with its form without Python."""
    source = Source("the checkpoint", folder, None, {}, (), "")
    return tokenizer_from_source(source, trust_remote_code=False, writes_text=True)


def encoder_of(theirs: Any, folder: Path, max_length: int = 4096) -> TextEncoder:
    values = write_tokenizer(theirs, folder, max_length)
    return TextEncoder(folder / TOKENIZER, values, ["input_ids", "attention_mask"])


def ids_of(encoder: TextEncoder, text: str) -> list[int]:
    ids: list[int] = encoder.pad(encoder.encode([text]))["input_ids"][0].tolist()
    return ids


def token_lists(size: int) -> list[list[int]]:
    """What a model may write: any ids in any order."""
    chance = random.Random(2)
    return [[chance.randrange(size) for _ in range(chance.randint(0, 8))] for _ in range(ATTEMPTS)]


@pytest.mark.parametrize("kind", [*FAST, *CONVERTED])
def test_reads_and_writes_as_transformers(kind: str, tmp_path: Path) -> None:
    theirs = loaded({**FAST, **CONVERTED}[kind](tmp_path / "checkpoint"))
    encoder = encoder_of(theirs, tmp_path)

    for text in texts():
        expected = theirs(text)["input_ids"]
        assert ids_of(encoder, text) == expected, text
        spelled = theirs.decode(expected, skip_special_tokens=True)
        assert encoder.decode(expected) == spelled, text
    for ids in token_lists(len(theirs.get_vocab())):
        if ids and theirs.convert_ids_to_tokens(ids[0]) == "<|startofprev|>":
            continue  # transformers drops the prompt after it, which no generated text begins with
        assert encoder.decode(ids) == theirs.decode(ids, skip_special_tokens=True), ids


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_converted_tokenizer_cuts_and_pairs_as_transformers(kind: str, tmp_path: Path) -> None:
    theirs = loaded(CONVERTED[kind](tmp_path / "checkpoint"))
    encoder = encoder_of(theirs, tmp_path, LENGTH)
    for text in texts():
        expected = theirs(text, truncation=True, max_length=LENGTH)["input_ids"]
        assert ids_of(encoder, text) == expected, text
    pair = encoder.pad(encoder.encode([("the cat", "a dog")]))["input_ids"][0].tolist()
    assert pair == theirs("the cat", "a dog")["input_ids"]


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_piece_that_the_vocabulary_lacks_is_unknown(kind: str, tmp_path: Path) -> None:
    theirs = loaded(CONVERTED[kind](tmp_path / "checkpoint"))
    portable = portable_from_tokenizer(theirs, "here")
    size = len({**theirs.get_vocab(), **getattr(theirs, "lang_token_to_id", {})})
    assert portable.missing_from == size
    missing = [portable.rust.id_to_token(i) for i in range(size, portable.rust.get_vocab_size())]
    assert len(missing) > 3
    for piece in missing:
        text = f"the{piece.replace('▁', ' ')} cat"
        assert portable.ids(text) == theirs(text)["input_ids"], piece


def test_a_language_code_counts_at_the_start_only(tmp_path: Path) -> None:
    encoder = encoder_of(loaded(marian_folder(tmp_path / "checkpoint")), tmp_path)
    code = encoder._tokenizer.encode(">>fra<<").ids[0]
    assert encoder.decode([code]) == ">>fra<<"
    assert ids_of(encoder, ">>fra<< the cat")[1:] == ids_of(encoder, "the cat")
    assert code not in ids_of(encoder, "the >>fra<< cat")
    assert code not in ids_of(encoder, " >>fra<< cat")


def test_models_of_one_language_pair_have_no_codes(tmp_path: Path) -> None:
    theirs = loaded(marian_folder(tmp_path / "checkpoint", codes=()))
    encoder = encoder_of(theirs, tmp_path)
    for text in texts():
        assert ids_of(encoder, text) == theirs(text)["input_ids"], text


@pytest.mark.parametrize(
    ("kind", "place", "code", "token"),
    [
        ("mbart", -1, "fr_XX", "fr_XX"),
        ("mbart-50", 0, "fr_XX", "fr_XX"),
        ("nllb", 0, "fra_Latn", "fra_Latn"),
        ("m2m-100", 0, "fr", "__fr__"),
    ],
)
def test_the_saved_source_language_decides(
    kind: str, place: int, code: str, token: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    theirs = loaded({**FAST, **CONVERTED}[kind](folder))
    german = ids_of(encoder_of(theirs, tmp_path), "the cat")
    theirs.src_lang = code
    theirs.save_pretrained(folder)

    again = loaded(folder)
    french = ids_of(encoder_of(again, tmp_path), "the cat")
    assert french == again("the cat")["input_ids"]
    assert french[place] == again.convert_tokens_to_ids(token) != german[place]
    french.pop(place), german.pop(place)
    assert french == german


def test_clean_up_is_done_where_the_checkpoint_asks_for_it(tmp_path: Path) -> None:
    written = {}
    for kind in ("t5", "t5 that cleans up"):
        encoder = encoder_of(loaded(FAST[kind](tmp_path / kind)), tmp_path / kind)
        written[kind] = encoder.decode(ids_of(encoder, "the cat . a dog , s'il"))
    assert written == {"t5": "the cat . a dog , s'il", "t5 that cleans up": "the cat. a dog, s'il"}


def test_time_stamps_are_not_part_of_the_text(tmp_path: Path) -> None:
    folder = FAST["whisper"](tmp_path / "checkpoint")
    theirs = loaded(folder)
    theirs.add_tokens([f"<|{i / 50:.2f}|>" for i in range(100)])
    theirs.save_pretrained(folder)
    theirs = loaded(folder)
    encoder = encoder_of(theirs, tmp_path)
    ids = theirs("<|0.00|> the cat<|1.08|><|1.10|> ran<|1.98|>")["input_ids"]
    assert theirs.convert_tokens_to_ids("<|1.08|>") in ids
    assert encoder.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == " the cat ran"


def test_separate_vocabularies_are_refused(tmp_path: Path) -> None:
    folder = marian_folder(tmp_path / "checkpoint", separate_vocabs=True)
    shutil.copy(folder / "vocab.json", folder / "target_vocab.json")
    with pytest.raises(BadCheckpoint, match="a vocabulary for each of its two languages"):
        loaded(folder)


def test_a_model_that_is_not_unigram_is_refused(tmp_path: Path) -> None:
    folder = marian_folder(tmp_path / "checkpoint")
    spm_file(folder / "source.spm", sentences(SOURCE_WORDS), model_type="bpe")
    with pytest.raises(BadCheckpoint, match=r"source\.spm is not a Unigram model"):
        loaded(folder)


def test_a_vocabulary_with_a_gap_is_refused(tmp_path: Path) -> None:
    folder = marian_folder(tmp_path / "checkpoint")
    write_json(folder / "vocab.json", {"</s>": 0, "<unk>": 1, "<pad>": 3})
    with pytest.raises(BadCheckpoint, match=r"vocab\.json gives an id twice, or leaves one out"):
        loaded(folder)


def test_a_tokenizer_in_python_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_json(folder / "config.json", {"model_type": "roberta"})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PhobertTokenizer"})
    (folder / "vocab.txt").write_text("the 1\ncat 1\n", encoding="utf-8")
    (folder / "bpe.codes").write_text("t h 1\nth e</w> 1\n", encoding="utf-8")
    with pytest.raises(BadCheckpoint, match="PhobertTokenizer is written in Python") as error:
        loaded(folder)
    assert "set tokenizer_class in tokenizer_config.json" in error.value.fix


def test_a_pre_tokenizer_in_python_is_refused(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    theirs = loaded(FAST["bert"](tmp_path / "checkpoint"))
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(object())
    with pytest.raises(BadCheckpoint, match="BertTokenizer has parts in Python"):
        portable_from_tokenizer(theirs, "here")


def test_a_tokenizer_that_reads_in_another_way_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = loaded(marian_folder(tmp_path / "checkpoint"))
    portable = portable_from_tokenizer(theirs, "here")
    shout = theirs._tokenize
    monkeypatch.setattr(theirs, "_tokenize", lambda text: shout(text.replace("order", "dog")))
    with pytest.raises(BadCheckpoint, match=r"would cut 'Where is my order\?' into other tokens"):
        check_portable(theirs, portable, "here", writes_text=True)


def test_a_tokenizer_that_writes_in_another_way_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = loaded(FAST["t5"](tmp_path / "checkpoint"))
    portable = portable_from_tokenizer(theirs, "here")
    decode = theirs.decode
    monkeypatch.setattr(theirs, "decode", lambda *a, **k: decode(*a, **k).upper())
    with pytest.raises(BadCheckpoint, match="would write another text than 'HERE"):
        check_portable(theirs, portable, "here", writes_text=True)
    check_portable(theirs, portable, "here", writes_text=False)  # nobody reads what it writes


def test_without_sentencepiece_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = loaded(marian_folder(tmp_path / "checkpoint"))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingPackage, match=r"tfc\[compile\]"):
        portable_from_tokenizer(theirs, "here")


def test_without_sentencepiece_loading_says_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError("MarianTokenizer requires the SentencePiece library")

    folder = marian_folder(tmp_path / "checkpoint")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(BadCheckpoint, match="requires the SentencePiece library"):
        loaded(folder)  # it is installed, so that it is not what is missing
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingPackage, match=r"tfc\[compile\]"):
        loaded(folder)


def test_two_ways_of_one_score_are_a_tie() -> None:
    from tokenizers import Tokenizer, decoders, models

    scores = [("<unk>", 0.0), ("a", -1.5), ("aa", -2.25), ("aaa", -4.0)]
    rust = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    rust.decoder = decoders.Fuse()
    assert _is_tie(rust, [2, 1], [1, 2])
    assert not _is_tie(rust, [1, 1, 1], [1, 2])
    assert not _is_tie(rust, [3], [1, 2])
    assert not _is_tie(rust, [0, 2], [2])


@pytest.mark.ort
def test_a_translation_model_exports_with_its_tokenizer(tmp_path: Path) -> None:
    import transformers

    folder = marian_folder(tmp_path / "checkpoint")
    theirs = loaded(folder)
    size, padding = len(theirs.get_vocab()), theirs.pad_token_id
    config = transformers.MarianConfig(
        vocab_size=size,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        pad_token_id=padding,
        decoder_start_token_id=padding,
        eos_token_id=0,
        forced_eos_token_id=0,
    )
    transformers.MarianMTModel(config).save_pretrained(folder)

    tfc.export(str(folder), tmp_path / "artifact")

    values = tfc.Artifact.open(tmp_path / "artifact").manifest.preprocess
    assert values is not None
    assert (values.missing_from, values.unknown_id) == (size, theirs.unk_token_id)
    encoder = TextEncoder(tmp_path / "artifact" / TOKENIZER, values, ["input_ids"])
    for text in ("the red house", ">>fra<< the large cat", "blue revenue"):
        assert ids_of(encoder, text) == theirs(text)["input_ids"]
