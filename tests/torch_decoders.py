"""Tiny models of random weights that write varied text, and a `Decoder` over each of them."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np

VOCABULARY = 48
PAD, START, END = 0, 1, 2
SHARED = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": END,
    "tie_word_embeddings": False,  # tied, random weights repeat the token that they have read
}
HEADS, HIDDEN, POSITIONS = 2, 32, 64
CAUSAL, SEQ2SEQ = ("gpt2", "llama"), ("t5", "bart")


@functools.cache
def tiny_model(name: str) -> Any:
    """A model of two layers; its weights are spread wide, so that the scores are far apart."""
    import torch
    import transformers as tf

    torch.manual_seed(3)
    sizes: dict[str, Any] = {"initializer_range": 0.4, "max_position_embeddings": POSITIONS}
    makers: dict[str, Any] = {
        "gpt2": lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(
                n_embd=HIDDEN,
                n_layer=2,
                n_head=HEADS,
                n_positions=POSITIONS,
                initializer_range=0.4,
                **SHARED,
            )
        ),
        "llama": lambda: tf.LlamaForCausalLM(
            tf.LlamaConfig(
                hidden_size=HIDDEN,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=HEADS,
                num_key_value_heads=1,
                **sizes,
                **SHARED,
            )
        ),
        "t5": lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                d_model=HIDDEN,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=HEADS,
                decoder_start_token_id=PAD,
                **SHARED,
            )
        ),
        "bart": lambda: tf.BartForConditionalGeneration(
            tf.BartConfig(
                d_model=HIDDEN,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=HEADS,
                decoder_attention_heads=HEADS,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                init_std=0.4,
                max_position_embeddings=POSITIONS,
                decoder_start_token_id=END,
                forced_eos_token_id=None,
                **SHARED,
            )
        ),
    }
    model = makers[name]().eval()
    if name == "t5":  # it ties its weights whatever the config says
        with torch.no_grad():
            model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, HIDDEN) * 0.5)
            model.shared.weight *= 3
    model.generation_config = tf.GenerationConfig(**base_config(name))
    return model


def base_config(name: str) -> dict[str, Any]:
    """The special tokens of a model, as its generation config."""
    found = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    if name in SEQ2SEQ:
        found["decoder_start_token_id"] = PAD if name == "t5" else END
    return found


def prompts(name: str, seed: int, lengths: list[int]) -> tuple[Any, Any]:
    """(tokens, mask) `[rows, longest]`, padded on the left for decoder-only models."""
    random = np.random.default_rng(seed)
    tokens = np.full((len(lengths), max(lengths)), PAD)
    mask = np.zeros_like(tokens)
    for row, length in enumerate(lengths):
        place = slice(0, length) if name in SEQ2SEQ else slice(max(lengths) - length, None)
        tokens[row, place] = random.integers(3, VOCABULARY, length)
        mask[row, place] = 1
    return tokens, mask


def reference(name: str, tokens: Any, mask: Any, **settings: Any) -> Any:
    """What `model.generate` writes, or its whole output with `return_dict_in_generate`."""
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = tiny_model(name).generate(
            torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask), **settings
        )
    return found.numpy() if isinstance(found, torch.Tensor) else found


class CausalDecoder:
    """A decoder-only model; its cache is a tuple of arrays: key, value, key, value, …."""

    def __init__(self, name: str) -> None:
        self.model = tiny_model(name)
        self.rows: list[int] = []  # how many rows each step ran

    def step(self, input_ids: Any, attention_mask: Any, cache: Any) -> tuple[Any, Any]:
        import torch

        self.rows.append(len(input_ids))
        mask = torch.from_numpy(attention_mask)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        with torch.no_grad():
            out = self.model(
                torch.from_numpy(np.ascontiguousarray(input_ids)),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=_torch_cache(cache),
                use_cache=True,
            )
        return out.logits[:, -1].numpy(), _arrays(out.past_key_values)

    def reorder(self, cache: Any, indices: Any) -> Any:
        return tuple(np.take(array, indices, axis=0) for array in cache)


class Seq2SeqDecoder:
    """An encoder-decoder model and what its encoder gave, which its cache carries with it."""

    def __init__(self, name: str, tokens: Any, mask: Any) -> None:
        import torch

        self.model = tiny_model(name)
        self.rows: list[int] = []
        with torch.no_grad():
            hidden = self.model.get_encoder()(
                torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask)
            )
        self.source = (hidden.last_hidden_state.numpy(), mask)

    def step(self, input_ids: Any, attention_mask: Any, cache: Any) -> tuple[Any, Any]:
        import torch
        from transformers import DynamicCache, EncoderDecoderCache

        self.rows.append(len(input_ids))
        hidden, mask = self.source if cache is None else cache[:2]
        past = _torch_cache(None if cache is None else cache[2:])
        with torch.no_grad():
            out = self.model(
                encoder_outputs=(torch.from_numpy(hidden),),
                attention_mask=torch.from_numpy(mask),
                decoder_input_ids=torch.from_numpy(np.ascontiguousarray(input_ids)),
                past_key_values=EncoderDecoderCache(past, DynamicCache()),
                use_cache=True,
            )
        own = _arrays(out.past_key_values.self_attention_cache)
        return out.logits[:, -1].numpy(), (hidden, mask, *own)

    def reorder(self, cache: Any, indices: Any) -> Any:
        return tuple(np.take(array, indices, axis=0) for array in cache)


def _torch_cache(cache: Any) -> Any:
    import torch
    from transformers import DynamicCache

    if cache is None:
        return DynamicCache()
    arrays = [torch.from_numpy(array) for array in cache]
    return DynamicCache(list(zip(arrays[::2], arrays[1::2], strict=True)))


def _arrays(cache: Any) -> tuple[Any, ...]:
    return tuple(array.numpy() for layer in cache.layers for array in (layer.keys, layer.values))
