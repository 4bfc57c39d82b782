"""The model inputs on which an exported text model is compared with its checkpoint.

Each batch is tried as the tokenizer pads it, with the padding on the left, with holes in the mask,
and as a single row; then a single token, and a row of the longest text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfc.runtime.padding import Feed, padded_left, with_holes

_BATCH = 8
# A row of the longest text is tried, up to here: attention over it costs the square.
_LONGEST = 1024
# A model of 660 million parameters takes two minutes for all texts on two cores, PyTorch and graph
# together. From this size on one batch, of this many tokens a text, has to do.
_LARGE = 300_000_000
_FEW_TOKENS = 64


def feeds_from_texts(
    tokenizer: Any,
    texts: Sequence[str],
    names: Sequence[str],
    max_length: int,
    parameters: int = 0,
) -> list[Feed]:
    """Model inputs for the texts: right padding, left padding, holes in the mask, single rows.

    A large model (of so many `parameters`) gets fewer and shorter ones.
    """
    longest = _LONGEST
    if parameters >= _LARGE:
        texts, max_length = texts[:: len(texts) // _BATCH], min(max_length, _FEW_TOKENS)
        longest = max_length
    feeds: list[Feed] = []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        feed = _encode(tokenizer, batch, names, max_length)
        feeds += [feed, padded_left(feed), with_holes(feed)]
    feeds.append(_encode(tokenizer, [max(texts, key=len)], names, max_length))
    feeds.append({name: array[:1, :1] for name, array in feeds[0].items()})
    feeds.append(_longest(feeds[0], min(max_length, longest)))
    return feeds


def _longest(feed: Feed, width: int) -> Feed:
    """One row of `width` real tokens, over and over the same."""
    rows = feed["attention_mask"][0].astype(bool)
    return {name: np.resize(array[0, rows], (1, width)) for name, array in feed.items()}


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
