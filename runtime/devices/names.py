"""``all``, ``0,1``, ``numa`` or ``cpu:0-3,cpu:4-7`` → the devices of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfc.errors import EnvironmentProblem, UsageError
from tfc.runtime.gpu import Gpu

ALL, NUMA = "all", "numa"
VISIBLE = "CUDA_VISIBLE_DEVICES"
_CORES = "cpu:"
_FORMS = "Give all, numa, numbers of GPUs (0,1), or sets of cores (cpu:0-3,cpu:4-7)"


@dataclass(frozen=True)
class Device:
    """What one process runs on.

    Attributes:
        name: as it is called in messages: ``GPU 1``, ``node 0``, ``cpu:0-3``.
        cores: the cores that the process is bound to; None leaves it those of its parent.
        gpu: the value of ``CUDA_VISIBLE_DEVICES`` that shows it its GPU alone; empty for none.
        threads: CPU threads that are its share.
    """

    name: str
    cores: frozenset[int] | None
    gpu: str
    threads: int


@dataclass(frozen=True)
class Machine:
    """What there is to choose from.

    Attributes:
        gpus: in CUDA's order.
        why_no_gpu: why there are none.
        visible: the value of ``CUDA_VISIBLE_DEVICES``; None where it is not set.
        cores: those that this process may use.
        nodes: of each NUMA node its cores, in order of the nodes' numbers.
        binds: whether a process can be bound to cores here.
    """

    gpus: Sequence[Gpu]
    why_no_gpu: str
    visible: str | None
    cores: frozenset[int]
    nodes: Mapping[int, frozenset[int]]
    binds: bool = True


def devices_from_text(text: str, machine: Machine) -> tuple[Device, ...]:
    """The devices that `text` names; ``all`` is every GPU, or every NUMA node where there is none.

    Raises:
        UsageError: the text is none of the forms, names a device twice, or names GPUs of two kinds.
        EnvironmentProblem: this machine has no such GPU or core, or cannot bind processes to cores.
    """
    words = [word.strip() for word in text.split(",")]
    if words == [ALL]:
        everything = [str(number) for number in range(len(machine.gpus))]
        return _gpus(everything, machine) if everything else _nodes(machine)
    if words == [NUMA]:
        return _nodes(machine)
    if all(word.startswith(_CORES) for word in words):
        return _core_sets(words, machine)
    if all(word.isdecimal() for word in words):
        return _gpus(words, machine)
    raise UsageError(f"'{text}' names no devices", fix=_FORMS)


def _gpus(words: Sequence[str], machine: Machine) -> tuple[Device, ...]:
    numbers = [int(word) for word in words]
    if len(set(numbers)) < len(numbers):
        raise UsageError("a GPU is named twice", fix="Name each once")
    if not machine.gpus:
        raise EnvironmentProblem(
            f"there is no GPU to run on: {machine.why_no_gpu}", fix="Use the cores: --devices numa"
        )
    if max(numbers) >= len(machine.gpus):
        raise EnvironmentProblem(
            f"there is no GPU {max(numbers)}: this process sees {len(machine.gpus)}, numbered from"
            " 0",
            fix="Give --devices all, or numbers of those that are there",
        )
    kinds = {machine.gpus[number].name for number in numbers}
    if len(kinds) > 1:
        raise UsageError(
            f"the GPUs are of different kinds ({', '.join(sorted(kinds))}), and the numbers of a"
            " row would depend on where it ran",
            fix="Name GPUs of one kind: --devices 0,1",
        )
    shown = None if machine.visible is None else machine.visible.split(",")
    threads = max(1, len(machine.cores) // len(numbers))
    return tuple(
        Device(f"GPU {number}", None, str(number) if shown is None else shown[number], threads)
        for number in numbers
    )


def _nodes(machine: Machine) -> tuple[Device, ...]:
    """A device for each NUMA node with cores that this process may use."""
    _check_binds(machine)
    usable = {number: cores & machine.cores for number, cores in machine.nodes.items()}
    found = {f"node {number}": cores for number, cores in usable.items() if cores}
    return _bound(found or {"node 0": machine.cores})


def _core_sets(words: Sequence[str], machine: Machine) -> tuple[Device, ...]:
    _check_binds(machine)
    sets = {word: _cores_of(word) for word in words}
    named = [core for word in words for core in sets[word]]
    twice = sorted({core for core in named if named.count(core) > 1})
    if twice:
        raise UsageError(f"core {twice[0]} is in two devices", fix="Give sets without a common one")
    missing = sorted(set(named) - machine.cores)
    if missing:
        raise EnvironmentProblem(
            f"core {missing[0]} is not among those that this process may use:"
            f" {', '.join(map(str, sorted(machine.cores)))}",
            fix="Choose others, or start tfc with them: taskset",
        )
    return _bound(sets)


def _cores_of(word: str) -> frozenset[int]:
    """``cpu:0-1+4`` → 0, 1 and 4."""
    try:
        found = cores_from_ranges(word.removeprefix(_CORES).replace("+", ","))
    except ValueError:
        found = frozenset()
    if not found:
        raise UsageError(f"'{word}' names no cores", fix="Write cpu:0-3, or cpu:0-3+8-11")
    return found


def cores_from_ranges(text: str) -> frozenset[int]:
    """``0-1,4`` → 0, 1 and 4, as Linux writes lists of cores; an empty text is none.

    Raises:
        ValueError: it is no such list.
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        found.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)


def _bound(sets: Mapping[str, frozenset[int]]) -> tuple[Device, ...]:
    return tuple(Device(name, cores, "", len(cores)) for name, cores in sets.items())


def _check_binds(machine: Machine) -> None:
    if not machine.binds:
        raise EnvironmentProblem(
            "this system cannot bind a process to cores",
            fix="Leave --devices out: one engine uses every core",
        )
