"""A model that generates, called like one of its graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tfc.exporter.generation.cache import CROSS, PAST
from tfc.exporter.generation.causal import CausalDecoder
from tfc.exporter.generation.graphs import ENCODER
from tfc.exporter.generation.seq2seq import DecoderWithCrossKeys, EncoderWithCrossKeys


class GraphModule(torch.nn.Module):
    """What a graph was exported from.

    Args:
        model: the checkpoint's model.
        graph: `encoder` or `decoder`.
        names: the graph's inputs.
    """

    def __init__(self, model: Any, graph: str, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._graph = graph
        self._names = tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs, for its inputs."""
        given = list(zip(self._names, tensors, strict=True))
        past, cross = (
            [tensor for name, tensor in given if name.startswith(f"{prefix}.")]
            for prefix in (PAST, CROSS)
        )
        others = [tensor for name, tensor in given if not name.startswith((PAST, CROSS))]
        if self._graph == ENCODER:
            found = EncoderWithCrossKeys(self.model)(*others)
        elif cross:
            found = DecoderWithCrossKeys(self.model)(others[0], past, cross, *others[1:])
        else:
            found = CausalDecoder(self.model)(*others, past)
        return tuple(found)
