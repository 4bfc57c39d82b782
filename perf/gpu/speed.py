"""The throughput suite: the GPU's own ceiling, batches of one length, mixed text, callers, profile.

Contestants of a cell take turns block by block (`tfc.runtime.throughput`); ratios are medians of
pairs. Rates count tokens without padding. The share of the peak is the useful arithmetic (of the
tokens without padding) over the fp16 matrix products that this GPU was measured to reach.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import contestants
import models
import numpy as np
from contestants import Opened, Where
from models import Feed, Model
from results import Skip, Stage, found_by

from tfc.runtime.batching import GPU_PLAN, Limits, batches
from tfc.runtime.throughput import Workload

PEAK = "peak"
# Squares as large as a batch's products; their median is the ceiling that shares are taken of.
_SIDES = {"cuda": (4096, 8192, 16384), "cpu": (256,)}
_PRODUCTS = 10
SECONDS = 1.0  # for each contestant in each cell: five blocks of it
# Lengths of real mixed text: mean 79, 95th percentile 193, cut at 256 (log-normal fit).
_MEAN_LOG, _SPREAD_LOG, _CUT = 4.11, 0.72, 256
_DIFFERENT = 0.02  # of the values: what fp16 may cost; a wrong graph is off by more
_SMALL = 32  # rows: larger batches get no graph, or gain nothing by one
_SEVERAL = 8  # rows of the batches that several callers run at once
_CALLS_PROFILED = 5
_KERNELS = 40


@dataclass(frozen=True)
class Asked:
    """What the suite measures: models, batch sizes, callers, contestants; how long each cell."""

    models: tuple[str, ...]
    rows: tuple[int, ...]
    callers: tuple[int, ...]
    contestants: tuple[str, ...]
    compiled_rows: tuple[int, ...]
    texts: int
    tokens: int = 128
    seconds: float = SECONDS


def peak(stage: Stage, where: Where) -> None:
    """The matrix products that the device reaches, on random numbers."""
    kind = "cpu" if where.device == "cpu" else "cuda"
    for side in _SIDES[kind]:
        stage.item(f"{where.precision} {side}", lambda n=side: _product(n, where))


def _product(side: int, where: Where) -> dict[str, Any]:
    import torch

    dtype = {"fp16": torch.float16, "fp32": torch.float32}[where.precision]
    left, right = (torch.randn(side, side, device=where.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    seconds = []
    for _ in range(_PRODUCTS):
        _wait(where.device)
        begun = time.perf_counter()
        torch.mm(left, right, out=out)
        _wait(where.device)
        seconds.append(time.perf_counter() - begun)
    rates = [2 * side**3 / each for each in seconds[1:]]  # the first one chooses a kernel
    return {"flops_per_second": statistics.median(rates), "all": rates}


def _wait(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def best_peak(where: Where) -> float:
    """The highest rate of the stage `peak`; Skip where it has not run."""
    found = found_by(where.work / "results", PEAK)
    if not found:
        raise Skip("the stage peak has not run: shares of the peak need it")
    return max(each["flops_per_second"] for each in found.values())


class Field:
    """The contestants of one model, each loaded once for all the cells of a stage."""

    def __init__(self, name: str, where: Where) -> None:
        self.model = models.shaped(name, where.work)
        self._where = where
        self._exact = contestants.torch_call(self.model, where, contestants.SDPA, "fp32")
        self._loaded: dict[str, Opened | str] = {}

    def contestant(self, name: str) -> Opened | str:
        """A loaded contestant, or why it cannot be loaded."""
        if name not in self._loaded:
            try:
                self._loaded[name] = contestants.opened(name, self.model, self._where)
            except Exception as error:  # the others are measured all the same
                self._loaded[name] = f"{type(error).__name__}: {error}"
        return self._loaded[name]

    def distance(self, one: Opened, feed: Feed) -> dict[str, Any]:
        """How far its outputs for a whole batch are from PyTorch's in fp32, on the same device."""
        try:
            return contestants.distance(one.run(feed)["logits"], self._exact(feed)["logits"])
        except Exception as error:  # as above
            return {"error": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        """Give back what the contestants hold."""
        for each in self._loaded.values():
            if isinstance(each, Opened):
                each.close()


@contextmanager
def _field(stage: Stage, name: str, where: Where) -> Iterator[Callable[[], Field]]:
    """Gives the field of a model when it is asked for: nothing is loaded for what is done."""
    opened: list[Field] = []

    def field() -> Field:
        if not opened:
            opened.append(Field(name, where))
        return opened[0]

    try:
        yield field
    finally:
        for each in opened:
            each.close()


def full_batches(stage: Stage, where: Where, asked: Asked) -> None:
    """Batches of one length, from one row to saturation."""
    for name in asked.models:
        with _field(stage, name, where) as field:
            for rows in asked.rows:
                names = _taking_part(asked, rows)
                feeds = _full(rows, asked.tokens)
                item = f"{name} {rows}×{asked.tokens}"
                stage.item(item, lambda f=feeds, n=names: _cell(field(), f, where, asked, n))


def mixed_text(stage: Stage, where: Where, asked: Asked) -> None:
    """Rows of real lengths, sorted and batched as a job does; by one caller, and by two.

    A job pads one batch while another runs: that is two callers.
    """
    names = _taking_part(asked, 0)
    for name in asked.models:
        with _field(stage, name, where) as field:
            feeds = _mixed(name, asked.texts)
            for callers in (1, 2):
                item = name if callers == 2 else f"{name}, one caller"
                stage.item(
                    item, lambda f=feeds, c=callers: _cell(field(), f, where, asked, names, c)
                )


def concurrency(stage: Stage, where: Where, asked: Asked) -> None:
    """Small batches by several callers at once, tfc's own engines only."""
    own = tuple(name for name in asked.contestants if name not in contestants.TORCH)
    for name in asked.models:
        with _field(stage, name, where) as field:
            feeds = _full(_SEVERAL, asked.tokens)
            for callers in asked.callers:
                stage.item(
                    f"{name} {_SEVERAL}×{asked.tokens}, {callers} callers",
                    lambda f=feeds, c=callers: _cell(field(), f, where, asked, own, c),
                )


def cuda_graphs(stage: Stage, where: Where, asked: Asked) -> None:
    """Small batches with CUDA graphs and without."""
    with_graphs = tuple(
        n for n in asked.contestants if n in (contestants.RTX, contestants.TENSORRT)
    )
    names = tuple(n + end for n in with_graphs for end in ("", contestants.WITHOUT_GRAPHS))
    for name in asked.models:
        with _field(stage, name, where) as field:
            for rows in asked.rows:
                if rows > _SMALL:
                    continue
                feeds = _full(rows, asked.tokens)
                stage.item(
                    f"{name} {rows}×{asked.tokens}",
                    lambda f=feeds: _cell(field(), f, where, asked, names),
                )


Rows = Callable[[Model], list[tuple[list[int], Feed]]]


def _full(rows: int, tokens: int) -> Rows:
    return lambda model: [([tokens] * rows, models.batch_of(model, rows, [tokens] * rows))]


def _mixed(name: str, texts: int) -> Rows:
    most = models.SHAPES[name].sequence[2]
    random = np.random.default_rng(0)
    drawn = np.exp(random.normal(_MEAN_LOG, _SPREAD_LOG, texts))
    lengths = np.clip(drawn, 3, min(_CUT, most)).astype(int).tolist()

    def of_model(model: Model) -> list[tuple[list[int], Feed]]:
        found = []
        limit = min(GPU_PLAN.limits.rows, models.SHAPES[name].batch[2])
        for batch in batches(lengths, Limits(limit, GPU_PLAN.limits.tokens)):
            own = [lengths[i] for i in batch.indices]
            found.append((own, models.batch_of(model, len(own), own)))
        return found

    return of_model


def _cell(
    field: Field,
    rows_of: Rows,
    where: Where,
    asked: Asked,
    names: tuple[str, ...],
    callers: int = 1,
) -> dict[str, Any]:
    """All contestants on one workload, each compared with PyTorch in fp32 first."""
    from tfc.runtime.throughput import measure

    peak_rate = best_peak(where)
    workload = _workload(field.model, rows_of(field.model))
    calls, distances, left_out = {}, {}, {}
    for name in names:
        one = field.contestant(name)
        if isinstance(one, str):
            left_out[name] = one
            continue
        distances[name] = field.distance(one, workload.feeds[-1])
        if not _is_right(distances[name]):
            left_out[name] = f"it is wrong: {distances[name]}"
            continue
        calls[name] = one.run
    if not calls:
        raise Skip(f"nobody can be measured: {left_out}")
    own = next((n for n in calls if n.endswith(contestants.WITHOUT_GRAPHS)), None)
    base = next((n for n in (contestants.COMPILE, contestants.SDPA, own) if n in calls), None)
    cell = measure(calls, workload, seconds=asked.seconds, baseline=base, callers=callers)
    shares = {n: (t.flops_per_second or 0) / peak_rate for n, t in cell.timings.items()}
    told = {"baseline": base, "distance": distances, "left_out": left_out, "peak": peak_rate}
    return {**cell.as_json(), **told, "share_of_peak": shares}


def _workload(model: Model, batches: list[tuple[list[int], Feed]]) -> Workload:
    shape = models.SHAPES[model.name]
    lengths = [length for own, _ in batches for length in own]
    feeds = tuple(feed for _, feed in batches)
    return Workload(
        name=model.name,
        feeds=feeds,
        rows=len(lengths),
        tokens=sum(lengths),
        padded=sum(feed["input_ids"].size for feed in feeds),
        flops=sum(shape.flops(length) for length in lengths),
        lengths=Counter(lengths),
    )


def _taking_part(asked: Asked, rows: int) -> tuple[str, ...]:
    """`torch.compile` compiles each shape anew, for many seconds: at chosen batch sizes only."""
    compiled = rows in asked.compiled_rows
    return tuple(n for n in asked.contestants if compiled or n != contestants.COMPILE)


def _is_right(distance: Mapping[str, Any]) -> bool:
    return bool(distance.get("finite")) and distance["relative"] <= _DIFFERENT


def profile(stage: Stage, where: Where, asked: Asked) -> None:
    """The kernels of each contestant at the largest batch, and the time that each takes."""
    for name in asked.models:
        for who in asked.contestants:
            stage.item(f"{name} {who}", lambda m=name, w=who: _profiled(m, w, where, asked))


def _profiled(name: str, who: str, where: Where, asked: Asked) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    model = models.shaped(name, where.work)
    ((_, feed),) = _full(max(asked.rows), asked.tokens)(model)
    opened = contestants.opened(who, model, where)
    activities = [ProfilerActivity.CPU]
    if where.device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    try:
        opened.run(feed)
        with profiled(activities=activities) as profiler:
            begun = time.perf_counter()
            for _ in range(_CALLS_PROFILED):
                opened.run(feed)
            _wait(where.device)
            wall = (time.perf_counter() - begun) / _CALLS_PROFILED
    finally:
        opened.close()
    rows = [
        {
            "name": event.key[:200],
            "calls": event.count / _CALLS_PROFILED,
            "device_us": event.self_device_time_total / _CALLS_PROFILED,
            "cpu_us": event.self_cpu_time_total / _CALLS_PROFILED,
        }
        for event in profiler.key_averages()
    ]
    by = "cpu_us" if where.device == "cpu" else "device_us"
    rows.sort(key=lambda row: -row[by])
    total = sum(row["device_us"] for row in rows)
    return {"wall_us": wall * 1e6, "device_us": total, "rows": rows[:_KERNELS]}
