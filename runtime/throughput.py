"""Measure several callables on the same inputs in the same run, in turn.

Machines drift: other processes come and go, clocks change. So the contestants take turns, block
by block, and ratios are taken pair by pair, block against the block beside it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfc.runtime.batching import padding_waste
from tfc.runtime.padding import Feed

Call = Callable[[Feed], object]

# Blocks per contestant: enough for a median that one disturbed block does not move.
BLOCKS = 5
# The first calls of a block pay for cold caches and for the threads of the contestant before.
_UNCOUNTED = 1
# Compilers and allocators settle in a few laps. A lap that took as long as the one before it,
# within this share, is steady; after so many laps a machine is too restless for it to come.
_STEADY = 0.1
_MOST_WARM_UP = 12
_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Workload:
    """Batches that run one after another: a lap.

    Attributes:
        name: what a table calls it: `8×64`, or a data file.
        feeds: the batches.
        rows: rows in all of them.
        tokens: their tokens without padding.
        padded: their tokens with padding.
        flops: matrix arithmetic that the model does for the tokens without padding; None where
            that is not told.
        lengths: how many rows have so many tokens, by length.
    """

    name: str
    feeds: tuple[Feed, ...]
    rows: int
    tokens: int
    padded: int
    flops: int | None = None
    lengths: Mapping[int, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What it is, as it stands in the report."""
        return {
            "workload": self.name,
            "batches": len(self.feeds),
            "rows": self.rows,
            "tokens": self.tokens,
            "padding": padding_waste(self.tokens, self.padded),
            "flops": self.flops,
            "lengths": {str(length): rows for length, rows in sorted(self.lengths.items())},
        }


@dataclass(frozen=True)
class TokenTimes:
    """What a call that writes gives back: seconds from its begin to each token, in their order."""

    seconds: tuple[float, ...]

    @property
    def gaps(self) -> list[float]:
        """Seconds from each token to the next."""
        return [after - before for before, after in itertools.pairwise(self.seconds)]


@dataclass(frozen=True)
class Latencies:
    """Percentiles in seconds."""

    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Latencies:
        """Of one at least."""
        return cls(*(float(p) for p in np.percentile(times, _PERCENTILES)))


@dataclass(frozen=True)
class Timing:
    """What one contestant did with one workload.

    Latencies are in seconds per batch, over all counted calls. Rates are medians over the blocks,
    of all callers together; tokens are counted without padding. `spread` is (fastest block -
    slowest block) / median. `steady` says whether the warm-up, of `warm_up` laps, ended with two
    laps that took as long as each other. `first_token` is the latency of a batch's first new token
    where the model writes, and `per_token` that of each further one.
    """

    calls: int
    warm_up: int
    steady: bool
    p50: float
    p90: float
    p95: float
    p99: float
    sequences_per_second: float
    tokens_per_second: float
    flops_per_second: float | None
    spread: float
    first_token: Latencies | None = None
    per_token: Latencies | None = None

    def as_json(self) -> dict[str, Any]:
        """The numbers as they stand in the report."""
        found = dict(vars(self))
        for name in ("first_token", "per_token"):
            latencies = found.pop(name)
            if latencies is not None:
                found[name] = dict(vars(latencies))
        return found


@dataclass(frozen=True)
class Cell:
    """All contestants on one workload with so many callers at once.

    `ratios[name]` is throughput against the baseline's.
    """

    workload: Workload
    callers: int
    timings: Mapping[str, Timing]
    ratios: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """The cell as it stands in the report."""
        return {
            **self.workload.as_json(),
            "callers": self.callers,
            "timings": {name: timing.as_json() for name, timing in self.timings.items()},
            "ratios": dict(self.ratios),
        }


@dataclass(frozen=True)
class _Timed:
    """How long a call took, and when its tokens came, if it writes."""

    seconds: float
    tokens: TokenTimes | None


@dataclass(frozen=True)
class _Block:
    """The calls of a contestant's turn, and its laps per second, of all callers together."""

    calls: list[_Timed]
    rate: float


