"""Which sites to quantise: as much arithmetic as an accuracy budget allows.

Leaving a site out buys accuracy and costs speed. What it buys is measured, one site at a time:
the error of the model's output when that site alone is quantised. Errors of sites add up about as
independent ones do, in squares, so sites are left out in the order of error² per operation.

1. Everything is quantised; if the budget holds, that is all.
2. The first k sites of the order are left out: k = 1, 2, 4, … until the budget holds, then the
   smallest k that does, by bisection.
3. Each of those is given back, the one with most operations first, where the budget still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tfc.optimizers.precision.int8.sites import Site

# Sites that are tried once more in step 3; each trial runs all rows.
_GIVEN_BACK = 8

Holds = Callable[[Sequence[Site]], bool]


@dataclass(frozen=True)
class Found:
    """What is quantised and what is left out, in the graph's order, after so many trials."""

    quantized: tuple[Site, ...]
    left: tuple[Site, ...]
    trials: int


def order_of(
    sites: Sequence[Site], errors: Mapping[str, float], flops: Mapping[str, int]
) -> list[Site]:
    """The sites, those that are to be left out first at the head."""
    return sorted(sites, key=lambda site: -(errors[site.node] ** 2) / max(1, flops[site.node]))


def search(
    sites: Sequence[Site], order: Sequence[Site], flops: Mapping[str, int], holds: Holds
) -> Found | None:
    """What to quantise; None where the budget does not hold with any site.

    Args:
        sites: in the graph's order.
        order: as `order_of` gives it.
        flops: the operations of each site by the name of its node.
        holds: whether the budget holds with these sites quantised.
    """
    trials = 0
    known: dict[frozenset[str], bool] = {}

    def without(left: Sequence[Site]) -> bool:
        nonlocal trials
        names = frozenset(site.node for site in left)
        if names not in known:
            trials += 1
            known[names] = holds([site for site in sites if site.node not in names])
        return known[names]

    count = _least(len(order), lambda k: without(order[:k]))
    if count == len(order):
        return None
    left = list(order[:count])
    for site in sorted(left, key=lambda site: -flops[site.node])[:_GIVEN_BACK]:
        fewer = [other for other in left if other is not site]
        if count > 1 and without(fewer):
            left = fewer
    names = {site.node for site in left}
    return Found(
        tuple(site for site in sites if site.node not in names),
        tuple(site for site in sites if site.node in names),
        trials,
    )


def _least(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest number below `most` for which it holds, if it holds for all above; or `most`."""
    if holds(0):
        return 0
    low, high = 0, 1
    while high < most and not holds(high):
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
