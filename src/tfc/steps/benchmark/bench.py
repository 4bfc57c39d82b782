"""`tfc bench`: throughput, latency and cost of engines against their peers, in the same run."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.artifact import BENCH_REPORT, Artifact
from tfc.errors import UsageError
from tfc.manifest import MODEL
from tfc.runtime.batching import CPU
from tfc.runtime.cores import busy_share, usable_cores
from tfc.runtime.throughput import Cell, Workload, measure
from tfc.runtime.traffic import plan_of_engine
from tfc.steps.benchmark.contestants import (
    COMPILE,
    SDPA,
    CheckpointPlace,
    Entry,
    check_same_vocabulary,
    engine_entries,
    hardware_of,
    open_each,
    other_entries,
    pytorch_entries,
)
from tfc.steps.benchmark.matmul_peak import MatmulPeak, matmul_peak
from tfc.steps.benchmark.start import StartUp, start_ups
from tfc.steps.benchmark.workloads import (
    DEFAULT_BATCHES,
    DEFAULT_LENGTHS,
    TextFile,
    data_workload,
    flops_of_rows,
    grid_workloads,
    sizes_of,
)
from tfc.steps.record import OnProgress, no_progress, versions_of

DEFAULT_SECONDS = 1.0
# With one of two cores taken by another process PyTorch's OpenMP threads wait for each other:
# measured 116 × where 2 × is the truth. A quiet machine shows a few per cent.
BUSY_LIMIT = 0.2


@dataclass(frozen=True)
class BenchResult:
    """What was measured, who took part, and who could not and why.

    Attributes:
        cells: one for each workload and number of callers.
        hardware: what each of those who took part runs on: `CPU`, or the name of a GPU.
        baseline: the name of the one that the ratios are to; None if there is nothing to compare.
        start_ups: what each costs before its first result, where that was measured.
        peak: the fp32 matrix products of the CPU; None where nothing runs on it.
        busy: the share of the machine that other processes used just before.
    """

    artifact: Artifact
    cells: tuple[Cell, ...]
    hardware: dict[str, str]
    baseline: str | None
    left_out: dict[str, str]
    start_ups: dict[str, StartUp]
    peak: MatmulPeak | None
    threads: int
    busy: float | None

    @property
    def disturbed(self) -> bool:
        """Whether other processes used so much of the machine that the numbers mean little."""
        return self.busy is not None and self.busy > BUSY_LIMIT

    def utilisation(self, cell: Cell, name: str) -> float | None:
        """The share of the machine's matrix products that a contestant's arithmetic reaches.

        It may be more than 1 where the model computes in fewer bits than fp32. None on a GPU,
        whose peak is not measured, and where the arithmetic could not be counted.
        """
        rate = cell.timings[name].flops_per_second
        if rate is None or self.peak is None or self.hardware[name] != CPU:
            return None
        return rate / self.peak.flops_per_second

    def as_json(self) -> dict[str, Any]:
        """The report."""
        return {
            "machine": platform.processor() or platform.machine(),
            "threads": self.threads,
            "busy_before": self.busy,
            "versions": versions_of("torch", "transformers", "onnxruntime-gpu", "onnxruntime"),
            "matmul_peak": None if self.peak is None else vars(self.peak),
            "baseline": self.baseline,
            "contestants": list(self.hardware),
            "hardware": self.hardware,
            "left_out": self.left_out,
            "start_up": {name: vars(found) for name, found in self.start_ups.items()},
            "cells": [cell.as_json() for cell in self.cells],
        }


def bench(
    artifact: Artifact | str | Path,
    *,
    engines: Sequence[str] = (),
    batches: Sequence[int] = DEFAULT_BATCHES,
    lengths: Sequence[int] = DEFAULT_LENGTHS,
    data: TextFile | str | Path | None = None,
    callers: Sequence[int] = (1,),
    seconds: float = DEFAULT_SECONDS,
    pytorch: Sequence[str] | bool = (SDPA,),
    against: Sequence[str | Path] = (),
    start: bool = True,
    checkpoint: str | Sequence[str] | None = None,
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_progress: OnProgress = no_progress,
) -> BenchResult:
    """Measure engines, PyTorch in fp32 and others, on a grid of shapes or on texts.

    Rows of the grid are full; of texts, tokens/s counts no padding. Contestants take turns, and
    ratios are medians of pairs.

    Args:
        artifact: an artifact with engines.
        engines: the engines' names; all that can run here if empty.
        batches: batch sizes of the grid.
        lengths: lengths of the grid in tokens; those beyond the model's limit are left out.
        data: JSON lines with texts, which take the place of the grid.
        callers: how many threads call at once; each number is measured.
        seconds: time for each contestant on each workload.
        pytorch: forms of PyTorch: `sdpa`, `eager`, `compile`; True is `sdpa`, False none.
        against: other artifacts, and ONNX files, to measure beside.
        start: measure loading, the first result and peak memory, in fresh processes.
        checkpoint: where the checkpoint is now, if it was moved since export; for an ensemble
            one for each member, in their order.
        base: where the base model of an adapter is now.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: read weights that are pickles.
        on_progress: called with what is under way.

    Raises:
        UsageError: there is no such engine, no shape is left, or the model does not read text.
        BackendUnavailable: no engine can run here.
        BadData: the data file cannot be used.
    """
    artifact = Artifact.of(artifact)
    _check_measurable(artifact)
    forms = ((SDPA,) if pytorch else ()) if isinstance(pytorch, bool) else pytorch
    place = CheckpointPlace(checkpoint, base, trust_remote_code, allow_pickle)
    own, left_out = engine_entries(artifact, engines)
    check_same_vocabulary(artifact, against)
    others, not_others = other_entries(against)
    entries = [*pytorch_entries(artifact, forms, place), *own, *others]
    taken = sizes_of([artifact.manifest.engines[entry.which] for entry in own])
    flops = flops_of_rows(artifact)
    if data is None:
        workloads = grid_workloads(artifact, taken, batches, lengths, flops)
    else:
        file = data if isinstance(data, TextFile) else TextFile(Path(data))
        engine = artifact.manifest.engines[own[0].which]
        limits = plan_of_engine(engine, hardware_of(own[0])).limits
        workloads = [data_workload(artifact, taken, file, limits, flops)]
    threads, busy = usable_cores(), busy_share()
    feed = workloads[0].feeds[0]
    started = start_ups(entries if start else (), feed, threads, on_progress)
    compiled = {entry.name for entry in entries if entry.which == COMPILE}
    failed = {name: why for name, why in started.failed.items() if name in compiled}
    entries = [entry for entry in entries if entry.name not in failed]  # others say why below
    hardware = {entry.name: hardware_of(entry) for entry in entries}
    turns = _Turns(
        workloads, callers, seconds, entries[0].name if len(entries) > len(own) else None
    )
    cells, not_compiled = _measured(turns, entries, threads, on_progress)
    result = BenchResult(
        artifact=artifact,
        cells=tuple(cells),
        hardware={name: hardware[name] for name in cells[0].timings},
        baseline=turns.baseline,
        left_out={**left_out, **not_others, **failed, **not_compiled},
        start_ups=started.found,
        peak=matmul_peak(threads) if CPU in hardware.values() else None,
        threads=threads,
        busy=busy,
    )
    with artifact.change() as change:
        text = json.dumps(result.as_json(), indent=2, ensure_ascii=False)
        change.path(BENCH_REPORT).write_text(text + "\n", encoding="utf-8")
    return result


def _check_measurable(artifact: Artifact) -> None:
    manifest = artifact.manifest
    if MODEL in manifest.graphs and manifest.preprocess is not None:
        return
    raise UsageError(
        f"models for {manifest.task.name} are not measured yet: only those that read text and "
        "answer at once",
        where=str(artifact.path),
        fix="Time Session.predict on your own data",
    )


@dataclass(frozen=True)
class _Turns:
    """What the contestants are measured on, for how long, and who the ratios are to."""

    workloads: Sequence[Workload]
    callers: Sequence[int]
    seconds: float
    baseline: str | None


def _measured(
    turns: _Turns, entries: Sequence[Entry], threads: int, on_progress: OnProgress
) -> tuple[list[Cell], dict[str, str]]:
    """One cell for each workload and number of callers; who turned out not to run, and why."""
    plan = [(workload, callers) for callers in turns.callers for workload in turns.workloads]
    with ExitStack() as stack:
        on_progress("loading", 0, len(plan))
        found, left_out = open_each(entries, threads, plan[0][0].feeds[0])
        for contestant in found.values():
            stack.callback(contestant.close)
        calls = {name: contestant.run for name, contestant in found.items()}
        cells = []
        for number, (workload, callers) in enumerate(plan):
            on_progress(f"{workload.name}, {callers} at once", number, len(plan))
            cells.append(
                measure(
                    calls,
                    workload,
                    seconds=turns.seconds,
                    baseline=turns.baseline if turns.baseline in calls else None,
                    callers=callers,
                )
            )
    on_progress("done", len(plan), len(plan))
    return cells, left_out
