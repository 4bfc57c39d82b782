"""The products that int8 may be used for: those of an activation and a constant matrix.

A site is a `MatMul` or `Gemm` of an optimized fp32 graph, of any target, whose second factor is
an initializer of rank 2: projections (a packed QKV is one site), feed-forward layers, poolers and
heads. No sites are products of two activations (attention), look-ups (embeddings), convolutions,
and a head that reads a transposed embedding table.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import attribute, module_of

_KINDS = ("MatMul", "Gemm")
_MATRIX_RANK = 2
# Token tensors are [batch, sequence, …]; a pooled tensor is [batch, …].
_TOKEN_RANK = 3


@dataclass(frozen=True)
class Site:
    """One product that may be quantised.

    Attributes:
        node: the name of the node.
        module: the path of the PyTorch module that it came from, empty if unknown.
        kind: `MatMul` or `Gemm`.
        activation: the name of the value that it reads.
        weight: the name of the initializer, `[in, out]`, or `[out, in]` with `transposed`.
        elements: in·out: each row of the activation costs twice as many operations.
        transposed: whether the weight is read transposed (`transB` of a Gemm).
        tokens: whether it runs for every token; a pooler or classifier runs once for each text.
    """

    node: str
    module: str
    kind: str
    activation: str
    weight: str
    elements: int
    transposed: bool
    tokens: bool

    @property
    def label(self) -> str:
        """How it is called in reports: by its module, or else by its node."""
        return self.module or self.node


def sites_of(model: ir.Model) -> tuple[Site, ...]:
    """The sites of a graph, in its order. No weight is read."""
    found = (_site(node) for node in model.graph)
    return tuple(site for site in found if site is not None)


def _site(node: ir.Node) -> Site | None:
    if node.op_type not in _KINDS or node.domain not in ("", "ai.onnx"):
        return None
    activation, weight = node.inputs[:2]
    if activation is None or weight is None or weight.dtype != ir.DataType.FLOAT:
        return None
    tensor = weight.const_value
    if activation.const_value is not None or tensor is None or len(tensor.shape) != _MATRIX_RANK:
        return None
    if attribute(node, "transA", 0):
        return None
    return Site(
        node=str(node.name),
        module=module_of(node),
        kind=node.op_type,
        activation=str(activation.name),
        weight=str(weight.name),
        elements=int(tensor.size),
        transposed=bool(attribute(node, "transB", 0)),
        tokens=_has_tokens(activation),
    )


def _has_tokens(value: ir.Value) -> bool:
    """Whether it is [batch, sequence, …], or flattened: [batch*sequence, …]."""
    if value.shape is None:
        return False
    factors = (d.value.split("*") for d in value.shape if not isinstance(d, int) and d.value)
    flat = any(sum(not factor.isdigit() for factor in axis) > 1 for axis in factors)
    return flat or len(value.shape) >= _TOKEN_RANK
