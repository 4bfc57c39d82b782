"""Which graph of a model that generates is wrong, and on which inputs it shows.

The check of a whole generation tells that something is wrong. Here each graph is compared alone
with the module that it was exported from, which leads to the first of its parts that differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from tfc.errors import CheckFailed
from tfc.exporter.comparison import GraphDiffers, check_outputs
from tfc.exporter.generation.cache import PAST
from tfc.exporter.generation.causal import CausalDecoder
from tfc.exporter.generation.graphs import ENCODER
from tfc.exporter.generation.seq2seq import DecoderWithCrossKeys, EncoderWithCrossKeys
from tfc.manifest import BATCH, ENCODER_SEQUENCE, SEQUENCE, TOTAL
from tfc.manifest import PAST as PAST_AXIS
from tfc.runtime.padding import Feed

# All different, so that no axis can pass for another.
_SIZES = {BATCH: 2, SEQUENCE: 3, PAST_AXIS: 4, TOTAL: 7, ENCODER_SEQUENCE: 5}
_IDS = 32  # within any vocabulary


class _Causal(CausalDecoder):
    def forward(self, ids: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        return super().forward(ids, mask, list(past))


class _Decoder(DecoderWithCrossKeys):
    def __init__(self, model: Any, caches: int) -> None:
        super().__init__(model)
        self._caches = caches

    def forward(self, ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        past, cross = list(rest[: self._caches]), list(rest[self._caches : 2 * self._caches])
        return super().forward(ids, past, cross, *rest[2 * self._caches :])


def with_evidence(
    model: Any, graphs: Mapping[str, Path], error: CheckFailed, where: str
) -> CheckFailed:
    """The same failure with the graph and the inputs that show it; as it was if none shows it."""
    for name, path in graphs.items():
        graph = ir.load(path).graph
        module = _module_of(model, name, graph, encodes=ENCODER in graphs).eval()
        try:
            check_outputs(module, path, [_feed_of(graph)], where)
        except GraphDiffers as differs:
            return GraphDiffers(f"{error.what}, and {path.name} does", where, differs.evidence)
    return error


def _module_of(model: Any, name: str, graph: ir.Graph, *, encodes: bool) -> torch.nn.Module:
    if name == ENCODER:
        return EncoderWithCrossKeys(model)
    caches = sum(str(value.name).startswith(f"{PAST}.") for value in graph.inputs)
    return _Decoder(model, caches) if encodes else _Causal(model)


def _feed_of(graph: ir.Graph) -> Feed:
    """Random ids, caches and features; nothing is padding."""
    random = np.random.default_rng(0)
    feed: Feed = {}
    for value in graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [dim if isinstance(dim, int) else _SIZES[str(dim.value)] for dim in value.shape]
        name, dtype = str(value.name), value.dtype.numpy()
        if name.endswith("attention_mask"):
            feed[name] = np.ones(shape, dtype)
        elif dtype.kind == "i":
            feed[name] = random.integers(0, _IDS, shape).astype(dtype)
        else:
            feed[name] = random.standard_normal(shape).astype(dtype)
    return feed
