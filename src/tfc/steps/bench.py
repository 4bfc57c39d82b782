"""`tfc bench`: throughput and latency of engines against PyTorch, in the same run."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import BENCH_REPORT, Artifact
from tfc.errors import BackendUnavailable, UsageError
from tfc.manifest import MODEL, Engine
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.backends import backend as backend_of
from tfc.runtime.cores import busy_share, usable_cores
from tfc.runtime.engine import close_all, runners_from_engine
from tfc.runtime.padding import MASK, Feed, split_name
from tfc.runtime.throughput import Cell, measure
from tfc.runtime.tokenization import INPUT_IDS
from tfc.steps.cases import sample_texts
from tfc.steps.record import OnProgress, no_progress, versions_of
from tfc.steps.reference import Reference, reference_from_artifact

PYTORCH = "pytorch"
DEFAULT_BATCHES = (1, 8, 32)
DEFAULT_LENGTHS = (16, 64, 128)
DEFAULT_SECONDS = 1.0
# With one of two cores taken by another process PyTorch's OpenMP threads wait for each other:
# measured 116 × where 2 × is the truth. A quiet machine shows a few per cent.
BUSY_LIMIT = 0.2


@dataclass(frozen=True)
class BenchResult:
    """The grid, who took part, and who could not and why.

    `busy` is the share of the machine that other processes used just before.
    """

    artifact: Artifact
    cells: tuple[Cell, ...]
    contestants: tuple[str, ...]
    left_out: dict[str, str]
    threads: int
    busy: float | None

    @property
    def disturbed(self) -> bool:
        """Whether other processes used so much of the machine that the numbers mean little."""
        return self.busy is not None and self.busy > BUSY_LIMIT


def bench(
    artifact: Artifact | str | Path,
    *,
    engines: Sequence[str] = (),
    batches: Sequence[int] = DEFAULT_BATCHES,
    lengths: Sequence[int] = DEFAULT_LENGTHS,
    seconds: float = DEFAULT_SECONDS,
    pytorch: bool = True,
    checkpoint: str | Sequence[str] | None = None,
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_progress: OnProgress = no_progress,
) -> BenchResult:
    """Measure engines and PyTorch (SDPA, fp32) over a grid of batch sizes and lengths.

    Every row is full: no padding, so tokens/s counts real tokens. Contestants take turns, and
    ratios are medians of pairs.

    Args:
        artifact: an artifact with engines.
        engines: the engines' names; all that can run here if empty.
        batches: batch sizes.
        lengths: lengths in tokens; those beyond the model's limit are left out.
        seconds: time for each contestant at each shape.
        pytorch: also run PyTorch.
        checkpoint: where the checkpoint is now, if it was moved since export; for an ensemble
            one for each member, in their order.
        base: where the base model of an adapter is now.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: read weights that are pickles.
        on_progress: called with the shape under way.

    Raises:
        UsageError: there is no such engine, no shape is left, or the model does not read text.
        BackendUnavailable: no engine can run here.
    """
    artifact = Artifact.of(artifact)
    _check_measurable(artifact)
    names, left_out = _runnable(artifact, engines)
    shapes = _shapes(artifact, names, batches, lengths)
    threads = usable_cores()
    busy = busy_share()
    reference = None
    if pytorch:
        import torch

        torch.set_num_threads(threads)
        reference = reference_from_artifact(
            artifact,
            checkpoint=checkpoint,
            base=base,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
    with ExitStack() as stack:
        runners = {}
        for name in names:
            engine = artifact.manifest.engines[name]
            loaded = runners_from_engine(artifact, engine, threads)
            stack.callback(close_all, loaded)
            runners[name] = loaded[MODEL]
        cells = _measured(artifact, shapes, runners, reference, seconds, on_progress)
    contestants = tuple(cells[0].timings)
    result = BenchResult(artifact, tuple(cells), contestants, left_out, threads, busy)
    _record(result)
    return result


def _measured(
    artifact: Artifact,
    shapes: list[tuple[int, int]],
    runners: dict[str, Any],
    reference: Reference | None,
    seconds: float,
    on_progress: OnProgress,
) -> list[Cell]:
    """One cell per shape, all contestants in each."""
    baseline = PYTORCH if reference is not None else None
    cells = []
    for number, (batch, length) in enumerate(shapes):
        on_progress(f"{batch} × {length} tokens", number, len(shapes))
        contestants = _contestants(runners, reference, _full_batch(artifact, batch, length))
        cells.append(
            measure(contestants, batch=batch, sequence=length, seconds=seconds, baseline=baseline)
        )
    on_progress("done", len(shapes), len(shapes))
    return cells


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


def _runnable(artifact: Artifact, asked: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    engines = artifact.manifest.engines
    for name in asked:
        if name not in engines:
            raise UsageError(
                f"this artifact has no engine '{name}'",
                where=str(artifact.path),
                fix=f"Choose among: {', '.join(engines) or 'none; run tfc build-engine first'}",
            )
    left_out = {}
    for name in asked or engines:
        reason = backend_of(engines[name].backend).availability().why_not_run
        if reason:
            left_out[name] = reason
    names = [name for name in asked or engines if name not in left_out]
    if not names:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise BackendUnavailable(
            f"no engine of this artifact can run here ({reasons or 'it has none'})",
            where=str(artifact.path),
            fix=f"Build one for this machine with: tfc build-engine {artifact.path}",
        )
    return names, left_out


def _shapes(
    artifact: Artifact, names: Sequence[str], batches: Sequence[int], lengths: Sequence[int]
) -> list[tuple[int, int]]:
    """The grid, as far as every engine's profile reaches."""
    profiles = [_ranges(artifact.manifest.engines[name]) for name in names]
    shapes = [
        (batch, length)
        for batch in batches
        for length in lengths
        if all(
            low_b <= batch <= high_b and low_s <= length <= high_s
            for (low_b, high_b), (low_s, high_s) in profiles
        )
    ]
    if not shapes:
        raise UsageError(
            "no shape of the grid is within the engines' profiles",
            fix="Give other --batch and --seq, or build with a larger profile",
        )
    return shapes


