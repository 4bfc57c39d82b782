"""Key-value caches whose tensors are a graph's inputs and outputs.

The caches of transformers' models, with layers that hold the whole past. A sliding window is left
to the mask, which transformers builds from the window and the layer's length: the keys outside it
are masked rather than dropped, so that all layers have the same length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from tfc.errors import BadCheckpoint
from tfc.exporter.to_onnx import Axis, GraphInput

PAST = "past_key_values"
PRESENT = "present_key_values"
CROSS = "cross_key_values"


class KeyValueLayer(DynamicLayer):
    """One layer's keys and values `[batch, heads, length, head_dim]`, or none yet.

    `DynamicLayer` asks whether its tensors are empty, which a graph for any length cannot.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()
        if keys is not None:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append the new keys and values; all of them are returned."""
        if self.is_initialized:
            return super().update(key_states, value_states)
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """How many tokens are held; while exporting a symbol, which `int` would make a constant."""
        return self.keys.shape[-2] if self.is_initialized else 0


def cache_from_tensors(tensors: Sequence[Tensor]) -> Any:
    """A cache that holds `key, value, key, value, …`."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return Cache(layers=[KeyValueLayer(keys, values) for keys, values in pairs])


def empty_cache() -> Any:
    """A cache without any token, which gets its layers as the model fills them."""
    return Cache(layer_class_to_replicate=KeyValueLayer)


def tensors_of(cache: Any) -> list[Tensor]:
    """`key, value, key, value, …` of a cache's layers."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def names_of(prefix: str, tensors: int) -> list[str]:
    """`prefix.0.key`, `prefix.0.value`, `prefix.1.key`, … for so many tensors."""
    return [f"{prefix}.{i // 2}.{('key', 'value')[i % 2]}" for i in range(tensors)]


def inputs_of(prefix: str, tensors: Sequence[Tensor], axes: Mapping[int, Axis]) -> list[GraphInput]:
    """A cache's tensors as inputs of a graph."""
    names = names_of(prefix, len(tensors))
    return [GraphInput(name, each, axes) for name, each in zip(names, tensors, strict=True)]


def example_from_cache(model: Any, cache: Any, batch: int, length: int) -> list[Tensor]:
    """The tensors of a cache that the model filled, in its own layout.

    Raises:
        BadCheckpoint: a layer's state is not `[batch, heads, length, head_dim]`: it is no
            attention, or keeps something else.
    """
    layers = getattr(cache, "layers", [])
    states = [getattr(layer, part, None) for layer in layers for part in ("keys", "values")]
    for index, state in enumerate(states or [None]):
        shape = () if state is None else tuple(state.shape)
        if len(shape) != 4 or (shape[0], shape[2]) != (batch, length):
            raise BadCheckpoint(
                f"layer {index // 2} of {type(model).__name__} keeps no keys and values of "
                f"[batch, heads, length, head_dim]: {list(shape) or 'it has no such cache'}",
                fix="tfc exports generation for models whose layers all have attention",
            )
    return states
