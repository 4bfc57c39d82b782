"""Measure several callables on the same inputs in the same run, in turn.

Machines drift: other processes come and go, clocks change. So the contestants take turns, block
by block, and ratios are taken pair by pair, block against the block beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Blocks per contestant: enough for a median that one disturbed block does not move.
BLOCKS = 5
# The first calls of a block pay for cold caches and for the threads of the contestant before.
_UNCOUNTED = 1


@dataclass(frozen=True)
class Timing:
    """What one contestant did at one shape.

    Latencies are in seconds per batch, over all counted calls; `sequences_per_second` is the
    median over the blocks; `spread` is (slowest block - fastest block) / median.
    """

    calls: int
    p50: float
    p90: float
    p99: float
    sequences_per_second: float
    tokens_per_second: float
    spread: float

    def as_json(self) -> dict[str, float]:
        """The numbers as they stand in the report."""
        return dict(vars(self))


@dataclass(frozen=True)
class Cell:
    """All contestants at one shape; `ratios[name]` is throughput against the baseline's."""

    batch: int
    sequence: int
    timings: Mapping[str, Timing]
    ratios: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """The cell as it stands in the report."""
        return {
            "batch": self.batch,
            "sequence": self.sequence,
            "timings": {name: timing.as_json() for name, timing in self.timings.items()},
            "ratios": dict(self.ratios),
        }


def measure(
    contestants: Mapping[str, Callable[[], object]],
    *,
    batch: int,
    sequence: int,
    seconds: float,
    baseline: str | None,
) -> Cell:
    """Time every contestant at one shape.

    Args:
        contestants: name → a call that runs one batch.
        batch: rows in the batch.
        sequence: tokens in each row.
        seconds: how long each contestant may take in all; each runs at least one call a block.
        baseline: the contestant that the ratios are taken against, or None for no ratios.
    """
    for run in contestants.values():
        run()
    blocks: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for _ in range(BLOCKS):
        for name, run in contestants.items():
            blocks[name].append(_block(run, seconds / BLOCKS))
    timings = {name: _timing(times, batch, sequence) for name, times in blocks.items()}
    ratios = {}
    if baseline is not None:
        for name in contestants:
            pairs = zip(blocks[baseline], blocks[name], strict=True)
            ratios[name] = float(np.median([np.mean(base) / np.mean(own) for base, own in pairs]))
    return Cell(batch, sequence, timings, ratios)


def _block(run: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(_UNCOUNTED):
        run()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while not times or time.perf_counter() < deadline:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return times


def _timing(blocks: Sequence[Sequence[float]], batch: int, sequence: int) -> Timing:
    times = np.concatenate([np.asarray(block) for block in blocks])
    rates = np.array([batch / np.mean(block) for block in blocks])
    median = float(np.median(rates))
    p50, p90, p99 = (float(p) for p in np.percentile(times, (50, 90, 99)))
    return Timing(
        calls=len(times),
        p50=p50,
        p90=p90,
        p99=p99,
        sequences_per_second=median,
        tokens_per_second=median * sequence,
        spread=float((rates.max() - rates.min()) / median),
    )
