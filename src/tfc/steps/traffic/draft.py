"""What `build_engine` asks of this package: the plan before the build, and its cost after."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.manifest import Traffic
from tfc.runtime.backends.base import Backend, Profile, Range
from tfc.runtime.batching import CPU_PLAN, GPU_PLAN
from tfc.runtime.traffic import plan_of_traffic
from tfc.steps.traffic.costs import counted_curve, measured_curve, products_of_artifact
from tfc.steps.traffic.lengths import Lengths
from tfc.steps.traffic.plan import Draft, bucketed, unbucketed, with_cost

CPU = "CPU"


def compiles_for_sizes(chosen: Backend) -> bool:
    """Whether its engines are compiled for sizes: only those have profiles, and take minutes."""
    return chosen.target == "tensorrt"


def check_asked(
    chosen: Backend, profile_from: object, buckets: int | None, sequence: object
) -> None:
    """Refuse what does not go together, before any text is read.

    Raises:
        UsageError: see the texts.
    """
    if profile_from is None:
        if buckets is not None:
            raise UsageError(
                "buckets are chosen for texts, and there are none",
                fix="Give them with --profile-from data.jsonl, or leave --buckets out",
            )
        return
    if sequence is not None:
        raise UsageError(
            "--seq and --profile-from both say which lengths the engine is for",
            fix="Leave one of them out",
        )
    if buckets is not None and not compiles_for_sizes(chosen):
        raise UsageError(
            f"{chosen.name} takes any length at no cost: there each batch is as wide as its "
            "longest text, and buckets would only add padding",
            fix="Leave --buckets out, or add --backend tensorrt-rtx",
        )


def draft_of(
    artifact: Artifact,
    chosen: Backend,
    hardware: str,
    profile: Profile,
    lengths: Lengths,
    *,
    buckets: int | None,
    any_batch: bool,
) -> Draft:
    """The plan for these texts: with buckets where the backend compiles for sizes.

    Args:
        artifact: whose exported graph tells what a batch costs.
        chosen: builds the engine.
        hardware: what it runs on.
        profile: the sizes that it is to take.
        lengths: those of the texts.
        buckets: how many; None for as many as pay.
        any_batch: whether nobody asked for batch sizes.
    """
    if not compiles_for_sizes(chosen):
        return unbucketed(lengths, profile, CPU_PLAN if hardware == CPU else GPU_PLAN)
    if any_batch:
        most = GPU_PLAN.limits.rows
        profile = dataclasses.replace(profile, batch=Range(profile.batch.min, most, most))
    curve = counted_curve(artifact, products_of_artifact(artifact))
    return bucketed(lengths, profile, GPU_PLAN, curve, buckets)


def measured_traffic(
    artifact: Artifact, chosen: Backend, file: Path, traffic: Traffic, lengths: Lengths
) -> Traffic:
    """The plan of an engine that was built and runs here, with its measured cost."""
    runner = chosen.load(file)
    try:
        limits = plan_of_traffic(traffic).limits
        curve = measured_curve(artifact, runner, limits, sorted(lengths.sample(lengths.rows)))
    finally:
        runner.close()
    return with_cost(traffic, lengths, curve)


def option_of(lengths: Lengths, buckets: int | None) -> dict[str, object]:
    """What the step's record says of the texts: another build with the same is the same."""
    return {"traffic": {"data": lengths.data, "lengths": lengths.sha256(), "buckets": buckets}}
