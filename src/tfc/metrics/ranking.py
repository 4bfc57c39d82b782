"""How well scores rank what belongs to one query: nDCG of the first ten."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from tfc.metrics.base import Indices

NDCG = "nDCG@10"
_DEPTH = 10  # what is reported of retrieval benchmarks, and about what a reader looks at
_FEWEST = 2  # one row alone is always ranked right


class Ranking:
    """Rows of several queries, each with what it is worth and the score that it got.

    A query counts if its rows are not all worth the same. Its gain is its label itself
    (Järvelin and Kekäläinen, 2002), as scikit-learn's `ndcg_score` has it.

    Attributes:
        units: the rows of each query.
    """

    def __init__(
        self,
        golds: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64],
        queries: Sequence[Hashable],
    ) -> None:
        rows: dict[Hashable, list[int]] = {}
        for place, query in enumerate(queries):
            rows.setdefault(query, []).append(place)
        self.units: list[Indices] = [np.asarray(places) for places in rows.values()]
        # A row stands for its part of its query: the sum over whole queries is that of queries.
        self._share = np.zeros(len(golds))
        self._ndcg = np.zeros(len(golds))
        for places in self.units:
            if len(places) >= _FEWEST and np.ptp(golds[places]) > 0:
                self._share[places] = 1 / len(places)
                self._ndcg[places] = _ndcg(golds[places], scores[places])

    @property
    def counts(self) -> bool:
        """Whether any query can be ranked right or wrong."""
        return bool(self._share.any())

    def ndcg(self, rows: Indices) -> float:
        """The mean over the queries whose rows these are; NaN if none of them counts."""
        shares = self._share[rows]
        total = float(shares.sum())
        return float(shares @ self._ndcg[rows]) / total if total else float("nan")


def _ndcg(golds: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> float:
    from sklearn.metrics import ndcg_score

    return float(ndcg_score(golds[None], scores[None], k=_DEPTH))
