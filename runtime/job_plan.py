"""The plan for a job with a chosen engine: kept from an earlier job, measured, or a rule."""

from __future__ import annotations

from pathlib import Path

from tfc.artifact import Artifact
from tfc.manifest import MODEL
from tfc.runtime.backends.base import Runner
from tfc.runtime.batching import CPU
from tfc.runtime.cores import usable_cores
from tfc.runtime.cpu_plan import (
    CpuPlan,
    PlanKey,
    keep_plan,
    kept_plan,
    machine_name,
    plan_by_rule,
    plans_folder,
)
from tfc.runtime.plan_measure import is_measurable, measured_plan
from tfc.runtime.selection import Choice
from tfc.runtime.tensors import profile_of


def plan_for_jobs(
    artifact: Artifact,
    choice: Choice,
    threads: int | None = None,
    *,
    measure: bool = False,
    folder: Path | None = None,
) -> CpuPlan | None:
    """How batches of a job run, or None for the session's own way.

    That is on a GPU, not from text, or by the plan for traffic that an engine was built with.

    Args:
        artifact: the engine's.
        choice: the engine.
        threads: the CPU threads to use; left out, every core that this process may use.
        measure: measure the engine where no plan is kept for it, and keep it.
        folder: where plans are kept; the user's cache if None.
    """
    graphs = artifact.manifest.graphs
    if choice.hardware != CPU or list(graphs) != [MODEL] or choice.engine.traffic is not None:
        return None
    signature = graphs[MODEL].signature
    if not is_measurable(signature):
        return None
    threads = threads or usable_cores()
    folder = plans_folder() if folder is None else folder
    backend = choice.backend
    runtime = f"{backend.name} {backend.availability().version}"
    key = PlanKey(artifact.engine_sha256(choice.engine), runtime, threads, machine_name())
    kept = kept_plan(key, folder)
    if kept is not None or not measure:
        return kept or plan_by_rule(threads)
    file = artifact.file(choice.engine.files[MODEL])

    def load(threads: int, streams: int) -> Runner:
        return backend.load(file, threads, streams)

    plan = measured_plan(load, signature, profile_of(choice.engine), threads)
    keep_plan(key, folder, plan)
    return plan
