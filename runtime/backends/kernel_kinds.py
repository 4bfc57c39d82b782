"""What a compiled kernel is for, and what a matrix product in it computes in.

A kernel's kind is told by its type and by the operations in its name. Kernels of the attention
mask are told by where their results go: nothing that they compute came out of a matrix product, a
normalization or a float input (images, cached keys), and an attention reads it. A position bias
that is the same for every text is found with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfc.runtime.backends.base import Kernel
from tfc.runtime.backends.kernels import FLOATING, is_fused_attention, is_gemm, operations_of

ATTENTION, GEMM, NORM, SOFTMAX = "attention", "gemm", "norm", "softmax"
POINTWISE, LAYOUT, CAST, MASK, OTHER = "pointwise", "layout", "cast", "mask", "other"
WAIT, BOOKKEEPING = "wait", "bookkeeping"

KINDS = (GEMM, ATTENTION, NORM, SOFTMAX, POINTWISE, LAYOUT, CAST, MASK, OTHER)
"""The kinds of what computes; `WAIT` and `BOOKKEEPING` are the entries that do not."""

_ENTRIES = {"wait": WAIT, "signal": WAIT, "shape_call": BOOKKEEPING, "copy": BOOKKEEPING}
# Arithmetic on sizes, between kernels: one number each.
_SIZES = {"reshape": LAYOUT, "cast": CAST}
# Reshape, Transpose, Slice, Move, Concat, Replicate, Gather, Pad: the numbers stay as they are.
_MOVES = frozenset({"Res", "Tra", "Sli", "Mov", "Con", "Rep", "Gat", "Pad", "Cop"})

_CUT = "Etc"  # ends the name of a kernel with many operations: the rest of them is not told

NAMES = {
    "Half": "fp16",
    "Float": "fp32",
    "BFloat16": "bf16",
    "FP8": "fp8",
    "Int8": "int8",
    "Int32": "int32",
    "Int64": "int64",
    "UInt8": "uint8",
    "Bool": "bool",
}
"""TensorRT's data types, as this project calls them."""

UNKNOWN = "unknown"
_FLOAT_TYPES = frozenset({"fp32", "fp16", "bf16"})
_PRODUCT_TYPES = _FLOAT_TYPES | {"fp8", "int8"}
_BITS = {
    **dict.fromkeys(("int64",), 64),
    **dict.fromkeys(("fp32", "int32"), 32),
    **dict.fromkeys(("fp16", "bf16"), 16),
    **dict.fromkeys(("fp8", "int8", "uint8", "bool"), 8),
}


def kinds_of(kernels: Sequence[Kernel]) -> list[str]:
    """The kind of each kernel of a plan, in order of execution."""
    kinds = [_kind(kernel) for kernel in kernels]
    for index in _masks(kernels, kinds):
        kinds[index] = MASK
    return kinds


def readers(kernels: Sequence[Kernel]) -> list[list[int]]:
    """For each kernel, which later ones read what it writes."""
    writer: dict[str, int] = {}
    found: list[list[int]] = [[] for _ in kernels]
    for index, kernel in enumerate(kernels):
        for source in dict.fromkeys(writer[t.name] for t in kernel.reads if t.name in writer):
            found[source].append(index)
        writer.update((tensor.name, index) for tensor in kernel.writes)
    return found


def product_precision(kernel: Kernel) -> str:
    """What the matrix product in this kernel computes in: `fp16`, `int8`, …, or `unknown`.

    Both factors of a product have one type. A matrix of weights decides if some activation has its
    type, and so does one in fp32: an activation of fewer bits is widened in the kernel. Beside
    quantised weights that no activation matches, the activations decide: the weights are widened.
    Weights in fp16 beside activations in fp32 alone leave open which of them is cast.
    """
    reads = {_name(t.datatype) for t in kernel.reads} & _PRODUCT_TYPES
    weights = [t for t in kernel.constants if _is_matrix(t.dims)]
    if weights:
        largest = max(weights, key=lambda tensor: math.prod(tensor.dims or ()))
        stored = _name(largest.datatype)
        if stored in reads or stored == "fp32":
            return stored
        if stored in _FLOAT_TYPES:
            return UNKNOWN
    return next(iter(reads)) if len(reads) == 1 else UNKNOWN


def types_of(kernel: Kernel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What it reads and what it writes: each type once, in order of their names."""
    reads, writes = (
        tuple(sorted({_name(tensor.datatype) for tensor in side}))
        for side in (kernel.reads, kernel.writes)
    )
    return reads, writes


def bytes_written(kernel: Kernel) -> int | None:
    """The size of what it writes; None where an axis is dynamic, or a shape or type is not told."""
    total = 0
    for tensor in kernel.writes:
        bits = _BITS.get(_name(tensor.datatype))
        if bits is None or tensor.dims is None or min(tensor.dims, default=0) < 0:
            return None
        total += math.prod(tensor.dims) * bits // 8
    return total


def _kind(kernel: Kernel) -> str:
    if kernel.type in _ENTRIES:
        return _ENTRIES[kernel.type]
    if is_gemm(kernel):
        return GEMM
    if is_fused_attention(kernel):
        return ATTENTION
    operations = set(operations_of(kernel.name))
    if "Mea" in operations or {"Sqr", "Div"} <= operations:
        return NORM
    if "Exp" in operations and operations & {"Max", "Sum"}:
        return SOFTMAX
    if kernel.type in _SIZES:
        return _SIZES[kernel.type]
    if not operations or _CUT in operations:
        return OTHER
    if operations <= _MOVES:
        return LAYOUT
    return CAST if operations <= _MOVES | {"Cas"} else POINTWISE


def _masks(kernels: Sequence[Kernel], kinds: Sequence[str]) -> list[int]:
    """The kernels whose results an attention reads, and that stand on no other kind of work."""
    read_by = readers(kernels)
    written = {tensor.name for kernel in kernels for tensor in kernel.writes}
    derived = [
        kind in (GEMM, NORM, ATTENTION, SOFTMAX)
        or any(t.datatype in FLOATING and t.name not in written for t in kernel.reads)
        for kind, kernel in zip(kinds, kernels, strict=True)
    ]
    for index, later in enumerate(read_by):
        for reader in later:
            derived[reader] = derived[reader] or derived[index]
    feeds = [False] * len(kernels)
    for index in reversed(range(len(kernels))):
        feeds[index] = any(
            kinds[reader] in (ATTENTION, SOFTMAX) or (feeds[reader] and not derived[reader])
            for reader in read_by[index]
        )
    working = (POINTWISE, LAYOUT, CAST, OTHER)
    return [i for i, kind in enumerate(kinds) if feeds[i] and not derived[i] and kind in working]


def _name(datatype: str) -> str:
    return NAMES.get(datatype, datatype.lower() or UNKNOWN)


def _is_matrix(dims: tuple[int, ...] | None) -> bool:
    """A bias has one axis that is not 1, and the scalars of a product none."""
    return dims is not None and sum(size != 1 for size in dims) > 1
