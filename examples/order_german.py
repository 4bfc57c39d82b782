"""From English to German: a small encoder-decoder with its own tokenizer, trained from nothing.

    python examples/order_german.py

On the 200 sentences that are held out, BLEU is 99.6, of PyTorch and of the fp16 engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from commands import DATA, plan_from, tfc
from order_sentences import EVAL, sentences
from training import Row, fit, new_tokenizer, read_rows, save
from transformers import BartConfig, BartForConditionalGeneration

LONGEST = 64  # tokens of a sentence
SIZES = {"d_model": 128, "max_position_embeddings": LONGEST} | {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 512))
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compile, verify and run."""
    plan = plan_from(__doc__, "order_german", arguments)
    rows = plan.some(sentences(4000, seed=0, without={row["text"] for row in read_rows(EVAL)}))
    texts = [text for row in rows for text in row.values()]
    tokenizer, ids = new_tokenizer(texts, tokens=600, longest=LONGEST)
    torch.manual_seed(0)
    config = BartConfig(vocab_size=len(tokenizer), dropout=0.0, **SIZES, **ids)
    model = BartForConditionalGeneration(config)
    model.generation_config.max_length = 8 if plan.quick else LONGEST

    def loss_of(chunk: list[Row]) -> torch.Tensor:
        english, german = ([row[name] for row in chunk] for name in ("text", "translation"))
        inputs = tokenizer(english, text_target=german, padding=True, return_tensors="pt")
        labels = inputs.labels.masked_fill(inputs.labels == tokenizer.pad_token_id, -100)
        return model(inputs.input_ids, inputs.attention_mask, labels=labels).loss

    fit(model, rows, loss_of, epochs=plan.epochs(10), lr=1e-3, batch_size=32)
    save(model, tokenizer, plan.checkpoint)
    tfc("export", plan.checkpoint, "-o", plan.artifact, "--overwrite")
    tfc("build-engine", plan.artifact, "--fp16")
    tfc("verify", plan.artifact, "--data", EVAL, "--label-column", "translation", *plan.fewer)
    tfc("report", plan.artifact, "-o", plan.report)
    tfc("run", plan.artifact, DATA / "order_german/new.jsonl", "-o", plan.predictions)
    for row in read_rows(plan.predictions):
        print(row["text"], row["prediction"]["text"], sep="\n  ")


if __name__ == "__main__":
    main()
