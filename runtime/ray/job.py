"""`tfc run --ray`: Parquet files through the workers of a Ray cluster, into a folder of parts.

The parts are written beside the output, in a hidden folder, and put in their place when all of
them are there, with ``_SUCCESS``: the output folder is empty or complete. Ray runs the rows of a
worker that died again; a job whose own process is killed begins anew when it is run again.

A part holds every row of its share of the input, bad ones too: see `predict_dataset`.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tfc.errors import (
    BadData,
    EnvironmentProblem,
    UsageError,
    disk_errors,
    first_line,
    require,
)
from tfc.files import sync
from tfc.runtime.cores import usable_cores
from tfc.runtime.formats import PARQUET, Format
from tfc.runtime.formats.parquet import (
    GROUP_ROWS,
    check_same_columns,
    check_text_columns,
    schema_of_parquet,
)
from tfc.runtime.jobs.inputs import STDIN, InputFile, Place, files_from_inputs, identities
from tfc.runtime.jobs.job import check_paths
from tfc.runtime.jobs.journal import Shard
from tfc.runtime.jobs.outputs import STDOUT, Output, Workspace, workspace
from tfc.runtime.jobs.shards import empty_input
from tfc.runtime.ray.ask import Ask, checked
from tfc.runtime.ray.dataset import Plan, plan_on_cluster, ray_errors, with_workers
from tfc.runtime.ray.worker import REASON

# Windows in a part, as a job without Ray has it.
_WINDOWS_OF_A_PART = 4
_STAGING = ".tfc-ray"
# Ray needs a core for the tasks that read and write beside the one of a worker.
_LEAST_CORES = 2


@dataclass(frozen=True)
class RaySummary:
    """What a job did.

    `rows` were predicted and `bad_rows` were not. `verdict` is what parity says of `engine`;
    `hardware` is what each of the `workers` ran on, with `threads` CPU threads. `seconds` counts
    from the first row that is read, with the start of the workers, to the last part.
    """

    rows: int
    bad_rows: int
    seconds: float
    rows_per_second: float
    engine: str
    verdict: str
    hardware: str
    workers: int
    threads: int
    output: Path


def run_ray_job(
    ask: Ask,
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    ray_address: str | None = None,
    shard_rows: int | None = None,
    progress: bool = False,
) -> RaySummary:
    """Predict every row of Parquet files on a Ray cluster.

    Args:
        ask: the artifact, and what `predict_dataset` takes besides.
        input: Parquet files, globs or folders.
        output: a folder that is empty or does not exist.
        ray_address: the cluster's; left out, the one that this process is connected to, or Ray is
            started on this machine's cores for the job.
        shard_rows: the least rows of a part, but for the last ones; left out, four windows.
        progress: whether Ray shows bars on standard error.

    Raises:
        BadData: an input is missing, damaged or empty, has no column of texts, or not one of its
            rows can be used.
        UsageError: the inputs are no Parquet, the output is no empty folder; and as
            `predict_dataset`.
        EnvironmentProblem: the cluster cannot be reached, or Ray gave up.
        MissingPackage: Ray is not installed.
    """
    for name, number in (("window", ask.window), ("shard_rows", shard_rows)):
        if number is not None and number < 1:
            raise UsageError(f"a {name} of {number} rows is not possible", fix="Give 1 or more")
    inputs = [input] if isinstance(input, str | Path) else list(input)
    folder = Path(output).resolve()
    target = _folder_from_path(output)
    files = _parquet_files(inputs)
    check_paths(inputs, files, target)
    checked(ask)
    _check_columns(files, ask)
    require("ray", "ray")
    with disk_errors(folder), workspace(target) as work, _staging(folder, work) as staging:
        with ray_errors(), connected(ray_address, progress):
            plan = plan_on_cluster(ask)
            started = time.perf_counter()
            windows = -(-(shard_rows or _WINDOWS_OF_A_PART * plan.work.window) // plan.work.window)
            _write(with_workers(_dataset(files), plan), staging, windows * plan.work.window)
            seconds = time.perf_counter() - started
        parts = _parts(staging, files)
        _put_in_place(parts, work, _record(ask, plan, files))
    return _summary(parts, seconds, plan, Path(output))


@contextmanager
def connected(address: str | None, progress: bool) -> Iterator[None]:
    """Ray, started or connected to where this process is not yet; it is left as it was."""
    import ray
    from ray.data import DataContext

    for name, level in (
        ("ray.data", logging.WARNING),
        ("ray.data._internal.progress", logging.ERROR),
    ):
        logging.getLogger(name).setLevel(level)
    mine = not ray.is_initialized()
    if mine:
        _start(ray, address)
    context = DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, progress
    try:
        yield
    finally:
        context.enable_progress_bars = before
        if mine:
            ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    # A tool that runs a file should not report to anybody that it did.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is not None:
            ray.init(address, **quiet)
            return
        cores = max(_LEAST_CORES, usable_cores())
        ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise EnvironmentProblem(
            f"Ray cannot be reached: {first_line(error)}",
            where=address or "",
            fix="Give the address of a cluster that runs: --ray-address HOST:6379",
        ) from error


def _folder_from_path(output: str | Path) -> Output:
    text = str(output)
    if text == STDOUT or not (text.endswith("/") or Path(output).is_dir()):
        raise UsageError(
            "a Ray job writes a folder of Parquet files",
            where=text,
            fix="End the output's name with /",
        )
    return Output(Path(output), True, Format(PARQUET))


def _parquet_files(inputs: Sequence[str | Path]) -> list[InputFile]:
    if STDIN in map(str, inputs):
        raise UsageError("a Ray job cannot read standard input", fix="Give Parquet files")
    files = files_from_inputs(inputs, None)
    if files[0].format.kind != PARQUET:
        raise UsageError(
            f"a Ray job reads Parquet files, not {files[0].format.kind}",
            where=files[0].name,
            fix="Run it on one machine: tfc run without --ray; or convert the files",
        )
    return files


def _check_columns(files: Sequence[InputFile], ask: Ask) -> None:
    """Refuse before any worker starts what each of them would refuse."""
    paths = [file.path for file in files if file.path is not None]
    check_same_columns(paths)
    check_text_columns(schema_of_parquet(paths[0]), ask.columns, str(paths[0]))


@contextmanager
def _staging(folder: Path, work: Workspace) -> Iterator[Path]:
    """A new hidden folder beside the output's, which is gone when the block ends."""
    if work.finished() is not None:
        raise UsageError(
            "a finished job is in this folder",
            where=str(folder),
            fix="Choose another output folder, or remove this one",
        )
    staging = folder.with_name(f".{folder.name}{_STAGING}")
    shutil.rmtree(staging, ignore_errors=True)  # of a job that was killed
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _dataset(files: Sequence[InputFile]) -> Any:
    import ray.data

    paths = [str(file.path.resolve()) for file in files if file.path is not None]
    # Columns come from the files alone: none are made of folders that are called year=2026.
    return ray.data.read_parquet(paths, partitioning=None, file_extensions=None)


