"""Tiny tokenizers of each kind, as the files that checkpoints of the kind come with."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SOURCE_WORDS = [
    *("the", "a", "cat", "dog", "house", "red", "blue", "large", "small", "walked", "ran"),
    *("quickly", "to", "from", "under", "over", "river", "mountain", "please", "order"),
    *("parcel", "battery", "refund", "customer", "report", "revenue", "account", "update"),
]
TARGET_WORDS = [
    *("le", "la", "chat", "chien", "maison", "rouge", "bleu", "grand", "petit", "marchait"),
    *("courait", "vite", "vers", "depuis", "sous", "sur", "rivière", "montagne", "s'il"),
    *("commande", "colis", "batterie", "client", "où", "êtes", "déjà", "façade"),
]
_SENTENCES = 400
_BYTE_LEVEL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
# T5 and Pegasus have their padding first; the others sentencepiece's own order.
_PAD_FIRST = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def sentences(words: list[str]) -> list[str]:
    """Random ones, always the same."""
    chance = random.Random(0)
    return [
        " ".join(chance.choices(words, k=chance.randint(3, 12))) + chance.choice(".!?,;")
        for _ in range(_SENTENCES)
    ]


def spm_file(path: Path, texts: Iterable[str], vocab_size: int = 150, **options: Any) -> list[str]:
    """Train a sentencepiece model; its pieces without the first three."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(texts)),
        model_writer=model,
        vocab_size=vocab_size,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    path.write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [pieces.id_to_piece(i) for i in range(3, pieces.get_piece_size())]


