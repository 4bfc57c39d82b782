"""What the submodules of a module give while it runs, and the values that leave them in a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from tfc.exporter.to_onnx import MODULE_KEY
from tfc.runtime.padding import Feed

Array = npt.NDArray[Any]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Call:
    """One call of a submodule: its path, its class, and the float tensors that it gave."""

    module: str
    kind: str
    outputs: tuple[Array, ...]


def calls_of(module: torch.nn.Module, feed: Feed, dtype: torch.dtype = torch.float32) -> list[Call]:
    """Run a module that computes in `dtype`; its submodules' calls, in the order of their ends.

    Outputs are in fp32, those of a module in fp64 in fp64.
    """
    found: list[Call] = []

    def hook_of(path: str) -> Any:
        def hook(part: torch.nn.Module, given: Any, output: Any) -> None:
            arrays = tuple(_array(t) for t in _floats(output, dtype))
            found.append(Call(path, type(part).__name__, arrays))

        return hook

    handles = [
        part.register_forward_hook(hook_of(name.removeprefix("model.")))
        for name, part in module.named_modules()
        if name not in ("", "model")
    ]
    try:
        with torch.no_grad():
            given = (torch.from_numpy(np.ascontiguousarray(array)) for array in feed.values())
            module(*(t.to(dtype) if t.is_floating_point() else t for t in given))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _array(tensor: torch.Tensor) -> Array:
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return np.array(wide.detach().numpy())


def _floats(output: Any, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The tensors of that type in what a module gave."""
    if isinstance(output, torch.Tensor):
        if output.dtype == dtype:
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _floats(item, dtype)
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _floats(item, dtype)


def leaving_values(model: ir.Model, modules: set[str]) -> dict[str, list[ir.Value]]:
    """For each module the values that its nodes give to nodes outside of it, in graph order."""
    found: dict[str, list[ir.Value]] = {}
    for node in model.graph:
        path = node.metadata_props.get(MODULE_KEY, "")
        for value in node.outputs:
            if value.dtype not in _FLOATS:
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
