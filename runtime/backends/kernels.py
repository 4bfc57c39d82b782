"""What TensorRT compiled: an audit of how well the kernels of an engine are fused.

TensorRT names a kernel that its compiler generated after the operations in it, in order:
``__myl_AddAddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd_myl0_18`` is a bias add, a residual add
and a LayerNormalization in one. Recent versions cut an operation's name to four letters, older
ones to three; the rules here compare three.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tfc.runtime.backends.base import Kernel

# Entries of a plan that launch no kernel of the model: they size buffers, move scalars, and
# order streams.
BOOKKEEPING = frozenset({"shape_call", "copy", "signal", "wait"})
FLOATING = frozenset({"Half", "Float", "BFloat16", "FP8", "Int8"})  # Int8: quantised activations

_GENERATED = re.compile(r"^__my[el]_(?:bb\d+_\d+_)?(?P<operations>[A-Za-z0-9]+?)(?:_my[el]\d+.*)?$")
_OPERATION = re.compile(r"[A-Z][a-z0-9]*")
# A kernel of the compiler's own, not a GEMM of the model whose ONNX name happens to hold "mha".
_ATTENTION = re.compile(r"(?:^|_|\d)(?:gem[mv]_mha|fused_mha|fmha)(?:_|\d|$)", re.IGNORECASE)

_LAYERNORM = ("Mea", "Sub", "Mul", "Mea", "Add", "Sqr", "Div")
_LAYERNORM_STATISTICS = ("Mea", "Sub", "Mul", "Mea")
_RMSNORM = ("Mul", "Mea", "Add", "Sqr", "Div")


@dataclass(frozen=True)
class Audit:
    """How well the kernels of an engine are fused.

    A residual add costs nothing extra in two places: in the kernel of the normalization after it
    (`fused_add_layernorm`, `fused_add_rmsnorm`; post-norm models), and in the GEMM before it
    (`gemm_residual_add`; pre-norm models, where the sum itself is needed again).

    Attributes:
        kernels: entries of the plan that compute, without `bookkeeping`.
        bookkeeping: the other entries: shape calls, copies of scalars, signals and waits.
        fused_attention: whole attentions in one kernel.
        fused_add_layernorm: a residual add and a whole LayerNormalization in one kernel.
        split_add_layernorm: a residual add with the statistics of its LayerNormalization in one
            kernel, and the scaling in the kernel of what comes after (seen where a pooling
            follows: the same number of kernels, one tensor more between them).
        layernorm: a whole LayerNormalization in one kernel, without a residual add.
        embedding_norm: an embedding lookup, its adds and its normalization in one kernel.
        fused_add_rmsnorm: a residual add and a whole RMSNormalization in one kernel.
        rmsnorm: a whole RMSNormalization in one kernel, without a residual add.
        gemm: matrix products, alone or with a bias, an activation or an add in them.
        gemm_residual_add: those among `gemm` that hold a residual add.
        datatypes: data type → kernels that read or write it.
    """

    kernels: int
    bookkeeping: int
    fused_attention: int
    fused_add_layernorm: int
    split_add_layernorm: int
    layernorm: int
    embedding_norm: int
    fused_add_rmsnorm: int
    rmsnorm: int
    gemm: int
    gemm_residual_add: int
    datatypes: Mapping[str, int]


def least_fused(profiles: Sequence[tuple[Kernel, ...]]) -> tuple[Kernel, ...]:
    """The kernels of the profile with the fewest fused ones; of equal ones, those of the first."""

    def fused(kernels: tuple[Kernel, ...]) -> tuple[int, int]:
        audit = audit_of_kernels(kernels)
        norms = audit.fused_add_layernorm + audit.split_add_layernorm + audit.gemm_residual_add
        return audit.fused_attention, norms + audit.fused_add_rmsnorm

    return min(profiles, key=fused, default=())


def audit_of_kernels(kernels: Sequence[Kernel]) -> Audit:
    """Count the kernels by what is fused in them."""
    working = [kernel for kernel in kernels if kernel.type not in BOOKKEEPING]
    kinds = Counter(kind for kernel in working for kind in _kinds(kernel))
    datatypes = Counter(name for kernel in working for name in kernel.datatypes)
    return Audit(
        kernels=len(working),
        bookkeeping=len(kernels) - len(working),
        fused_attention=kinds["fused_attention"],
        fused_add_layernorm=kinds["fused_add_layernorm"],
        split_add_layernorm=kinds["split_add_layernorm"],
        layernorm=kinds["layernorm"],
        embedding_norm=kinds["embedding_norm"],
        fused_add_rmsnorm=kinds["fused_add_rmsnorm"],
        rmsnorm=kinds["rmsnorm"],
        gemm=kinds["gemm"],
        gemm_residual_add=kinds["gemm_residual_add"],
        datatypes=dict(sorted(datatypes.items())),
    )


def is_fused_attention(kernel: Kernel) -> bool:
    """Whether a whole attention is in this kernel."""
    return kernel.type != "gemm" and bool(_ATTENTION.search(kernel.name))


def is_gemm(kernel: Kernel) -> bool:
    """Whether a matrix product is in this kernel, alone or with what was fused to it."""
    return kernel.type == "gemm" or (
        not is_fused_attention(kernel) and "Fc" in operations_of(kernel.name)
    )


def _kinds(kernel: Kernel) -> Iterable[str]:
    if kernel.type == "gemm":
        return ["gemm"]
    if is_fused_attention(kernel):
        return ["fused_attention"]
    operations = operations_of(kernel.name)
    if "Fc" in operations:
        residual = "Add" in operations and _activations(kernel) > 1
        return ["gemm", "gemm_residual_add"] if residual else ["gemm"]
    return _norm_kinds(kernel, operations)


def _norm_kinds(kernel: Kernel, operations: tuple[str, ...]) -> Iterable[str]:
    # A LayerNormalization holds the pattern of an RMSNormalization: it is looked for first.
    for norm, pattern in (("layernorm", _LAYERNORM), ("rmsnorm", _RMSNORM)):
        start = _find(pattern, operations)
        if start is None:
            continue
        before = operations[:start]
        if "Gat" in before:
            return ["embedding_norm"]
        residual = "Add" in before and _activations(kernel) > 1
        return [f"fused_add_{norm}"] if residual else [norm]
    return _split_norm_kinds(kernel, operations)


def _split_norm_kinds(kernel: Kernel, operations: tuple[str, ...]) -> Iterable[str]:
    start = _find(_LAYERNORM_STATISTICS, operations)
    if start is None or operations[-1] != _LAYERNORM_STATISTICS[-1]:
        return []
    before = operations[:start]
    residual = "Add" in before and "Gat" not in before and _activations(kernel) > 1
    return ["split_add_layernorm"] if residual else []


def _activations(kernel: Kernel) -> int:
    """How many activations it reads: two of them tell a residual add from the add of a bias."""
    return sum(tensor.datatype in FLOATING for tensor in kernel.reads)


def operations_of(name: str) -> tuple[str, ...]:
    """The operations in a generated kernel, three letters each: ``Add``, ``Cas``, ``Mea``, …"""
    match = _GENERATED.match(name)
    if match is None:
        return ()
    return tuple(word[:3] for word in _OPERATION.findall(match["operations"]))


def _find(pattern: tuple[str, ...], operations: tuple[str, ...]) -> int | None:
    """Where `pattern` begins in `operations`, casts between its members ignored."""
    kept = [(index, word) for index, word in enumerate(operations) if word != "Cas"]
    words = tuple(word for _, word in kept)
    for position in range(len(words) - len(pattern) + 1):
        if words[position : position + len(pattern)] == pattern:
            return kept[position][0]
    return None
