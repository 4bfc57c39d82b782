"""Where a half-precision graph loses what its fp32 graph has.

Every node's outputs are compared in the two graphs. A node whose error is not much larger than that
of what it reads passes on what was lost before it: it is a consequence, not a cause. An attention
is one node in this, also where it is written as its products: between them stand the lowest numbers
of masks, beside which no error shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.attention_products import all_attention_products
from tfc.optimizers.executor import Feed, Outputs
from tfc.optimizers.precision.intermediate import values_of

_FLOAT = ir.DataType.FLOAT
# Values that are held at a time, of both graphs. On the samples of a 12-layer encoder of hidden
# size 768 the largest has 5 MB.
_CHUNK = 16
# A product or a norm of what is off by 1 % may be off by a little more without being to blame.
_PASSED_ON = 2.0


@dataclass(frozen=True)
class Loss:
    """A value that half precision does not keep.

    Attributes:
        node: the node that gives it, in the fp32 graph.
        value: its name.
        error: root mean square error, as a share of the value's; infinite where the half graph
            has another infinity or NaN.
        added: that, less the largest error of what the node reads; 0 where it passes that on.
        largest: the largest magnitude in fp32.
    """

    node: ir.Node
    value: str
    error: float
    added: float
    largest: float


def losses(model: ir.Model, half: ir.Model, feeds: Sequence[Feed]) -> list[Loss]:
    """The loss of every fp32 value that both graphs compute, the largest added one first.

    Args:
        model: the fp32 graph.
        half: the same converted; values keep their names.
        feeds: inputs.
    """
    there = {v.name for node in half.graph for v in node.outputs}
    attentions = all_attention_products(model)
    inside = {name for each in attentions for name in each.inside}
    values = {str(v.name): node for node in model.graph for v in node.outputs if _compared(v)}
    names = [name for name in values if name in there and name not in inside]
    read = {each.output: (*each.operands, each.mask) for each in attentions}
    errors: dict[str, tuple[float, float]] = {}
    for first in range(0, len(names), _CHUNK):
        chunk = names[first : first + _CHUNK]
        expected, got = (values_of(graph, chunk, feeds) for graph in (model, half))
        errors |= {name: _error(name, expected, got) for name in chunk}
    found = []
    for name in names:
        node = values[name]
        found.append(_loss(node, read.get(node, node.inputs), name, errors))
    return sorted(found, key=lambda loss: -loss.added)


def _compared(value: ir.Value) -> bool:
    return value.dtype == _FLOAT and bool(value.name)


def _loss(
    node: ir.Node,
    read: Sequence[ir.Value | None],
    name: str,
    errors: Mapping[str, tuple[float, float]],
) -> Loss:
    error, largest = errors[name]
    lost = (errors.get(str(v.name), (0.0, 0.0))[0] for v in read if v is not None)
    before = max(lost, default=0.0)
    causes = math.isfinite(before) and error > _PASSED_ON * before
    return Loss(node, name, error, error - before if causes else 0.0, largest)


def _error(name: str, expected: Sequence[Outputs], got: Sequence[Outputs]) -> tuple[float, float]:
    """The relative error of a value over all feeds, and its largest magnitude in fp32."""
    squares = errors = largest = 0.0
    for e, g in ((e[name], g[name]) for e, g in zip(expected, got, strict=True)):
        finite = np.isfinite(e)
        if not np.array_equal(finite, np.isfinite(g)):
            return math.inf, _largest(e[finite])
        exact = e[finite].astype(np.float64)
        squares += float((exact**2).sum())
        errors += float(((g[finite] - exact) ** 2).sum())
        largest = max(largest, _largest(exact))
    return math.sqrt(errors / squares) if squares else 0.0, largest


def _largest(array: npt.NDArray[Any]) -> float:
    return float(np.abs(array).max(initial=0.0))
