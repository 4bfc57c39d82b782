"""How many workers a Ray job has, and what each takes of the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfc.errors import EnvironmentProblem, UsageError

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Pool:
    """`workers` actors, each with `threads` CPU threads and `gpus` GPUs (0 or 1)."""

    workers: int
    threads: int
    gpus: int

    @property
    def reserved(self) -> float:
        """The CPU cores that each worker holds of Ray's count.

        Fewer than its threads: the tasks that read, cut and write rows wait for a whole core each,
        and workers that held them all would wait for rows forever.
        """
        return self.threads - 1 if self.threads > 1 else 0.5


def pool_from_nodes(
    nodes: Sequence[Resources], uses_gpu: bool, workers: int | None, threads: int | None
) -> Pool:
    """Divide the cores of a cluster among workers, so that they do not take each other's.

    Left out, there is a worker for each GPU if the engine uses one, else one for each machine: one
    engine over all cores of a machine shares its weights and its cache. `threads` left out are as
    many as leave room for all workers.

    Args:
        nodes: of each machine what Ray has of it: ``{"CPU": 8.0, "GPU": 1.0, …}``.
        uses_gpu: whether each worker takes a GPU.
        workers: how many the caller wants.
        threads: how many cores each is to take.

    Raises:
        UsageError: a number is below 1, or the machines do not hold so many workers.
        EnvironmentProblem: the cluster has no machine with a core.
    """
    for name, number in (("workers", workers), ("threads", threads)):
        if number is not None and number < 1:
            raise UsageError(f"{number} {name} are not possible", fix="Give 1 or more")
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if not any(cores):
        raise EnvironmentProblem(
            "the Ray cluster has no CPU core to run on", fix="Check it with: ray status"
        )
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    count = workers or (sum(gpus) if uses_gpu else sum(1 for number in cores if number))
    each = threads or max(cores)
    while not threads and each > 1 and _places(cores, gpus, each, uses_gpu) < count:
        each -= 1
    places = _places(cores, gpus, each, uses_gpu)
    if places < count:
        took = f"{_counted(each, 'core')} each" + (" and a GPU" if uses_gpu else "")
        raise UsageError(
            f"the Ray cluster has room for {_counted(places, 'worker')} of {took}, not for {count}",
            fix="Give fewer --workers, or fewer --threads",
        )
    return Pool(count, each, int(uses_gpu))


def _places(cores: Sequence[int], gpus: Sequence[int], each: int, uses_gpu: bool) -> int:
    """How many workers of `each` cores the machines hold."""
    pairs = zip(cores, gpus, strict=True)
    return sum(min(core // each, gpu) if uses_gpu else core // each for core, gpu in pairs)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
