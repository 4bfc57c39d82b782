"""`tfc run --devices`: what it refuses, and what it says of workers that died."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tfc.cli.console import err
from tfc.errors import UsageError

if TYPE_CHECKING:
    from tfc.runtime.devices import DeviceSession

# Options → why a job on several devices has no use for them, and what to do.
_REFUSED = {
    "ray": ("--devices are of one machine, and --ray finds its own", "Leave one of them out"),
    "shadow": ("rows of several devices are not run again", "Leave --shadow or --devices out"),
}


def refuse_with_devices(devices: str | None, given: Mapping[str, Any]) -> None:
    """Refuse the options that do not go with `--devices`.

    Raises:
        UsageError: one is given.
    """
    for name, (what, fix) in _REFUSED.items():
        if devices is not None and given[name]:
            raise UsageError(what, fix=fix)


def loaded_on_devices(
    artifact: str,
    devices: str,
    engine: str | None,
    threads: int | None,
    require_verified: bool,
    event: Callable[..., None] | None,
) -> DeviceSession:
    """The session; a worker that died is told of by `event`, or as a warning."""
    from tfc.runtime.devices import DeviceSession

    def died(device: str, how: str) -> None:
        if event is not None:
            event("worker died", device=device, how=how)
            return
        err.print(
            f"tfc: warning: the worker on {device} {how}; another takes its place, and its rows"
            " run again",
            soft_wrap=True,
        )

    return DeviceSession.load(artifact, devices, engine, threads, require_verified, died)
