"""The kernels of a plan beside the graph that it was compiled from: modules and layers.

Which transformer layer a kernel belongs to is told by the module paths of the ONNX nodes that it
was made from: `bert.encoder.layer.3` is the part of such a path that holds one attention (or one
of each kind). Where there are no paths, or every layer has the same one because the weights are
shared, a layer reaches from behind the last norm before an attention to behind the last norm
before the next one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tfc.kernel_report import KernelRecord
from tfc.runtime.backends.base import Kernel
from tfc.runtime.backends.kernel_kinds import (
    ATTENTION,
    GEMM,
    MASK,
    NORM,
    SOFTMAX,
    bytes_written,
    kinds_of,
    product_precision,
    readers,
    types_of,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_ATTENTION_OPS = ("Attention", "Softmax")
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def records_of_kernels(kernels: Sequence[Kernel], model: ir.Model) -> list[KernelRecord]:
    """The kernels of one plan, in order of execution, with what they were made from.

    Args:
        kernels: what the backend says that it compiled.
        model: the graph that was compiled.
    """
    modules = _modules_of_nodes(model)
    kinds = kinds_of(kernels)
    paths = [_paths(kernel, modules) for kernel in kernels]
    prefixes = layer_prefixes(_attention_modules(model))
    layers = _layers_by_path(kinds, paths, prefixes) if prefixes else _layers_by_period(kinds)
    layers = _masks_to_their_readers(kernels, kinds, layers)
    return [_record(*one) for one in zip(kernels, kinds, paths, layers, strict=True)]


def layer_prefixes(attentions: Sequence[str]) -> dict[str, int]:
    """The module path of each transformer layer → its number, in the order of the graph.

    Args:
        attentions: the module path of each attention of the graph, in order.

    A layer's path is the shortest one that ends in a number below which no two attentions have
    the same path but for their numbers: `layers.0` where it holds `self_attn` and `encoder_attn`,
    `layers.0.blocks.1` where `layers.0` holds several blocks. Empty where there is none.
    """
    numbered = [path for path in attentions if _NUMBER.search(path)]
    longest = max((len(_NUMBER.findall(path)) for path in numbered), default=0)
    for depth in range(1, longest + 1):
        found = [_prefix(path, depth) for path in numbered]
        shapes = [_NUMBER.sub(".#", path) for path in numbered]
        if len(set(zip(found, shapes, strict=True))) == len(numbered):
            return {prefix: number for number, prefix in enumerate(dict.fromkeys(found))}
    return {}


def _prefix(path: str, numbers: int) -> str:
    """The path up to its n-th number, or up to its last one if it has fewer."""
    ends = [match.end() for match in _NUMBER.finditer(path)][:numbers]
    return path[: ends[-1]]


def _modules_of_nodes(model: ir.Model) -> dict[str, str]:
    from tfc.optimizers.graph import MODULE_KEY

    return {
        str(node.name): node.metadata_props[MODULE_KEY]
        for node in model.graph
        if MODULE_KEY in node.metadata_props
    }


def _attention_modules(model: ir.Model) -> list[str]:
    from tfc.optimizers.graph import module_of

    return [module_of(node) for node in model.graph if node.op_type in _ATTENTION_OPS]


def _paths(kernel: Kernel, modules: dict[str, str]) -> list[str] | None:
    """The module of each node of the kernel; None where none is told."""
    known = any(node in modules for node in kernel.nodes)
    return [modules.get(node, "") for node in kernel.nodes] if known else None


def _layers_by_path(
    kinds: Sequence[str], paths: Sequence[list[str] | None], prefixes: dict[str, int]
) -> list[int | None]:
    """A kernel of which no module is known belongs with the one before it; masks come later."""
    layers: list[int | None] = []
    latest: int | None = None
    for kind, path in zip(kinds, paths, strict=True):
        if path is not None and kind != MASK:
            latest = _layer_of_paths(path, prefixes)
        layers.append(latest)
    return layers


def _layer_of_paths(paths: Iterable[str], prefixes: dict[str, int]) -> int | None:
    """The layer that most of the paths lie in, the later one of two."""
    found = Counter(
        number
        for path in paths
        for prefix, number in prefixes.items()
        if path == prefix or path.startswith(f"{prefix}.")
    )
    return max(found, key=lambda number: (found[number], number)) if found else None


def _layers_by_period(kinds: Sequence[str]) -> list[int | None]:
    starts = _starts(kinds)
    if not starts:
        return [None] * len(kinds)
    # The last layer ends where it would if it were as long as the one before it.
    longest = starts[-1] + (starts[-1] - starts[-2] if len(starts) > 1 else len(kinds))
    layers: list[int | None] = []
    for index in range(len(kinds)):
        number = sum(start <= index for start in starts) - 1
        layers.append(number if number >= 0 and index < longest else None)
    return layers


def _starts(kinds: Sequence[str]) -> list[int]:
    """Where each layer begins: behind the last norm before its attention, or at the attention."""
    anchors = [i for i, kind in enumerate(kinds) if kind == ATTENTION]
    anchors = anchors or [i for i, kind in enumerate(kinds) if kind == SOFTMAX]
    starts, previous = [], 0
    for anchor in anchors:
        norms = [i for i in range(previous, anchor) if kinds[i] == NORM]
        starts.append(norms[-1] + 1 if norms else anchor)
        previous = anchor + 1
    return starts


def _masks_to_their_readers(
    kernels: Sequence[Kernel], kinds: Sequence[str], layers: Sequence[int | None]
) -> list[int | None]:
    """A mask that one layer alone reads belongs to it, and one that several read to none."""
    several = len({layer for layer in layers if layer is not None}) > 1
    reached: list[set[int | None]] = [set() for _ in kernels]
    result = list(layers)
    for index, later in reversed(list(enumerate(readers(kernels)))):
        if kinds[index] != MASK:
            reached[index] = {layers[index]}
            continue
        reached[index] = set().union(*(reached[reader] for reader in later))
        (only, *others) = reached[index] or {None}
        result[index] = only if several and not others else None
    return result


def _record(kernel: Kernel, kind: str, paths: list[str] | None, layer: int | None) -> KernelRecord:
    reads, writes = types_of(kernel)
    return KernelRecord(
        name=kernel.name,
        type=kernel.type,
        kind=kind,
        reads=list(reads),
        writes=list(writes),
        product=product_precision(kernel) if kind in (GEMM, ATTENTION) else "",
        nodes=list(kernel.nodes),
        modules=paths or [""] * len(kernel.nodes),
        layer=layer,
        bytes=bytes_written(kernel),
    )
