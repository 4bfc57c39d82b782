"""The share of a model's matrix arithmetic that runs in each precision, and whether it is enough.

It is told twice: by the types in the graph, and by the types of the compiled kernels that hold the
products. A product whose kernel cannot be found, or whose kernel does not tell its type, counts as
`unknown`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tfc.errors import ContractNotReached
from tfc.kernel_report import KernelRecord
from tfc.steps.flops import UNKNOWN, Product

# An engine of this precision computes nothing wider on purpose, but for what overflows and what
# works on one vector per text (a classifier's head).
_HALF = frozenset({"fp16", "bf16"})
_QUANTIZED = ("int8", "fp8")
# A graph whose token tensors lie flat, [tokens, hidden], cannot be told from one with heads only;
# where the heads outweigh the rest, it is not the model that its name promises.
_LEAST_SHARE = 0.5
# From the type that costs most to the one that costs least.
_WIDTHS = ("fp32", "bf16", "fp16", "fp8", "int8")
_NAMED = 3  # nodes in an error message


@dataclass(frozen=True)
class Judged:
    """A product, what it computes in as compiled, and the names of the kernels that hold it."""

    product: Product
    compiled: str
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """One precision's part: operations at the profile's best sizes, and how many products."""

    flops: int
    share: float
    gemms: int
    attentions: int


@dataclass(frozen=True)
class PrecisionAudit:
    """Precision → its share, the largest first, as compiled and as the graph says.

    Attributes:
        compiled: by the kernels that hold the products.
        graph: by the types in the graph.
        narrowed: how many products the graph has in fp32 and the kernels in fewer bits. TensorRT
            compiles an fp32 product between casts from and to fp16 in fp16, weights included.
        unsized: how many products have no known size, and no part in the shares.
    """

    compiled: dict[str, Share]
    graph: dict[str, Share]
    narrowed: int
    unsized: int

    def as_json(self) -> dict[str, Any]:
        """The audit as it stands in the manifest."""
        return dataclasses.asdict(self)


def judge_products(
    products: Iterable[Product], records: Sequence[KernelRecord]
) -> tuple[Judged, ...]:
    """What each product of a graph computes in, by the kernels that were compiled of that graph."""
    holding: dict[str, list[KernelRecord]] = {}
    for record in records:
        if record.product:
            for node in record.nodes:
                holding.setdefault(node, []).append(record)
    return tuple(_judged(product, holding.get(product.node, [])) for product in products)


def precision_audit(judged: Sequence[Judged]) -> PrecisionAudit:
    """Add up the operations in each precision, as compiled and as the graph says."""
    return PrecisionAudit(
        compiled=_shares([(one.compiled, one.product) for one in judged]),
        graph=_shares([(one.product.precision, one.product) for one in judged]),
        narrowed=len(narrowed(judged)),
        unsized=sum(one.product.flops is None for one in judged),
    )


def narrowed(judged: Sequence[Judged]) -> list[Judged]:
    """The products that the graph has in fp32 and the kernels in fewer bits."""
    return [
        one
        for one in judged
        if one.product.precision == "fp32" and one.compiled not in ("fp32", UNKNOWN)
    ]


def check_precision(
    wanted: str, judged: Sequence[Judged], kept: Collection[str], where: str
) -> None:
    """Refuse an engine whose name promises a precision that its products do not run in.

    A product whose type is unknown is neither held against the engine nor for it.

    Args:
        wanted: the engine's precision; `fp32` promises nothing.
        judged: its products.
        kept: the names of nodes that were left in fp32 because half precision overflows.
        where: what the error is about.

    Raises:
        ContractNotReached: products on token tensors run in fp32, or more than half of the
            arithmetic does; or in int8 or fp8, a product that the graph has quantised does not,
            or the graph has quantised none.
    """
    if wanted in _QUANTIZED:
        _check_quantized(wanted, judged, where)
    if wanted not in _HALF:
        return
    due = [one for one in judged if one.product.node not in kept and one.compiled != UNKNOWN]
    wide = [one for one in due if one.compiled == "fp32"]
    wrong = [one for one in wide if one.product.of_tokens or one.product.precision != "fp32"]
    if not wrong and _flops(wide) > (1 - _LEAST_SHARE) * _flops(due):
        wrong = wide
    if not wrong:
        return
    part = percent(_flops(wrong) / max(1, _flops(judged)))
    raise ContractNotReached(
        f"the engine is called {wanted}, but {len(wrong)} of its {len(judged)} products, {part} of "
        f"the FLOPs, are compiled in fp32: {_named(wrong)}",
        where=where,
        fix=f"Look for the Cast before these nodes, or build in fp32: leave --{wanted} out",
    )


def _check_quantized(wanted: str, judged: Sequence[Judged], where: str) -> None:
    quantized = [one for one in judged if one.product.precision == wanted]
    if not quantized:
        raise ContractNotReached(
            f"the engine is called {wanted}, but the graph has none of its {len(judged)} products "
            f"in {wanted}",
            where=where,
            fix="Build a graph that another tool has quantised as what it is: --int8 or --fp8",
        )
    wrong = [one for one in quantized if one.compiled not in (wanted, UNKNOWN)]
    if not wrong:
        return
    raise ContractNotReached(
        f"{len(wrong)} of the {len(quantized)} products that the graph has in {wanted} are "
        f"compiled in another precision: {_named(wrong)}",
        where=where,
        fix="Look for what stands between DequantizeLinear and these nodes, or build with --fp16",
    )


def percent(share: float) -> str:
    """`100 %`, `99.9 %`, `< 0.1 %`: rounded down, so that 100 % is all of it."""
    tenths = int(share * 1000)
    if tenths == 0 and share > 0:
        return "< 0.1 %"
    return f"{tenths // 10} %" if tenths % 10 == 0 else f"{tenths / 10:.1f} %"


def _judged(product: Product, holding: Sequence[KernelRecord]) -> Judged:
    """A fused kernel says it for an attention, and a GEMM for a product, if both name the node."""
    first = [r for r in holding if (r.kind == "attention") == product.attention]
    holders = first or holding
    types = {record.product for record in holders}
    known = [name for name in _WIDTHS if name in types]
    compiled = known[0] if known and UNKNOWN not in types else UNKNOWN
    return Judged(product, compiled, tuple(record.name for record in holders))


def _shares(found: Sequence[tuple[str, Product]]) -> dict[str, Share]:
    total = sum(product.flops or 0 for _, product in found)
    shares = {}
    for precision in dict.fromkeys(precision for precision, _ in found):
        own = [product for name, product in found if name == precision]
        flops = sum(product.flops or 0 for product in own)
        attentions = sum(product.attention for product in own)
        shares[precision] = Share(
            flops, flops / total if total else 0.0, len(own) - attentions, attentions
        )
    return dict(sorted(shares.items(), key=lambda item: -item[1].flops))


def _flops(judged: Iterable[Judged]) -> int:
    return sum(one.product.flops or 0 for one in judged)


def _named(wrong: Sequence[Judged]) -> str:
    names = [
        f"{one.product.node}{f' ({one.product.module})' if one.product.module else ''} in "
        f"{' and '.join(one.kernels)}"
        for one in wrong[:_NAMED]
    ]
    more = len(wrong) - len(names)
    return ", ".join(names) + (f", and {more} more" if more else "")
