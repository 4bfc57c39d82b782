"""Lengths → optimization profiles, the plan of batches, and what it costs beside other ways.

TensorRT compiles for sizes: each width is an optimization profile of its own, whose best size is
the one that its batches have, and batches are padded to the width. So kernels are chosen for the
shapes that run, few shapes are seen again and again (no shape inference between batches, a CUDA
graph for each), and the memory of a long text is not kept for short ones. What runs on ONNX Runtime
or OpenVINO takes any width at no cost: there each batch is as wide as its longest text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfc.errors import UsageError
from tfc.manifest import Traffic
from tfc.runtime.backends.base import Profile, Range
from tfc.runtime.batching import Limits, Plan, batches, padding_waste
from tfc.runtime.traffic import plan_of_traffic
from tfc.steps.traffic.buckets import chosen_widths
from tfc.steps.traffic.costs import Curve
from tfc.steps.traffic.lengths import Lengths

# Names of the ways that are compared.
BUCKETS, LONGEST, ONE = "buckets", "longest", "one"
# Windows that hold fewer batches than this for each width end in batches that are not full.
_BATCHES_PER_WIDTH = 8
_MOST_WINDOWS = 8  # times the usual window


@dataclass(frozen=True)
class Draft:
    """What is known before the build: the plan, and the profiles of an engine with buckets."""

    traffic: Traffic
    profile: Profile
    profiles: tuple[Profile, ...] = ()


def bucketed(
    lengths: Lengths, profile: Profile, plan: Plan, curve: Curve, buckets: int | None
) -> Draft:
    """For an engine that is compiled for sizes.

    Args:
        lengths: those of the texts.
        profile: what is to be taken: the sequence up to its largest size, and its batch sizes.
        plan: the usual one for the hardware.
        curve: what a batch costs.
        buckets: how many widths; None for as many as pay.

    Raises:
        UsageError: more buckets are asked for than there are widths to choose among.
    """
    limits = Limits(min(plan.limits.rows, profile.batch.max), plan.limits.tokens)
    longest = profile.sequence.max
    windows = lengths.rows / plan.window
    widths = chosen_widths(lengths.counts, longest, curve, limits, windows=windows, buckets=buckets)
    if buckets is not None and len(widths.widths) < buckets:
        raise UsageError(
            f"{buckets} buckets were asked for, and these texts have {len(widths.widths)} widths"
            " to choose among",
            fix=f"Give --buckets {len(widths.widths)}, or leave it out",
        )
    middle = widths.widths[len(widths.widths) // 2]
    limits = dataclasses.replace(
        limits, widths=widths.widths, launch_tokens=curve.launch_tokens(middle)
    )
    made = _traffic(lengths, Plan(_window(plan.window, lengths, limits), limits))
    profiles = tuple(_profiles(profile, limits))
    traffic = with_cost(made, lengths, curve, saved=widths.saved)
    busiest = max(profiles, key=lambda p: _texts_of(lengths, p.sequence))
    most = max(limits.most_rows(width) for width in widths.widths)
    span = dataclasses.replace(
        profile,
        batch=Range(profile.batch.min, busiest.batch.opt, most),
        sequence=Range(profile.sequence.min, busiest.sequence.opt, longest),
    )
    return Draft(traffic, span, profiles)


def unbucketed(lengths: Lengths, profile: Profile, plan: Plan) -> Draft:
    """For an engine that takes any size: each batch is as wide as its longest text.

    What it costs is measured when there is an engine: `with_cost`.
    """
    middle = lengths.sample(lengths.rows)[lengths.rows // 2] if lengths.rows else 1
    sequence = dataclasses.replace(profile.sequence, opt=min(middle, profile.sequence.max))
    made = _traffic(lengths, Plan(plan.window, plan.limits))
    return Draft(made, dataclasses.replace(profile, sequence=sequence))


def with_cost(
    traffic: Traffic, lengths: Lengths, curve: Curve, *, saved: float | None = None
) -> Traffic:
    """With the expected padding and cost of its plan, and of other ways to run the same texts.

    `saved` is the share of the cost that the last of its buckets saves.
    """
    plan = plan_of_traffic(traffic)
    sample = lengths.sample(min(plan.window, lengths.rows))
    free = dataclasses.replace(plan.limits, widths=(), launch_tokens=0)
    ways = {
        LONGEST: free,
        ONE: dataclasses.replace(free, widths=(lengths.longest,)),
    }
    if traffic.widths:
        ways = {BUCKETS: plan.limits, **ways}
    found = {name: _expected(sample, limits, curve) for name, limits in ways.items()}
    cost: dict[str, Any] = {"curve": dataclasses.asdict(curve), "ways": found}
    if saved is not None:
        cost["last_bucket_saves"] = saved
    return dataclasses.replace(traffic, cost=cost)


def _expected(sample: Sequence[int], limits: Limits, curve: Curve) -> dict[str, float]:
    """Of a window of texts: the share of padding, the batches, and the cost of a text."""
    found = batches(sample, limits)
    padded = sum(len(batch.indices) * batch.width for batch in found)
    cost = sum(curve.batch(len(batch.indices), batch.width) for batch in found)
    return {
        "padding": padding_waste(sum(sample), padded),
        "batches": len(found),
        "cost_per_text": cost / len(sample),
    }


def _traffic(lengths: Lengths, plan: Plan) -> Traffic:
    limits = plan.limits
    assert limits.tokens is not None  # both default plans limit them
    return Traffic(
        data=lengths.data,
        texts=lengths.texts,
        refused=lengths.refused,
        lengths={str(length): rows for length, rows in lengths.counts.items()},
        widths=list(limits.widths),
        rows=limits.rows,
        tokens=limits.tokens,
        launch_tokens=limits.launch_tokens,
        window=plan.window,
    )


def _window(window: int, lengths: Lengths, limits: Limits) -> int:
    """The usual window, or as many of them as hold enough full batches of every width."""
    per_text = lengths.tokens / lengths.rows
    batches_of_one = window * per_text / (limits.tokens or window)
    wanted = _BATCHES_PER_WIDTH * len(limits.widths) / batches_of_one
    return window * max(1, min(_MOST_WINDOWS, round(wanted)))


def _profiles(profile: Profile, limits: Limits) -> list[Profile]:
    """One for each width: from the one before it on, best at the width and at a full batch."""
    found, least = [], profile.sequence.min
    for width in limits.widths:
        most = limits.most_rows(width)
        rows = Range(min(profile.batch.min, most), most, most)
        found.append(dataclasses.replace(profile, batch=rows, sequence=Range(least, width, width)))
        least = width + 1
    return found


def _texts_of(lengths: Lengths, sizes: Range) -> int:
    return sum(rows for length, rows in lengths.counts.items() if sizes.min <= length <= sizes.max)


def profiles_as_json(profiles: Sequence[Profile]) -> list[dict[str, list[int]]]:
    """Several profiles as they stand in the manifest."""
    return [profile.as_json() for profile in profiles]


def share_of(ways: Mapping[str, Mapping[str, float]], name: str, beside: str) -> float:
    """The cost of one way as a multiple of another's."""
    other = ways[beside]["cost_per_text"]
    return ways[name]["cost_per_text"] / other if other else 1.0