def measure(
    contestants: Mapping[str, Call],
    workload: Workload,
    *,
    seconds: float,
    baseline: str | None,
    callers: int = 1,
) -> Cell:
    """Time every contestant on one workload.

    Args:
        contestants: name → a call that runs one batch; one that writes gives `TokenTimes`.
        workload: the batches.
        seconds: how long each contestant may take in all; each runs at least one lap a block.
        baseline: the contestant that the ratios are taken against, or None for no ratios.
        callers: how many threads call a contestant at once, each with every batch.
    """
    warm = {name: _warm_up(run, workload) for name, run in contestants.items()}
    blocks: dict[str, list[_Block]] = {name: [] for name in contestants}
    for _ in range(BLOCKS):
        for name, run in contestants.items():
            blocks[name].append(_block(run, workload, seconds / BLOCKS, callers))
    timings = {name: _timing(own, warm[name], workload) for name, own in blocks.items()}
    ratios = {}
    if baseline is not None:
        for name in contestants:
            pairs = zip(blocks[baseline], blocks[name], strict=True)
            ratios[name] = float(np.median([own.rate / base.rate for base, own in pairs]))
    return Cell(workload, callers, timings, ratios)


def _warm_up(run: Call, workload: Workload) -> tuple[int, bool]:
    """Run laps until two take equally long; how many there were, and whether they did."""
    earlier = _seconds(_lap(run, workload))
    for laps in range(2, _MOST_WARM_UP + 1):
        latest = _seconds(_lap(run, workload))
        if abs(latest - earlier) <= _STEADY * earlier:
            return laps, True
        earlier = latest
    return _MOST_WARM_UP, False


def _seconds(calls: Sequence[_Timed]) -> float:
    return sum(call.seconds for call in calls)


def _lap(run: Call, workload: Workload) -> list[_Timed]:
    """The call of each batch."""
    calls = []
    for feed in workload.feeds:
        begun = time.perf_counter()
        found = run(feed)
        seconds = time.perf_counter() - begun
        calls.append(_Timed(seconds, found if isinstance(found, TokenTimes) else None))
    return calls


def _block(run: Call, workload: Workload, seconds: float, callers: int) -> _Block:
    for _ in range(_UNCOUNTED):
        run(workload.feeds[0])
    if callers == 1:
        calls, laps, wall = _turn(run, workload, seconds)
        return _Block(calls, laps / wall)
    together = threading.Barrier(callers)

    def one_of_several() -> tuple[list[_Timed], int, float]:
        together.wait()
        return _turn(run, workload, seconds)

    with ThreadPoolExecutor(callers, "tfc-caller") as pool:
        turns = [turn.result() for turn in [pool.submit(one_of_several) for _ in range(callers)]]
    calls = [call for turn in turns for call in turn[0]]
    return _Block(calls, sum(laps for _, laps, _ in turns) / max(wall for _, _, wall in turns))


def _turn(run: Call, workload: Workload, seconds: float) -> tuple[list[_Timed], int, float]:
    """The calls of whole laps, how many laps, and the seconds that they took in all."""
    calls: list[_Timed] = []
    laps = 0
    begun = time.perf_counter()
    while not laps or time.perf_counter() - begun < seconds:
        calls += _lap(run, workload)
        laps += 1
    return calls, laps, time.perf_counter() - begun


def _timing(blocks: Sequence[_Block], warm: tuple[int, bool], workload: Workload) -> Timing:
    calls = [call for block in blocks for call in block.calls]
    written = [call.tokens for call in calls if call.tokens is not None]
    gaps = [gap for one in written for gap in one.gaps]
    rates = np.array([block.rate for block in blocks])
    median = float(np.median(rates))
    whole = Latencies.of([call.seconds for call in calls])
    return Timing(
        calls=len(calls),
        warm_up=warm[0],
        steady=warm[1],
        **vars(whole),
        sequences_per_second=median * workload.rows,
        tokens_per_second=median * workload.tokens,
        flops_per_second=None if workload.flops is None else median * workload.flops,
        spread=float((rates.max() - rates.min()) / median),
        first_token=Latencies.of([one.seconds[0] for one in written]) if written else None,
        per_token=Latencies.of(gaps) if gaps else None,
    )
