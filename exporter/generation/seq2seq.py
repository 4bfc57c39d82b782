"""Encoder-decoder models as two graphs.

encoder: input_ids, attention_mask int64 [batch, encoder_sequence]
         (speech: input_features float32 [batch, mels, frames], and no mask)
         → cross_key_values.{i}.key, .value float32 [batch, heads, encoder_sequence, head_dim]
decoder: input_ids              int64 [batch, sequence]
         past_key_values.{i}.*  float32 [batch, heads, past, head_dim]
         cross_key_values.{i}.* as the encoder gave them
         encoder_attention_mask int64 [batch, encoder_sequence]          (speech: none)
         → logits float32 [batch, vocabulary] of the last position
           present_key_values.{i}.* float32 [batch, heads, total, head_dim]  total = past + sequence

The keys and values of cross-attention depend on the source alone, so the encoder's graph computes
them, once, and no step repeats it. Rows of the decoder have the same number of tokens, so nothing
masks them.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from tfc.exporter.generation.cache import (
    CROSS,
    PAST,
    PRESENT,
    cache_from_tensors,
    empty_cache,
    example_from_cache,
    inputs_of,
    names_of,
    tensors_of,
)
from tfc.exporter.generation.causal import (
    EXAMPLE_BATCH,
    EXAMPLE_PAST,
    EXAMPLE_SEQUENCE,
    PAST_LENGTH,
    SEQUENCE,
    SUMS,
    example_ids,
    last_logits,
)
from tfc.exporter.to_onnx import BATCH, Argument, Axis, GraphInput, onnx_from_module

ENCODER_SEQUENCE = Axis("encoder_sequence")
SPEECH_INPUT = "input_features"
_EXAMPLE_SOURCE = 7


class EncoderWithCrossKeys(torch.nn.Module):
    """The encoder, and each decoder layer's projections of what it gives."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Keys and values of cross-attention.

        The decoder runs on one token to fill its own cache; whatever else it computes reaches no
        output and is not in the graph.
        """
        masks = _masks(attention_mask)
        encoded = self.model.get_encoder()(source, **masks, return_dict=True)
        cache = EncoderDecoderCache(empty_cache(), empty_cache())
        start = torch.zeros(source.shape[0], 1, dtype=torch.int64, device=source.device)
        self.model(
            encoder_outputs=encoded,
            decoder_input_ids=start,
            past_key_values=cache,
            use_cache=True,
            **masks,
        )
        return tuple(tensors_of(cache.cross_attention_cache))


class DecoderWithCrossKeys(torch.nn.Module):
    """The decoder and its head, with both caches as tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        past: list[Tensor],
        cross: list[Tensor],
        encoder_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits of the last position, and the keys and values with the new tokens."""
        cache = EncoderDecoderCache(cache_from_tensors(past), cache_from_tensors(cross))
        # Only its shape is read, for the keys and values are in the cache.
        shape = (cross[0].shape[0], cross[0].shape[2], self.model.config.d_model)
        encoded = BaseModelOutput(last_hidden_state=cross[0].new_zeros(shape))
        logits = last_logits(
            self.model,
            decoder_input_ids=input_ids,
            encoder_outputs=encoded,
            past_key_values=cache,
            **_masks(encoder_attention_mask),
        )
        return (logits, *tensors_of(cache.self_attention_cache))


def encoder_decoder_from_seq2seq(model: Any) -> tuple[ir.Model, ir.Model]:
    """The graphs of the encoder and of the decoder of an encoder-decoder model.

    Raises:
        BadCheckpoint: its caches are not ones of keys and values, or the exporter cannot follow it.
    """
    source = _source_of(model)
    past, cross = _example_caches(model, source)
    encoder = onnx_from_module(
        EncoderWithCrossKeys(model).eval(), source, names_of(CROSS, len(cross))
    )
    speech = source[0].name == SPEECH_INPUT
    length = {} if speech else {2: ENCODER_SEQUENCE}
    arguments: list[Argument] = [
        GraphInput("input_ids", example_ids(EXAMPLE_SEQUENCE), {0: BATCH, 1: SEQUENCE}),
        inputs_of(PAST, past, {0: BATCH, 2: PAST_LENGTH}),
        inputs_of(CROSS, cross, {0: BATCH, **length}),
    ]
    if not speech:
        arguments.append(GraphInput("encoder_attention_mask", source[1].example, source[1].axes))
    outputs = ["logits", *names_of(PRESENT, len(past))]
    decoder = onnx_from_module(DecoderWithCrossKeys(model).eval(), arguments, outputs, SUMS)
    return encoder, decoder


def _source_of(model: Any) -> list[GraphInput]:
    """What the encoder reads: token ids with their mask, or the features of a recording."""
    if model.main_input_name == SPEECH_INPUT:
        features = torch.zeros(EXAMPLE_BATCH, *feature_shape(model))
        return [GraphInput(SPEECH_INPUT, features, {0: BATCH})]
    mask = torch.ones(EXAMPLE_BATCH, _EXAMPLE_SOURCE, dtype=torch.int64)
    mask[1, -2:] = 0
    axes = {0: BATCH, 1: ENCODER_SEQUENCE}
    ids = GraphInput("input_ids", example_ids(_EXAMPLE_SOURCE), axes)
    return [ids, GraphInput("attention_mask", mask, axes)]


def feature_shape(model: Any) -> tuple[int, int]:
    """Mel bins and frames of a recording, as Whisper's encoder demands them: two per position."""
    encoder = model.get_encoder()
    strides = encoder.conv1.stride[0] * encoder.conv2.stride[0]
    return int(model.config.num_mel_bins), int(model.config.max_source_positions * strides)


def _example_caches(model: Any, source: list[GraphInput]) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of three tokens and of the source, as the model itself lays them out."""
    cache = EncoderDecoderCache(empty_cache(), empty_cache())
    inputs = {each.name: each.example for each in source}
    ids = example_ids(EXAMPLE_PAST)
    with torch.no_grad():
        model(**inputs, decoder_input_ids=ids, past_key_values=cache, use_cache=True)
    own = cache.self_attention_cache
    past = example_from_cache(model, own, EXAMPLE_BATCH, EXAMPLE_PAST)
    return past, tensors_of(cache.cross_attention_cache)


def _masks(attention_mask: Tensor | None) -> dict[str, Tensor]:
    return {} if attention_mask is None else {"attention_mask": attention_mask}
