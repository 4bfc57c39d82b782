"""Where a graph and its module part ways: the first module whose output differs, and the node.

Every submodule's output is recorded while PyTorch runs, and every value that leaves a module in
the graph while ONNX Runtime runs. They are matched by the module's path, which each node carries,
and by shape. A module whose output has no counterpart of its shape is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from tfc.exporter.to_onnx import MODULE_KEY
from tfc.optimizers.executor import outputs_of
from tfc.runtime.padding import Feed

# Differences as a share of a value's scale. Inner values cancel more than outputs do, so a clear
# difference is looked for first, and one of the size that fails the export after that.
_SHARES = (1e-4, 1e-5)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Call:
    """One call of a submodule: its path, its class, and the float tensors that it gave."""

    module: str
    kind: str
    outputs: tuple[Array, ...]


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
    calls = _calls(module, feed)
    graph = ir.load(model)
    leaving = _leaving(graph, {call.module for call in calls})
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


def _calls(module: torch.nn.Module, feed: Feed) -> list[Call]:
    found: list[Call] = []

    def hook_of(path: str) -> Any:
        def hook(part: torch.nn.Module, given: Any, output: Any) -> None:
            arrays = tuple(t.detach().numpy().copy() for t in _floats(output))
            found.append(Call(path, type(part).__name__, arrays))

        return hook

    handles = [
        part.register_forward_hook(hook_of(name.removeprefix("model.")))
        for name, part in module.named_modules()
        if name not in ("", "model")
    ]
    try:
        with torch.no_grad():
            module(*(torch.from_numpy(array) for array in feed.values()))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _floats(output: Any) -> Iterator[torch.Tensor]:
    """The float32 tensors in what a module gave."""
    if isinstance(output, torch.Tensor):
        if output.dtype == torch.float32:
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _floats(item)
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _floats(item)


def _leaving(model: ir.Model, modules: set[str]) -> dict[str, list[ir.Value]]:
    """For each module the values that its nodes give to nodes outside of it, in graph order."""
    found: dict[str, list[ir.Value]] = {}
    for node in model.graph:
        path = node.metadata_props.get(MODULE_KEY, "")
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            users = [use.node.metadata_props.get(MODULE_KEY, "") for use in value.uses()]
            for outer in _enclosing(path):
                used_outside = any(outer not in _enclosing(user) for user in users)
                if outer in modules and (used_outside or value.is_graph_output()):
                    found.setdefault(outer, []).append(value)
    return found


def _enclosing(path: str) -> list[str]:
    """`a.b.c` → `a.b.c`, `a.b`, `a`."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


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