def _ranges(engine: Engine) -> tuple[tuple[int, int], tuple[int, int]]:
    batch, sequence = engine.profile["batch"], engine.profile["sequence"]
    return (batch[0], batch[-1]), (sequence[0], sequence[-1])


def _full_batch(artifact: Artifact, batch: int, length: int) -> Feed:
    """Rows of real tokens, exactly `length` each, special tokens at both ends."""
    encoder = text_encoder_of(artifact)
    padded = encoder.pad(encoder.encode([" ".join(sample_texts(artifact))]))
    feed = {}
    for spec in artifact.manifest.signature.inputs:
        kind, suffix = split_name(spec.name)
        row = np.zeros(length, np.int64)
        if kind == INPUT_IDS:
            row = _full_row(padded[spec.name][0][padded[MASK + suffix][0] == 1], length)
        elif kind == MASK:
            row[:] = 1
        feed[spec.name] = np.repeat(row[None], batch, axis=0)
    return feed


def _full_row(ids: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """The first and the last of a text's tokens, and those between them as often as needed."""
    inner = np.resize(ids[1:-1] if len(ids) > 2 else ids, max(0, length - 2))
    return np.concatenate([ids[:1], inner, ids[-1:]])[:length]


def _contestants(
    runners: dict[str, Any], reference: Reference | None, feed: Feed
) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    if reference is not None:
        found[PYTORCH] = partial(reference, feed)
    for name, runner in runners.items():
        found[name] = partial(runner.run, feed)
    return found


def _record(result: BenchResult) -> None:
    report = {
        "machine": platform.processor() or platform.machine(),
        "threads": result.threads,
        "busy_before": result.busy,
        "versions": versions_of("torch", "transformers", "onnxruntime-gpu", "onnxruntime"),
        "baseline": PYTORCH if PYTORCH in result.contestants else None,
        "contestants": list(result.contestants),
        "left_out": result.left_out,
        "cells": [cell.as_json() for cell in result.cells],
    }
    with result.artifact.change() as change:
        text = json.dumps(report, indent=2, ensure_ascii=False)
        change.path(BENCH_REPORT).write_text(text + "\n", encoding="utf-8")
