"""Decoder-only models as one graph for prefill and steps alike.

input_ids      int64   [batch, sequence]
attention_mask int64   [batch, total]                       total = past + sequence
past_key_values.{i}.key, .value     float32 [batch, kv_heads, past, head_dim]
→ logits       float32 [batch, vocabulary]                  of the last position
  present_key_values.{i}.key, .value float32 [batch, kv_heads, total, head_dim]

Rows are padded on the left, so that the last position of every row is its newest token.
"""

from __future__ import annotations

import inspect
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from tfc.exporter.generation.cache import (
    PAST,
    PRESENT,
    cache_from_tensors,
    example_from_cache,
    inputs_of,
    names_of,
    tensors_of,
)
from tfc.exporter.to_onnx import BATCH, Argument, Axis, GraphInput, onnx_from_module

SEQUENCE = Axis("sequence")
PAST_LENGTH = Axis("past", min=0)
TOTAL = Axis("total", max=2 * Axis.max)
SUMS = {"total": ("past", "sequence")}
# All different, and neither 0 nor 1, which the exporter would specialise.
EXAMPLE_BATCH, EXAMPLE_SEQUENCE, EXAMPLE_PAST = 2, 5, 3


class CausalDecoder(torch.nn.Module):
    """A causal language model with its cache as tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._takes_positions = takes(model, "position_ids")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Logits of the last position, and the keys and values with the new tokens."""
        cache = cache_from_tensors(past)
        extra: dict[str, Any] = {}
        if self._takes_positions:
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            extra["position_ids"] = positions[:, -input_ids.shape[1] :]
        logits = last_logits(
            self.model,
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            **extra,
        )
        return (logits, *tensors_of(cache))


def decoder_from_causal(model: Any) -> ir.Model:
    """The graph of a decoder-only model.

    Raises:
        BadCheckpoint: its cache is not one of keys and values, or the exporter cannot follow it.
    """
    past = _example_past(model)
    total = EXAMPLE_PAST + EXAMPLE_SEQUENCE
    mask = torch.ones(EXAMPLE_BATCH, total, dtype=torch.int64)
    mask[1, :2] = 0
    arguments: list[Argument] = [
        GraphInput("input_ids", example_ids(EXAMPLE_SEQUENCE), {0: BATCH, 1: SEQUENCE}),
        GraphInput("attention_mask", mask, {0: BATCH, 1: TOTAL}),
        inputs_of(PAST, past, {0: BATCH, 2: PAST_LENGTH}),
    ]
    outputs = ["logits", *names_of(PRESENT, len(past))]
    return onnx_from_module(CausalDecoder(model).eval(), arguments, outputs, SUMS)


def last_logits(model: Any, **inputs: Any) -> Tensor:
    """Logits `[batch, vocabulary]` of the last position, the others left out where they can be."""
    if takes(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    logits: Tensor = model(**inputs, use_cache=True, return_dict=True).logits
    return logits[:, -1]


def takes(model: Any, name: str) -> bool:
    """Whether a model's forward has an argument of this name."""
    return name in inspect.signature(model.forward).parameters


def example_ids(length: int) -> Tensor:
    """Ids `[2, length]` within any vocabulary."""
    return torch.arange(5, 5 + EXAMPLE_BATCH * length).view(EXAMPLE_BATCH, length) % 32


def _example_past(model: Any) -> list[Tensor]:
    """Keys and values of three tokens, as the model itself lays them out."""
    with torch.no_grad():
        output = model(input_ids=example_ids(EXAMPLE_PAST), use_cache=True, return_dict=True)
    cache = getattr(output, "past_key_values", None)
    return example_from_cache(model, cache, EXAMPLE_BATCH, EXAMPLE_PAST)
