"""Tiny random models that generate, one of each family that tfc exports."""

from __future__ import annotations

import warnings
from typing import Any

VOCABULARY = 131
POSITIONS = 48
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
}
_SMALL_VOCABULARY = {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
# Unlike numbers for encoder and decoder, so that one is not taken for the other.
_SEQ2SEQ: dict[str, Any] = {
    **_SMALL_VOCABULARY,
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": POSITIONS,
    "scale_embedding": True,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "d_kv": 8,
    "d_ff": 64,
    "decoder_start_token_id": 0,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "opt": {**_DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "llama": _DECODER,
    "mistral": {**_DECODER, "sliding_window": 8},
    "qwen2": _DECODER,
    "qwen3": {**_DECODER, "head_dim": 16},
    "gemma": {**_DECODER, "head_dim": 16},
    "phi": {**_DECODER, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bart": _SEQ2SEQ,
    "mbart": _SEQ2SEQ,
    "marian": {**_SEQ2SEQ, "pad_token_id": VOCABULARY - 1},
    "pegasus": _SEQ2SEQ,
    "m2m_100": _SEQ2SEQ,
}
SPEECH: dict[str, dict[str, Any]] = {
    "whisper": {
        **_SEQ2SEQ,
        "num_mel_bins": 8,
        "max_source_positions": 20,
        "max_target_positions": POSITIONS,
    }
}
# No scaled_dot_product_attention in transformers.
_EAGER = frozenset({"bloom"})
# T5 does not scale its scores: with larger weights its softmax is so steep that torch's own fp32
# is 1e-5 away from its fp64.
_SPREAD = {"t5": 0.05, "mt5": 0.05}


def tiny_generator(family: str, **config: Any) -> Any:
    """A random model with a language-model head and real spread in its weights."""
    import torch
    import transformers

    sizes = {**CAUSAL, **SEQ2SEQ, **SPEECH}[family]
    auto = transformers.AutoModelForCausalLM
    if family in SEQ2SEQ:
        auto = transformers.AutoModelForSeq2SeqLM
    if family in SPEECH:
        auto = transformers.AutoModelForSpeechSeq2Seq
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = transformers.AutoConfig.for_model(family, **{**sizes, **config})
        attention = "eager" if family in _EAGER else "sdpa"
        model = auto.from_config(settings, attn_implementation=attention).eval()
    for parameter in model.parameters():
        scale = _SPREAD.get(family, 0.15) if parameter.ndim >= 2 else 0.05
        with torch.no_grad():
            parameter += scale * torch.randn(parameter.shape)
    return model
