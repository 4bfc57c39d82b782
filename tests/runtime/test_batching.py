"""Batches: nothing lost, order kept by index, budgets respected, little padding."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from tfc.errors import UsageError
from tfc.runtime.batching import Batch, Limits, batches, padding_waste, windows


def random_lengths(rng: random.Random) -> list[int]:
    """Lengths as texts have them: most short, a few long; sometimes all equal."""
    count = rng.randrange(1, 200)
    if rng.random() < 0.1:
        return [rng.randrange(1, 50)] * count
    return [min(512, 2 + int(rng.expovariate(1 / 60))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(60))
def test_any_lengths_and_limits(seed: int) -> None:
    rng = random.Random(seed)
    lengths = random_lengths(rng)
    limits = Limits(rng.randrange(1, 40), rng.choice([None, rng.randrange(1, 4000)]))

    plan = batches(lengths, limits)

    assert sorted(i for batch in plan for i in batch.indices) == list(range(len(lengths)))
    for batch in plan:
        rows = len(batch.indices)
        assert batch.width == max(lengths[i] for i in batch.indices)
        assert rows <= limits.rows
        assert rows == 1 or limits.tokens is None or rows * batch.width <= limits.tokens
    flat = [lengths[i] for batch in plan for i in batch.indices]
    assert flat == sorted(lengths, reverse=True)
    for batch, following in itertools.pairwise(plan):
        full = not limits.take(len(batch.indices) + 1, batch.width)
        assert full, "a batch was closed although the next text would have fitted"
        assert following.width <= batch.width


def test_batches_by_hand() -> None:
    plan = batches([3, 9, 3, 5, 1], Limits(rows=2, tokens=10))
    assert plan == [Batch((1,), 9), Batch((3, 0), 5), Batch((2, 4), 3)]


def test_a_text_beyond_the_budget_runs_alone() -> None:
    assert batches([100, 1], Limits(8, tokens=10)) == [Batch((0,), 100), Batch((1,), 1)]


def test_texts_of_equal_length_stay_in_order() -> None:
    assert batches([4] * 5, Limits(2)) == [Batch((0, 1), 4), Batch((2, 3), 4), Batch((4,), 4)]


def test_nothing_gives_no_batches() -> None:
    assert batches([], Limits(8)) == []


def test_sorting_wastes_far_less_than_the_order_of_the_input() -> None:
    rng = random.Random(0)
    lengths = [min(256, 2 + int(rng.expovariate(1 / 60))) for _ in range(4096)]
    ran = sum(batch.width * len(batch.indices) for batch in batches(lengths, Limits(8)))
    unsorted = sum(8 * max(lengths[i : i + 8]) for i in range(0, len(lengths), 8))
    assert padding_waste(sum(lengths), unsorted) > 0.5
    assert padding_waste(sum(lengths), ran) < 0.01


@pytest.mark.parametrize("values", [(0, None), (-1, None), (1, 0)])
def test_refuses_impossible_limits(values: tuple[int, int | None]) -> None:
    with pytest.raises(UsageError):
        Limits(*values)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_windows(count: int, sizes: list[int]) -> None:
    found = list(windows(range(count), 4))
    assert [len(window) for window in found] == sizes
    assert [item for window in found for item in window] == list(range(count))


def test_windows_read_no_further_than_they_give() -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for i in range(100):
            read.append(i)
            yield i

    stream = windows(source(), 5)
    assert read == []
    assert next(stream) == [0, 1, 2, 3, 4]
    assert len(read) == 5


def test_refuses_an_impossible_window() -> None:
    with pytest.raises(UsageError):
        next(windows([1], 0))


def test_padding_waste() -> None:
    assert padding_waste(75, 100) == 0.25
    assert padding_waste(0, 0) == 0.0
