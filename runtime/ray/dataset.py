"""A Ray dataset of texts → the same rows with predictions."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.errors import EnvironmentProblem, TfcError, first_line, require
from tfc.runtime.batching import CPU
from tfc.runtime.ray.ask import Ask, checked
from tfc.runtime.ray.pool import Pool, pool_from_nodes
from tfc.runtime.ray.worker import Chosen, Work, Worker, engine_loaded_here
from tfc.runtime.session import window_of
from tfc.runtime.traffic import plan_of_engine

# How often a worker is started again after its process or its machine died. A worker that dies of
# the engine itself dies each time; one of a long job on machines that are taken away, now and then.
MAX_RESTARTS = 20
# How often the rows of a worker that died run again: rows that kill every worker end the job.
MAX_RETRIES = 3


@dataclass(frozen=True)
class Plan:
    """What each worker does, how many there are, and the engine that they load."""

    work: Work
    pool: Pool
    chosen: Chosen


def predict_dataset(
    dataset: Any,
    artifact: str | Path,
    *,
    engine: str | None = None,
    require_verified: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    half_embeddings: bool = False,
    window: int | None = None,
    **options: Any,
) -> Any:
    """The rows of a Ray dataset with their predictions, computed when the result is consumed.

    Two columns are added, in the place of those of the same names. ``prediction`` is the struct
    that `tfc run` writes to Parquet; it is null for a row that cannot be used, and
    ``prediction_error`` says why; for all others that one is null. No row is left out. Ray may give
    the rows in another order.

    Args:
        dataset: a `ray.data.Dataset`.
        artifact: its folder, under the same path on every machine.
        engine: the engine's name; left out, the best one that the cluster can run.
        require_verified: refuse an engine that `tfc verify` did not find to be right.
        workers: how many engines to run; left out, one for each GPU, or for each machine where
            none is used.
        threads: CPU threads of each worker; left out, the cores divided by the workers.
        text_column, pair_column: the columns of texts, as in `tfc.runtime.jobs.run_job`.
        half_embeddings: embeddings as float16.
        window: how many rows are sorted by length together, and run again if their worker dies.
        options: what the task lets a call choose, and `too_long`, as in `Session.predict`.

    Raises:
        MissingPackage: Ray is not installed.
        UsageError: the model reads no texts, has no such option, or the cluster has not enough
            room.
        BadArtifact, BackendUnavailable, CheckFailed: as `Session.load`, on the cluster.
    """
    require("ray", "ray")
    ask = Ask(
        artifact=str(Path(artifact).resolve()),
        engine=engine,
        require_verified=require_verified,
        workers=workers,
        threads=threads,
        text_column=text_column,
        pair_column=pair_column,
        half_embeddings=half_embeddings,
        window=window,
        options=options,
    )
    checked(ask)
    with ray_errors():
        return with_workers(dataset, plan_on_cluster(ask))


def plan_on_cluster(ask: Ask) -> Plan:
    """Divide the connected cluster, with the engine that one of its machines chooses.

    That machine has a GPU if any has one. All workers load the same engine: what is best may
    differ from machine to machine, and numbers with it.

    Raises:
        UsageError: the cluster has not enough room.
        BadArtifact, BackendUnavailable, CheckFailed: as `Session.load`, from the cluster.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
    load = ray.remote(engine_loaded_here).options(num_cpus=1, num_gpus=int(has_gpu))
    wanted = load.remote(ask.artifact, ask.engine, ask.require_verified)
    chosen: Chosen = ray.get(wanted)
    uses_gpu = has_gpu and chosen.hardware != CPU
    pool = pool_from_nodes(nodes, uses_gpu, ask.workers, ask.threads)
    own = plan_of_engine(ask.manifest.engines[chosen.engine], chosen.hardware)
    work = Work(
        artifact=ask.artifact,
        engine=chosen.engine,
        threads=pool.threads,
        columns=ask.columns,
        window=ask.window or window_of(ask.manifest.task, own),
        half=ask.half_embeddings,
        options=ask.options,
    )
    return Plan(work, pool, chosen)


def with_workers(dataset: Any, plan: Plan) -> Any:
    """The dataset through a pool of actors, a window of rows at a time."""
    import ray.data

    work, pool = plan.work, plan.pool
    with warnings.catch_warnings():
        # Ray 2.60 deprecates the one way to say how often to restart, and names no other yet.
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn")
        return dataset.repartition(target_num_rows_per_block=work.window, strict=True).map_batches(
            Worker,
            fn_constructor_args=(work,),
            batch_size=work.window,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool.workers),
            num_cpus=pool.reserved,
            num_gpus=pool.gpus,
            ray_remote_args_fn=_fault_tolerance,
            udf_modifying_row_count=False,
        )


def _fault_tolerance() -> dict[str, int]:
    """What each actor is made with; a call, for Ray takes these as arguments no more."""
    return {"max_restarts": MAX_RESTARTS, "max_task_retries": MAX_RETRIES}


@contextmanager
def ray_errors() -> Iterator[None]:
    """What a worker raised, as it raised it; Ray's own errors as an `EnvironmentProblem`."""
    import ray.exceptions

    try:
        yield
    except TfcError as error:  # Ray's error is a class of both kinds; the plain one is inside
        raise _own_error(error) or error from error
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        own = _own_error(error)
        if own is not None:
            raise own from error
        raise EnvironmentProblem(
            f"Ray ended the job: {_reason(error)}",
            fix="Look into Ray's logs on the machines of the cluster: ray logs",
        ) from error


def _reason(error: BaseException) -> str:
    """What a worker said as it failed to start, of which Ray keeps the text; else Ray's words."""
    found = re.search(rf"^{TfcError.__module__}\.\w+: (.+)$", str(error), re.MULTILINE)
    return first_line(error) if found is None else found[1].rstrip(".")


def _own_error(error: BaseException | None) -> TfcError | None:
    """The error of tfc that lies behind one of Ray's."""
    while error is not None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, TfcError):
            return cause
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None
