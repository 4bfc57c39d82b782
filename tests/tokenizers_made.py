"""Tokenizers of the other kinds, trained on a few sentences: byte-level BPE and Unigram."""

from __future__ import annotations

from typing import Any

from text_models import TEXTS

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_SENTENCES = [*TEXTS, "a question and an answer", "who met whom in London, and where?"] * 3
VOCABULARY = 320


def byte_level() -> Any:
    """As RoBERTa has it: spaces belong to the token after them, `<mask>` takes the one before."""
    import tokenizers

    bpe = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    bpe.train_from_iterator(_SENTENCES, vocab_size=VOCABULARY, special_tokens=SPECIAL)
    ids = {token: bpe.token_to_id(token) for token in SPECIAL}
    bpe._tokenizer.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
    )
    return _fast(bpe._tokenizer)


def unigram() -> Any:
    """As XLM-RoBERTa has it: `▁` stands for spaces, and what is not known is `<unk>`."""
    import tokenizers
    from tokenizers import pre_tokenizers, processors, trainers

    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, unk_token="<unk>"
    )
    made.train_from_iterator([text for text in _SENTENCES if text.isascii()], trainer)
    ids = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    return _fast(made)


def _fast(tokenizer: Any) -> Any:
    import tokenizers
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token=tokenizers.AddedToken("<mask>", lstrip=True, special=True),
    )
