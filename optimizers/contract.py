"""The fusion contract: how many sites the model has, and how many were fused.

The expected counts come from the model's config where its family is known (manifest field
`fusion_sites`). Otherwise they come from the graph as it was before any fusion:

1. attention: every softmax whose probabilities are a matrix product's, as far as can be told
   (whatever the fusion has an opinion on), and every `Attention` that is already there. Heads
   that were written one by one and joined before (`tfc.optimizers.raising.single_heads`) are one;
2. add+LayerNorm: every LayerNormalization of a sum of two tensors, embedding sums excepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import nodes_of
from tfc.optimizers.raising import add_layer_norm, attention
from tfc.optimizers.raising.add_layer_norm import AddLayerNorm
from tfc.optimizers.raising.attention import Attention

ATTENTION = attention.KIND
ADD_LAYERNORM = add_layer_norm.KIND
LABELS = {ATTENTION: "attention", ADD_LAYERNORM: "add+LayerNorm"}


@dataclass(frozen=True)
class Count:
    """Sites of one kind: fused and expected."""

    found: int
    expected: int

    @property
    def reached(self) -> bool:
        """Whether no site was missed."""
        return self.found >= self.expected


def expected_sites(model: ir.Model, from_config: Mapping[str, int]) -> dict[str, int]:
    """How many sites of each kind the graph must have."""
    if from_config:
        return dict(from_config)
    block, norm = Attention(), AddLayerNorm()
    softmaxes = sum(block.match(node) is not None for node in nodes_of(model, "Softmax"))
    return {
        ATTENTION: softmaxes + sum(1 for _ in nodes_of(model, "Attention")),
        ADD_LAYERNORM: sum(
            norm.match(node) is not None for node in nodes_of(model, "LayerNormalization")
        ),
    }


def fused_sites(model: ir.Model) -> dict[str, int]:
    """How many sites of each kind the raised graph holds as one op."""
    return {
        ATTENTION: sum(1 for _ in nodes_of(model, "Attention")),
        ADD_LAYERNORM: sum(1 for _ in nodes_of(model, add_layer_norm.OP, add_layer_norm.DOMAIN)),
    }


def counts(found: Mapping[str, int], expected: Mapping[str, int]) -> dict[str, Count]:
    """Both, kind by kind."""
    return {kind: Count(found.get(kind, 0), number) for kind, number in expected.items()}
