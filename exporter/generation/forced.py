"""What PyTorch says token by token: the reference that engines of models that generate meet.

Each row is run alone, without padding and without a cache: nothing of what an engine does to be
fast is in here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tfc.runtime.padding import Feed

Array = npt.NDArray[Any]


def greedy_tokens(model: Any, feed: Feed, tokens: int) -> Array:
    """Of each row the `tokens` most likely tokens that follow, `[batch, tokens]`.

    Args:
        model: a causal or encoder-decoder language model of transformers.
        feed: what its encoder reads, or the prompts of a model without one; padded, with a mask.
        tokens: how many.
    """
    found = np.zeros((len(next(iter(feed.values()))), 0), np.int64)
    for _ in range(tokens):
        last = forced_logits(model, feed, found)[:, -1]
        found = np.concatenate([found, last.argmax(-1)[:, None]], axis=1)
    return found


def forced_logits(model: Any, feed: Feed, tokens: Array) -> Array:
    """Scores `[batch, tokens + 1, vocabulary]`: of the first token after the prompt, and so on.

    Args:
        model: as for `greedy_tokens`.
        feed: as for `greedy_tokens`.
        tokens: `[batch, tokens]`, taken as what was said.
    """
    rows = []
    for index, said in enumerate(tokens):
        row = {name: array[index] for name, array in feed.items()}
        mask = row.pop("attention_mask", None)
        if mask is not None:
            row = {name: array[mask.astype(bool)] for name, array in row.items()}
        with torch.inference_mode():
            rows.append(_scores(model, row, said))
    return np.stack(rows)


def _scores(model: Any, row: Feed, said: Array) -> Array:
    inputs = {name: _tensor(model, array) for name, array in row.items()}
    new = torch.from_numpy(said)[None]
    if model.config.is_encoder_decoder:
        start = torch.full((1, 1), start_token(model), dtype=torch.int64)
        inputs["decoder_input_ids"] = torch.cat([start, new], dim=1)
        first = 0
    else:
        first = inputs["input_ids"].shape[1] - 1
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
    logits = model(**inputs, use_cache=False, return_dict=True).logits
    scores: Array = logits[0, first:].float().numpy()
    return scores


def _tensor(model: Any, array: Array) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))[None]
    return tensor.to(model.dtype) if tensor.is_floating_point() else tensor


def start_token(model: Any) -> int:
    """The token that a decoder starts with."""
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(config, name, None)
            if token is not None:
                return int(token)
    raise ValueError("the model names no token to start with")
