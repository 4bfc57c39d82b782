"""`graphs_from_model`: the graphs that a model needs to generate."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from tfc.exporter.generation.causal import decoder_from_causal
from tfc.exporter.generation.seq2seq import encoder_decoder_from_seq2seq

ENCODER = "encoder"
DECODER = "decoder"


def graphs_from_model(model: Any) -> dict[str, ir.Model]:
    """`{"decoder": …}` of a decoder-only model, `{"encoder": …, "decoder": …}` of the others.

    Args:
        model: a transformers model with a language-model head, in fp32 and evaluation mode.

    Raises:
        BadCheckpoint: its cache is not one of keys and values, or the exporter cannot follow it.
    """
    if model.config.is_encoder_decoder:
        encoder, decoder = encoder_decoder_from_seq2seq(model)
        return {ENCODER: encoder, DECODER: decoder}
    return {DECODER: decoder_from_causal(model)}
