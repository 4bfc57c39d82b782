"""Lanes for concurrent callers: made when they are needed, up to a number, and used one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from tfc.errors import UsageError


class HasProfile(Protocol):
    """A lane: `profile` is the optimization profile that it ran with last."""

    profile: int


Lane = TypeVar("Lane", bound=HasProfile)


class LanePool(Generic[Lane]):
    """Hands out lanes. A caller waits where all of them are in use.

    Args:
        make: makes a lane; called by the thread that needs it, one at a time.
        most: how many there may be.
    """

    def __init__(self, make: Callable[[], Lane], most: int) -> None:
        self._make = make
        self._most = most
        self._free: list[Lane] = []
        self._all: list[Lane] = []
        self._closed = False
        self._changed = threading.Condition()

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Every lane that was made."""
        with self._changed:
            return tuple(self._all)

    @contextmanager
    def lane(self, profile: int) -> Iterator[Lane]:
        """A lane for one batch of this profile.

        A free one that ran with the profile last needs no switch; a new one is better than
        a switch, which waits for the GPU; a free one of another profile is better than to wait.

        Raises:
            UsageError: the pool is closed.
        """
        taken = self._taken(profile)
        try:
            yield taken
        finally:
            with self._changed:
                self._free.append(taken)
                self._changed.notify_all()

    def close(self) -> tuple[Lane, ...]:
        """Hand out nothing more; gives the lanes when none is in use. The second time, none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == len(self._all))
            lanes = tuple(self._all)
            self._all, self._free = [], []
            return lanes

    def _taken(self, profile: int) -> Lane:
        with self._changed:
            while True:
                if self._closed:
                    raise UsageError("this engine is closed", fix="Load it again")
                same = [lane for lane in self._free if lane.profile == profile]
                if same:
                    return self._out(same[-1])  # the latest: its memory is warm
                if len(self._all) < self._most:
                    made = self._make()
                    self._all.append(made)
                    return made
                if self._free:
                    return self._out(self._free[0])
                self._changed.wait()

    def _out(self, lane: Lane) -> Lane:
        self._free.remove(lane)
        return lane
