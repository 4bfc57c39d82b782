"""Does the exported graph say what the checkpoint says? Asked at once, on varied text.

Each batch is tried as the tokenizer pads it, with the padding on the left, with holes in the mask,
and as a single row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfc.exporter.comparison import (
    RELATIVE_TOLERANCE,
    ExportParity,
    check_within_tolerance,
    outputs_of,
    session_from_onnx,
    worse,
)
from tfc.runtime.padding import Feed, padded_left, with_holes

__all__ = ["RELATIVE_TOLERANCE", "ExportParity", "check_export", "feeds_from_texts"]

_BATCH = 8


def check_export(
    module: torch.nn.Module, model: Path, feeds: Sequence[Feed], where: str
) -> ExportParity:
    """Run both on the same inputs and compare every value.

    Masked positions of per-token outputs count too: a graph that is right computes them alike.

    Raises:
        CheckFailed: the largest difference is above `RELATIVE_TOLERANCE` of the output's scale,
            or one of the two is not finite.
    """
    session = session_from_onnx(model, where)
    parity = ExportParity(0.0, 0.0, 0)
    for feed in feeds:
        with torch.no_grad():
            expected = module(*(torch.from_numpy(array) for array in feed.values())).numpy()
        parity = worse(parity, expected, outputs_of(session, feed, where)[0])
    check_within_tolerance(parity, where)
    return parity


def feeds_from_texts(
    tokenizer: Any, texts: Sequence[str], names: Sequence[str], max_length: int
) -> list[Feed]:
    """Model inputs for the texts: right padding, left padding, holes in the mask, single rows."""
    feeds: list[Feed] = []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        feed = _encode(tokenizer, batch, names, max_length)
        feeds += [feed, padded_left(feed), with_holes(feed)]
    feeds.append(_encode(tokenizer, [max(texts, key=len)], names, max_length))
    feeds.append({name: array[:1, :1] for name, array in feeds[0].items()})
    return feeds


def _encode(tokenizer: Any, texts: list[str], names: Sequence[str], max_length: int) -> Feed:
    encoded = tokenizer(
        texts,
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="np",
        padding_side="right",
        return_token_type_ids="token_type_ids" in names,
    )
    return {name: encoded[name].astype(np.int64) for name in names}
