"""Batch jobs over the GPUs or the NUMA nodes of one machine: an engine in a process for each.

`DeviceSession` takes the place of a `Session` in `tfc.runtime.jobs.run_job`; it is behind
``tfc run --devices``. Windows of rows go from the one reader to whichever process is free, and the
outcomes come back in order. A window runs whole on one device, so the output is, to the byte, that
of one device of the same kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfc.runtime.devices.session import DeviceSession

__all__ = ["DeviceSession"]


def __getattr__(name: str) -> Any:
    if name == "DeviceSession":
        from tfc.runtime.devices.session import DeviceSession

        return DeviceSession
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
