"""Where a graph and its module part ways: the first module whose output differs, and the node.

Every submodule's output is recorded while PyTorch runs, and every value that leaves a module in
the graph while ONNX Runtime runs. They are matched by the module's path, which each node carries,
and by shape. A module whose output has no counterpart of its shape is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from tfc.exporter.module_values import Call, calls_of, leaving_values
from tfc.optimizers.executor import outputs_of
from tfc.runtime.padding import Feed

# Differences as a share of a value's scale. Inner values cancel more than outputs do, so a clear
# difference is looked for first, and one of the size that fails the export after that.
_SHARES = (1e-4, 1e-5)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Site:
    """The first module that differs, the node that gives its output, and by how much."""

    module: str
    kind: str
    node: str
    op_type: str
    value: str
    max_abs: float
    scale: float


def first_difference(module: torch.nn.Module, model: Path, feed: Feed) -> Site | None:
    """The first submodule, in the order in which they finish, whose output the graph gets wrong.

    None where no module's output differs although the graph's does: what is wrong then belongs
    to no submodule, or the differences grow too slowly to blame one.
    """
    calls = calls_of(module, feed)
    graph = ir.load(model)
    leaving = leaving_values(graph, {call.module for call in calls})
    names = {id(v): v for values in leaving.values() for v in values}
    for value in names.values():
        if not value.is_graph_output():
            graph.graph.outputs.append(value)
    (got,) = outputs_of(graph, [feed])
    for share in _SHARES:
        for call in calls:
            site = _compared(call, leaving.get(call.module, []), got, share)
            if site is not None:
                return site
    return None


def _compared(
    call: Call, values: list[ir.Value], got: Mapping[str, Array], share: float
) -> Site | None:
    """The site where the value nearest to one of the call's outputs is still too far from it."""
    for expected in call.outputs:
        near = [v for v in values if got[str(v.name)].shape == expected.shape]
        if not near or expected.size == 0:
            continue
        differences = {id(v): _difference(expected, got[str(v.name)]) for v in near}
        best = min(near, key=lambda v: differences[id(v)])
        scale = float(np.abs(_finite(expected)).max())
        if differences[id(best)] > share * (scale or 1.0):
            node = best.producer()
            assert node is not None
            return Site(
                call.module,
                call.kind,
                str(node.name),
                node.op_type,
                str(best.name),
                differences[id(best)],
                scale,
            )
    return None


def _difference(expected: Array, got: Array) -> float:
    if not np.array_equal(np.isfinite(expected), np.isfinite(got)):
        return float("inf")
    return float(np.abs(_finite(expected) - _finite(got)).max(initial=0.0))


def _finite(array: Array) -> Array:
    """Infinities belong to masks; where both sides have them, they do not count."""
    return np.where(np.isfinite(array), array, 0)
