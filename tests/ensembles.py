"""Members: tiny classifiers of several families, and what each says in PyTorch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from text_models import TEXTS

# One layer is enough where layers are not what a test is about.
SMALL: dict[str, Any] = {"num_hidden_layers": 1}


def with_another_head(checkpoint: Path, folder: Path, seed: int, **config: Any) -> Path:
    """The same backbone, weight for weight, under a classifier of its own (and labels)."""
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        checkpoint, ignore_mismatched_sizes=True, **config
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.randn_like(model.classifier.weight))
    shutil.copytree(checkpoint, folder)
    model.save_pretrained(folder)
    return folder


def logits_by_label(checkpoint: Path, max_length: int = 128) -> dict[str, np.ndarray]:
    """What transformers gives for each of TEXTS, cut there: label → logits `[texts]`."""
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    names = model.config.id2label
    with torch.no_grad():
        rows = [
            model(
                **tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)
            ).logits[0]
            for text in TEXTS
        ]
    found = torch.stack(rows).double().numpy()
    return {names[i]: found[:, i] for i in range(found.shape[1])}