def _folder(folder: Path, model_type: str, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"model_type": model_type})
    write_json(folder / "tokenizer_config.json", config)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def marian_folder(
    folder: Path, codes: Iterable[str] = (">>fra<<", ">>deu<<"), **config: Any
) -> Path:
    """vocab.json lacks some pieces of source.spm and has those of target.spm, as real ones do."""
    _folder(folder, "marian", source_lang="eng", target_lang="fra", **config)
    source = spm_file(folder / "source.spm", sentences(SOURCE_WORDS))
    target = spm_file(folder / "target.spm", sentences(TARGET_WORDS))
    known = {piece for i, piece in enumerate(source) if i % 5} | set(target)
    tokens = ["</s>", "<unk>", *sorted(known), "日本", "ÿ", *codes, "<pad>"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    return folder


def m2m_100_folder(folder: Path) -> Path:
    _folder(folder, "m2m_100", tokenizer_class="M2M100Tokenizer", src_lang="de", tgt_lang="fr")
    texts = sentences(SOURCE_WORDS) + sentences(TARGET_WORDS)
    pieces = spm_file(folder / "sentencepiece.bpe.model", texts)
    known = [piece for i, piece in enumerate(pieces) if i % 5]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *known, "日本"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    return folder


def spm_folder(
    file: str, model_type: str, training: dict[str, Any] | None = None, **config: Any
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _folder(folder, model_type, **config)
        texts = sentences(SOURCE_WORDS) + sentences(TARGET_WORDS)
        spm_file(folder / file, texts, **(training or {}))
        return folder

    return make


def nllb_folder(folder: Path) -> Path:
    """With a tokenizer.json, as it is published: sentencepiece's file has no language codes."""
    import transformers

    _folder(folder, "m2m_100", tokenizer_class="NllbTokenizer", src_lang="deu_Latn")
    texts = sentences(SOURCE_WORDS) + sentences(TARGET_WORDS)
    spm_file(folder / "sentencepiece.bpe.model", texts, model_type="bpe")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["deu_Latn", "fra_Latn"], special_tokens=True)
    tokenizer.src_lang = "deu_Latn"
    tokenizer.save_pretrained(folder)
    return folder


def byte_level_folder(model_type: str, special: list[str], **config: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from tokenizers import ByteLevelBPETokenizer

        _folder(folder, model_type, **config)
        bpe = ByteLevelBPETokenizer()
        texts = sentences(SOURCE_WORDS) + sentences(TARGET_WORDS)
        bpe.train_from_iterator(texts, vocab_size=400, special_tokens=special)
        bpe.save_model(str(folder))
        return folder

    return make


def wordpiece_folder(*, clean_up: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from tokenizers import BertWordPieceTokenizer

        _folder(
            folder, "bert", tokenizer_class="BertTokenizer", clean_up_tokenization_spaces=clean_up
        )
        wordpiece = BertWordPieceTokenizer()
        wordpiece.train_from_iterator(sentences(SOURCE_WORDS), vocab_size=150)
        wordpiece.save_model(str(folder))
        return folder

    return make


def clip_folder(folder: Path) -> Path:
    _folder(folder, "clip", tokenizer_class="CLIPTokenizer")
    characters = [chr(i) for i in range(33, 127)]
    ends = [f"{c}</w>" for c in characters]
    tokens = [*characters, *ends, "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n", encoding="utf-8")
    return folder


_BYTES = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 500}
_WHISPER = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|transcribe|>",
    "<|startofprev|>",
    "<|notimestamps|>",
]
FAST: dict[str, Callable[[Path], Path]] = {
    "t5": spm_folder("spiece.model", "t5", _PAD_FIRST, tokenizer_class="T5Tokenizer"),
    "t5 that cleans up": spm_folder(
        "spiece.model",
        "t5",
        _PAD_FIRST,
        tokenizer_class="T5Tokenizer",
        clean_up_tokenization_spaces=True,
    ),
    "pegasus": spm_folder(
        "spiece.model", "pegasus", _PAD_FIRST, tokenizer_class="PegasusTokenizer"
    ),
    "mbart": spm_folder(
        "sentencepiece.bpe.model", "mbart", tokenizer_class="MBartTokenizer", src_lang="de_DE"
    ),
    "mbart-50": spm_folder(
        "sentencepiece.bpe.model", "mbart", tokenizer_class="MBart50Tokenizer", src_lang="de_DE"
    ),
    "nllb": nllb_folder,
    "xlm-roberta": spm_folder(
        "sentencepiece.bpe.model", "xlm-roberta", tokenizer_class="XLMRobertaTokenizer"
    ),
    "llama": spm_folder(
        "tokenizer.model",
        "llama",
        _BYTES,
        tokenizer_class="LlamaTokenizer",
        legacy=False,
        add_bos_token=True,
    ),
    "llama, legacy": spm_folder(
        "tokenizer.model", "llama", _BYTES, tokenizer_class="LlamaTokenizer", legacy=True
    ),
    "gemma": spm_folder("tokenizer.model", "gemma", _BYTES, tokenizer_class="GemmaTokenizer"),
    "bart": byte_level_folder("bart", _BYTE_LEVEL, tokenizer_class="BartTokenizer"),
    "roberta": byte_level_folder("roberta", _BYTE_LEVEL, tokenizer_class="RobertaTokenizer"),
    "gpt2": byte_level_folder("gpt2", ["<|endoftext|>"], tokenizer_class="GPT2Tokenizer"),
    "gpt2 that would clean up": byte_level_folder(
        "gpt2",
        ["<|endoftext|>"],
        tokenizer_class="GPT2Tokenizer",
        clean_up_tokenization_spaces=True,
    ),
    "opt": byte_level_folder(
        "opt",
        _BYTE_LEVEL,
        tokenizer_class="GPT2Tokenizer",
        add_bos_token=True,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>"),
        pad_token="<pad>",
    ),
    "qwen2": byte_level_folder(
        "qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], tokenizer_class="Qwen2Tokenizer"
    ),
    "whisper": byte_level_folder(
        "whisper",
        _WHISPER,
        tokenizer_class="WhisperTokenizer",
        additional_special_tokens=_WHISPER[1:],
    ),
    "clip": clip_folder,
    "bert": wordpiece_folder(clean_up=False),
    "bert that cleans up": wordpiece_folder(clean_up=True),
}
CONVERTED: dict[str, Callable[[Path], Path]] = {"marian": marian_folder, "m2m-100": m2m_100_folder}
