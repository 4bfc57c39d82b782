"""An engine on this CPU → the plan with which it runs most texts a second, measured.

First the ways to share the threads among batches, each with batches of the rule's size; then, for
the best of them, other sizes of batches. Those that are compared run in turn, and ratios are taken
pair by pair: the machine may be busy otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from tfc.manifest import BATCH, SEQUENCE, Signature
from tfc.runtime.backends.base import Arrays, Profile, Runner
from tfc.runtime.batching import batches
from tfc.runtime.cpu_plan import CpuPlan, plan_by_rule
from tfc.runtime.padding import MASK, split_name

# Gives a runner for (threads, streams).
Load = Callable[[int, int], Runner]
# Tokens of texts as jobs have them; the long ones are few.
_LENGTHS = (12, 24, 24, 48, 48, 96, 160)
_TEXTS_PER_THREAD = 4  # of each length: some 1,600 tokens, several batches for every stream
_TOKENS = (256, 1024)  # the sizes that are tried beside the rule's
_ROUNDS = 3
_SECONDS = 8.0  # of a comparison; after so many no round begins, and one at least is counted
# Another plan has to be faster by this factor: less is within what the machine drifts.
_CLEARLY = 1.05


def is_measurable(signature: Signature) -> bool:
    """Whether every input is a row of tokens: the batches of others are not made up here."""
    return all(list(spec.shape) == [BATCH, SEQUENCE] for spec in signature.inputs)


def measured_plan(load: Load, signature: Signature, profile: Profile, threads: int) -> CpuPlan:
    """The fastest plan for an engine.

    Args:
        load: loads the engine for so many threads and streams.
        signature: its inputs, each [batch, sequence].
        profile: the sizes that it takes.
        threads: the CPU threads to use.
    """
    rule = plan_by_rule(threads)
    with ExitStack() as stack:
        runners: dict[int, Runner] = {}
        for streams in _ways(threads):
            runner = load(threads, streams)
            stack.callback(runner.close)
            runners[streams] = runner
        ways = [CpuPlan(streams, threads, rule.tokens) for streams in runners]
        best, gains = _fastest(ways, runners, signature, profile)
        told = [f"{gain:.2f} × {_way(plan)}" for plan, gain in gains]
        sizes = [best, *(CpuPlan(best.streams, threads, tokens) for tokens in _TOKENS)]
        chosen, gains = _fastest(sizes, runners, signature, profile)
    told += [f"{gain:.2f} × {plan.tokens} tokens" for plan, gain in gains]
    measured = f"measured here: {', '.join(told)}"
    return CpuPlan(chosen.streams, threads, chosen.tokens, measured)


def _ways(threads: int) -> tuple[int, ...]:
    """Numbers of streams: one for each thread, one for all, and one for every two."""
    half = threads // 2 if threads % 2 == 0 else threads
    return tuple(dict.fromkeys((threads, half, 1)))


def _way(plan: CpuPlan) -> str:
    return f"{plan.streams} stream{'s' * (plan.streams != 1)}"


def _fastest(
    plans: Sequence[CpuPlan], runners: dict[int, Runner], signature: Signature, profile: Profile
) -> tuple[CpuPlan, list[tuple[CpuPlan, float]]]:
    """The fastest, the first unless another one is clearly so; its speed as a multiple of each."""
    feeds = {plan: _feeds(plan, signature, profile) for plan in plans}
    seconds: dict[CpuPlan, list[float]] = {plan: [] for plan in plans}
    begun = time.perf_counter()
    for number in range(1 + _ROUNDS):  # the first warms up
        if number > 1 and time.perf_counter() - begun > _SECONDS:
            break
        for plan in plans:
            taken = _seconds(runners[plan.streams], feeds[plan], plan.streams)
            if number:
                seconds[plan].append(taken)
    gain = {plan: _ratio(seconds[plans[0]], seconds[plan]) for plan in plans}
    best = max(plans, key=lambda plan: gain[plan])
    best = best if gain[best] > _CLEARLY else plans[0]
    others = [plan for plan in plans if plan is not best]
    return best, [(plan, _ratio(seconds[plan], seconds[best])) for plan in others]


def _ratio(base: Sequence[float], own: Sequence[float]) -> float:
    return float(np.median(np.array(base) / np.array(own)))


def _seconds(runner: Runner, feeds: Sequence[Arrays], streams: int) -> float:
    with ThreadPoolExecutor(streams, "tfc-plan") as pool:
        begun = time.perf_counter()
        for _ in pool.map(runner.run, feeds):
            pass
        return time.perf_counter() - begun


def _feeds(plan: CpuPlan, signature: Signature, profile: Profile) -> list[Arrays]:
    """The batches of a plan: token 0, attended to, in sizes that the engine takes."""
    least, most = profile.sequence.min, profile.sequence.max
    lengths = [min(max(length, least), most) for length in _LENGTHS]
    limits = plan.limits
    found: list[Arrays] = []
    for batch in batches(lengths * (_TEXTS_PER_THREAD * plan.threads), limits):
        rows = min(max(len(batch.indices), profile.batch.min), profile.batch.max)
        found.append(
            {
                spec.name: np.full(
                    (rows, batch.width),
                    1 if split_name(spec.name)[0] == MASK else 0,
                    np.dtype(spec.dtype),
                )
                for spec in signature.inputs
            }
        )
    return found
