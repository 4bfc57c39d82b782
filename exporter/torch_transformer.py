"""torch's own Transformer modules, without what a graph cannot do: shortcuts that look at data.

1. `nn.TransformerEncoder` in evaluation mode packs a batch without its padding
   (`enable_nested_tensor`, on unless told otherwise): outputs at padding become 0, and the batch
   is cut to its longest row. In training, and in a graph, padding is computed like the rest and
   left out of the attention. What stands at places that are no padding is the same.
2. `nn.TransformerEncoder` and `nn.TransformerDecoder` look whether a mask is the causal one where
   they are not told (`is_causal=None`), to choose a faster kernel. The mask is applied either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import transformer


@contextmanager
def without_shortcuts(module: torch.nn.Module) -> Iterator[None]:
    """Export and compare within; afterwards all is as it was."""
    encoders = [
        part
        for part in module.modules()
        if isinstance(part, torch.nn.TransformerEncoder) and part.use_nested_tensor
    ]
    looks: Any = transformer._detect_is_causal_mask
    for encoder in encoders:
        encoder.use_nested_tensor = False
    transformer._detect_is_causal_mask = _as_told
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = looks
        for encoder in encoders:
            encoder.use_nested_tensor = True


def _as_told(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True
