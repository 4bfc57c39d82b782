"""The GPUs, cores and NUMA nodes of the machine that this process runs on."""

from __future__ import annotations

import os
from pathlib import Path

from tfc.runtime.devices.names import VISIBLE, Machine, cores_from_ranges
from tfc.runtime.gpu import gpus, why_no_gpu

# Linux's description of the nodes: https://docs.kernel.org/admin-guide/mm/numaperf.html
_NODES = Path("/sys/devices/system/node")


def this_machine() -> Machine:
    """What the system and the driver tell; on systems without NUMA nodes, none of them."""
    binds = hasattr(os, "sched_setaffinity")
    cores = os.sched_getaffinity(0) if binds else range(os.cpu_count() or 1)
    return Machine(
        gpus=gpus(),
        why_no_gpu=why_no_gpu(),
        visible=os.environ.get(VISIBLE),
        cores=frozenset(cores),
        nodes=numa_nodes(_NODES),
        binds=binds,
    )


def numa_nodes(folder: Path) -> dict[int, frozenset[int]]:
    """Of each NUMA node its cores; a node of memory alone has none."""
    found = {
        int(path.parent.name.removeprefix("node")): cores_from_ranges(path.read_text())
        for path in folder.glob("node[0-9]*/cpulist")
    }
    return dict(sorted(found.items()))