def _write(dataset: Any, folder: Path, least_rows: int) -> None:
    """Files named by task: what a task that ran again writes replaces what it wrote before."""
    dataset.write_parquet(
        str(folder),
        min_rows_per_file=least_rows,
        row_group_size=GROUP_ROWS,
        compression="zstd",
    )


def _parts(staging: Path, files: Sequence[InputFile]) -> dict[Path, Shard]:
    """What Ray wrote, counted.

    Raises:
        BadData: there is no row, or none could be used.
    """
    parts = {path: _counted(path) for path in sorted(staging.glob("*.parquet"))}
    if not parts:
        raise empty_input(files[0].name)
    if not any(part.rows for part in parts.values()):
        first = pq.read_table(next(iter(parts)), columns=[REASON])[REASON][0].as_py()
        raise BadData(
            f"not one of its {sum(part.bad_rows for part in parts.values())} rows can be used;"
            f" one of them: {first}",
            where=files[0].name,
            fix="Give rows with a text each, and name the field that holds it (--text-column)",
        )
    return parts


def _counted(path: Path) -> Shard:
    reasons = pq.read_table(path, columns=[REASON])[REASON]
    good, size = reasons.null_count, path.stat().st_size
    return Shard(good, len(reasons) - good, 0, 0, Place(), bytes=size, error_bytes=0)


def _put_in_place(parts: Mapping[Path, Shard], work: Workspace, record: dict[str, Any]) -> None:
    for number, path in enumerate(parts):
        sync(path)
        os.replace(path, work.part(number))
    sums = {name: sum(getattr(p, name) for p in parts.values()) for name in ("rows", "bad_rows")}
    work.put_in_place(list(parts.values()), {"job": record, "sums": sums})


def _record(ask: Ask, plan: Plan, files: Sequence[InputFile]) -> dict[str, Any]:
    """What ``_SUCCESS`` says of the job."""
    return {
        "engine": plan.chosen.engine,
        "inputs": identities(files),
        "options": json.loads(json.dumps(ask.options, default=str)),
        "ray": {"workers": plan.pool.workers, "threads": plan.pool.threads},
        "tfc": {"version": importlib.metadata.version("tfc")},
    }


def _summary(parts: Mapping[Path, Shard], seconds: float, plan: Plan, folder: Path) -> RaySummary:
    rows = sum(part.rows for part in parts.values())
    return RaySummary(
        rows=rows,
        bad_rows=sum(part.bad_rows for part in parts.values()),
        seconds=seconds,
        rows_per_second=rows / seconds,
        engine=plan.chosen.engine,
        verdict=plan.chosen.verdict,
        hardware=plan.chosen.hardware,
        workers=plan.pool.workers,
        threads=plan.pool.threads,
        output=folder,
    )
