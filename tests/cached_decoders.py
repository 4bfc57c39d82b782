"""Decoders with a key-value cache among their inputs, as people export them themselves."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN, HEADS, VOCABULARY, POSITIONS, LAYERS = 32, 4, 97, 64, 2
_HEAD_DIM = HIDDEN // HEADS


class Layer(nn.Module):
    """A pre-norm layer; the causal mask is cut out of a buffer by the length of the cache."""

    def __init__(self, transposed_keys: bool) -> None:
        super().__init__()
        self.transposed_keys = transposed_keys
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 64), nn.Linear(64, HIDDEN)
        self.register_buffer("seen", torch.ones(POSITIONS, POSITIONS).tril().bool()[None, None])

    def forward(
        self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows, words, _ = x.shape
        q, k, v = (
            t.view(rows, words, HEADS, _HEAD_DIM).permute(0, 2, 1, 3)
            for t in self.qkv(self.norm1(x)).split(HIDDEN, dim=2)
        )
        if self.transposed_keys:
            k = torch.cat([past[0], k.transpose(-2, -1)], -1)
        else:
            k = torch.cat([past[0], k], -2)
        v = torch.cat([past[1], v], -2)
        scores = q @ (k if self.transposed_keys else k.transpose(-2, -1)) / math.sqrt(_HEAD_DIM)
        total, lowest = v.shape[-2], torch.finfo(torch.float32).min
        seen = self.seen[:, :, total - words : total, :total]
        scores = torch.where(seen, scores, torch.tensor(lowest))
        scores = scores + (1.0 - mask[:, None, None, :].float()) * lowest
        y = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).contiguous().view(rows, words, HIDDEN)
        x = x + self.out(y)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x)))), (k, v)


class Decoder(nn.Module):
    """Ids, a mask over old and new, and a cache for each layer; `stacked` keeps k and v in one."""

    def __init__(self, stacked: bool = False, transposed_keys: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stacked = stacked
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.places = nn.Embedding(POSITIONS, HIDDEN)
        self.layers = nn.ModuleList(Layer(transposed_keys) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, ids: Tensor, mask: Tensor, *past: Tensor) -> Any:
        caches = (
            [(t[0], t[1]) for t in past]
            if self.stacked
            else list(zip(past[::2], past[1::2], strict=True))
        )
        start = caches[0][1].shape[2]
        x = self.words(ids) + self.places(torch.arange(start, start + ids.shape[1]))
        new: list[Tensor] = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, kept = layer(x, mask, cache)
            new += [torch.stack(kept)] if self.stacked else kept
        return self.norm(x), *new


def export(decoder: Decoder, path: Path, total: str, opset: int) -> Path:
    """Export by TorchScript; `total` is the name of the mask's axis."""
    rows, words, old = 2, 3, 5
    transposed = decoder.layers[0].transposed_keys
    ids = torch.randint(0, 90, (rows, words))
    mask = torch.ones(rows, old + words, dtype=torch.int64)
    k = torch.randn(rows, HEADS, *((_HEAD_DIM, old) if transposed else (old, _HEAD_DIM)))
    v = torch.randn(rows, HEADS, old, _HEAD_DIM)
    axes: dict[str, dict[int, str]] = {
        "input_ids": {0: "batch_size", 1: "sequence_length"},
        "attention_mask": {0: "batch_size", 1: total},
    }
    past: list[Tensor] = []
    for layer in range(LAYERS):
        if decoder.stacked:
            axes[f"past_{layer}"] = {1: "batch_size", 3: "past_sequence_length"}
            past.append(torch.stack([k, v]))
            continue
        at = {"key": 3 if transposed else 2, "value": 2}
        for name, place in at.items():
            axis = {0: "batch_size", place: "past_sequence_length"}
            axes[f"past_key_values.{layer}.{name}"] = axis
        past += [k, v]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            decoder.eval(), (ids, mask, *past), str(path), dynamo=False, opset_version=opset,
            input_names=list(axes), dynamic_axes=axes,
        )  # fmt: skip
    return path
