"""Which widths to pad batches to, so that a file of texts costs least.

Texts of length l run in the narrowest width that holds them. With the widths w₁ < … < wₖ the cost
is the sum over texts of what a row of their width costs in a full batch, and for each width half a
launch more in every window, for the batch that is not full. A sum over consecutive texts splits at
any width, so dynamic programming over the candidates finds the best k widths: best(k, j) = the
smallest best(k-1, i) + cost of the texts of (i, j] at width j.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfc.runtime.batching import Limits
from tfc.steps.traffic.costs import Curve

# Matrix products in half precision want sizes that are multiples of 8.
STEP = 8
MOST_BUCKETS = 8
# Another bucket has to save this share of the cost: it is one more set of kernels to build, to keep
# and to load.
SAVES = 0.03


@dataclass(frozen=True)
class Widths:
    """Widths in ascending order, the last one the longest that is taken, and their cost.

    `saved` is the share of the cost that the last added one saves; 0 for a single one.
    """

    widths: tuple[int, ...]
    cost: float
    saved: float


def chosen_widths(
    counts: Mapping[int, int],
    longest: int,
    curve: Curve,
    limits: Limits,
    *,
    windows: float,
    buckets: int | None = None,
) -> Widths:
    """The best widths: as many as `buckets`, or so many that another saves less than `SAVES`.

    Args:
        counts: length → texts.
        longest: the longest text that is to be taken, whether there is one in `counts` or not.
        curve: what a batch costs.
        limits: how large a batch may be.
        windows: how many windows of texts there are: each has a batch that is not full.
        buckets: how many widths; there may be fewer candidates.
    """
    candidates, best = _best_of_each_number(counts, longest, curve, limits, windows)
    found = [
        Widths(_traced(best, candidates, k), float(best[k][0][-1]), 0.0) for k in range(len(best))
    ]
    if buckets is not None:
        place = min(buckets, len(found)) - 1
        return _with_saving(found, place)
    place = 0
    while place + 1 < len(found) and _with_saving(found, place + 1).saved >= SAVES:
        place += 1
    return _with_saving(found, place)


def _with_saving(found: list[Widths], place: int) -> Widths:
    own = found[place]
    before = found[place - 1].cost if place else own.cost
    return Widths(own.widths, own.cost, (before - own.cost) / before if before else 0.0)


_Row = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]  # costs, and where the one before ends


def _best_of_each_number(
    counts: Mapping[int, int], longest: int, curve: Curve, limits: Limits, windows: float
) -> tuple[list[int], list[_Row]]:
    candidates = sorted({min(longest, -(-length // STEP) * STEP) for length in counts} | {longest})
    held = np.searchsorted(candidates, sorted(counts))
    texts = np.zeros(len(candidates))
    np.add.at(texts, held, [counts[length] for length in sorted(counts)])
    upto = np.concatenate([[0.0], np.cumsum(texts)])
    each = np.array([curve.batch(r, w) / r for w in candidates for r in [limits.most_rows(w)]])
    partial = curve.launch * windows / 2

    def cost(begin: npt.NDArray[np.int64] | int, end: int) -> npt.NDArray[np.float64]:
        """Of the texts of the candidates begin … end, all at the width of `end`."""
        inside = upto[end + 1] - upto[begin]
        return np.asarray(inside * each[end] + partial * (inside > 0))

    size = len(candidates)
    first = np.array([float(cost(0, end)) for end in range(size)])
    rows: list[_Row] = [(first, np.full(size, -1))]
    for _ in range(min(MOST_BUCKETS, size) - 1):
        before = rows[-1][0]
        costs, ends = np.full(size, np.inf), np.full(size, -1)
        for end in range(1, size):
            starts = np.arange(1, end + 1)
            total = before[:end] + cost(starts, end)
            ends[end] = int(np.argmin(total))
            costs[end] = total[ends[end]]
        rows.append((costs, ends))
    return candidates, rows


def _traced(best: list[_Row], candidates: list[int], number: int) -> tuple[int, ...]:
    """The widths of the best cost with `number` + 1 of them."""
    end, widths = len(candidates) - 1, []
    for row in range(number, -1, -1):
        widths.append(candidates[end])
        end = int(best[row][1][end])
    return tuple(reversed(widths))
