"""From English to German: a small encoder-decoder, trained from nothing.

python examples/order_german.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from commands import DATA, plan_from, tfc
from order_sentences import EVAL, sentences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from training import Row, fit, read_rows, save
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

NEW = DATA / "order_german" / "new.jsonl"
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
WIDTH, LAYERS, HEADS = 128, 2, 4  # of encoder and decoder


def tokenizer_of(texts: list[str], vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer for both languages."""
    rust = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    rust.train_from_iterator(texts, trainer)
    rust.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=rust, model_max_length=64, **SPECIAL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compile, verify and run."""
    plan = plan_from(__doc__, "order_german", arguments)
    rows = sentences(4000, seed=0, without={row["text"] for row in read_rows(EVAL)})
    tokenizer = tokenizer_of([text for row in rows for text in row.values()])
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in
             (("layers", LAYERS), ("attention_heads", HEADS), ("ffn_dim", 4 * WIDTH))}  # fmt: skip
    config = {"d_model": WIDTH, "max_position_embeddings": 64, "dropout": 0.0, **sizes, **IDS}
    model = BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **config))

    def loss_of(chunk: list[Row]) -> torch.Tensor:
        inputs, labels = (
            tokenizer([row[name] for row in chunk], padding=True, return_tensors="pt")
            for name in ("text", "translation")
        )
        ids = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)  # padding counts not
        mask = inputs.attention_mask
        return model(input_ids=inputs.input_ids, attention_mask=mask, labels=ids).loss

    fit(model, plan.some(rows), loss_of, epochs=plan.epochs(12), lr=1e-3, batch_size=32)
    save(model, tokenizer, plan.checkpoint)
    tfc("export", plan.checkpoint, "-o", plan.artifact, "--overwrite")
    tfc("build-engine", plan.artifact, "--fp16")
    tfc("verify", plan.artifact, "--data", EVAL, *plan.rows_to_verify)
    tfc("run", plan.artifact, NEW, "-o", plan.predictions)
    for row in read_rows(plan.predictions):
        print(f"{row['text']}\n  {row['prediction']['text']}")


if __name__ == "__main__":
    main()
