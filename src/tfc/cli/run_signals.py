"""SIGINT and SIGTERM ask a batch job to stop after its shard; a second one stops it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tfc.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

_SAID = b"tfc: stopping when the current shard is written; again to stop at once\n"
_EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}


class StopRequest:
    """Whether a signal asked to stop, and the exit code that says so."""

    def __init__(self) -> None:
        self.exit_code: int | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.exit_code is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What Python calls for a signal."""
        if self.exit_code is not None:
            raise KeyboardInterrupt
        self.exit_code = _EXIT_CODES[signal.Signals(number)]
        os.write(2, _SAID)  # a stream of Python's may be in the middle of a write


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take both signals while the block runs."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in _EXIT_CODES}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
