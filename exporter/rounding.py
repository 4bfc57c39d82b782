"""How far PyTorch itself is from fp64: what a graph may differ by where a model amplifies rounding.

Steep softmaxes and deep stacks turn the last bits of fp32 into visible differences. Two programs
that are both right then differ by more than the fixed tolerance of an export; how much is measured
with the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from tfc.runtime.padding import Feed

# Graphs that are right were 1 to 5 times as far from fp64 as PyTorch in fp32 (random encoders of
# 4 layers, NomicBERT and DistilBERT); what is measured is the largest of few values.
ROUNDING_FACTOR = 10
# A model that rounds by more than this share of its outputs' scale says nothing in fp32.
MOST_TOLERANCE = 1e-3


def tolerance_from_rounding(
    module: torch.nn.Module, feeds: Sequence[Feed], scale: float
) -> float | None:
    """The share of `scale` that a graph may differ by, from PyTorch's own error in fp32.

    The module computes in fp64 meanwhile; afterwards its weights are what they were, because each
    fp32 number is an fp64 number. None if it cannot: weights in another type, or code of its own
    that insists on fp32.
    """
    floats = (t for t in [*module.parameters(), *module.buffers()] if t.is_floating_point())
    if any(tensor.dtype != torch.float32 for tensor in floats):
        return None
    expected = [_outputs(module, feed, torch.float32) for feed in feeds]
    try:
        with in_fp64(module):
            exact = [_outputs(module, feed, torch.float64) for feed in feeds]
    except (RuntimeError, TypeError):  # an operator met operands of both types
        return None
    largest = max(
        float(np.abs(a - b).max(initial=0))
        for one, other in zip(expected, exact, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    return min(ROUNDING_FACTOR * largest / scale, MOST_TOLERANCE) if scale else None


@contextmanager
def in_fp64(module: torch.nn.Module) -> Iterator[None]:
    """Let a module compute in fp64 while the block runs; its weights, of fp32, stay the same."""
    module.double()
    try:
        yield
    finally:
        module.float()


def _outputs(module: torch.nn.Module, feed: Feed, dtype: torch.dtype) -> list[np.ndarray]:
    tensors = [torch.from_numpy(array) for array in feed.values()]
    given_in = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
    with torch.no_grad():
        given = module(*given_in)
    outputs = given if isinstance(given, tuple) else (given,)
    return [output.detach().double().numpy() for output in outputs]
