"""One worker as its parent sees it: the process, the socket, and the windows without an answer."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from tfc.runtime.devices.messages import Begin, Done, End, Failed, Load, Said, Window
from tfc.runtime.devices.names import VISIBLE, Device

_CODE = "from tfc.runtime.devices.worker import main; main()"
_STDERR = 2


class Died(Exception):
    """A worker's process ended; its text says how."""


class WorkerProcess:
    """A worker that was started for a device, and goes on loading meanwhile.

    Attributes:
        device: what it runs on.
        waiting: the windows that it was given and has not answered, by number.
        streaming: whether it holds back its last window for one that may follow.
        failed: whether it has raised an error, and takes nothing more.
    """

    def __init__(self, device: Device, load: Load) -> None:
        self.device = device
        self.waiting: dict[int, Sequence[object]] = {}
        self.streaming = self.failed = False
        mine, theirs = socket.socketpair()
        with theirs:
            # Not by `multiprocessing`: a new interpreter imports the caller's script no second
            # time, and sees its GPU alone from the start. Ctrl-C is the parent's to handle, so
            # the worker is in another process group than the terminal's.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(theirs.fileno())],
                env=_environment(device, load.threads),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                start_new_session=True,
            )
        self.connection = Connection(mine.detach())
        self._send(load)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def give(self, number: int, items: Sequence[object], settings: Mapping[str, Any]) -> None:
        """Let it predict a window."""
        self.waiting[number] = items
        if not self.streaming:
            self._send(Begin(settings))
            self.streaming = True
        self._send(Window(number, items))
        if len(items) < settings["window"]:
            self.end()  # the worker cuts what it reads into windows of that size itself

    def end(self) -> None:
        """Tell it that no window follows for now."""
        self._send(End())
        self.streaming = False

    def said(self) -> Said:
        """What it says next.

        Raises:
            Died: it says nothing any more.
        """
        try:
            message: Said = self.connection.recv()
        except (EOFError, OSError) as error:
            raise Died(self._ended()) from error
        if isinstance(message, Done):
            del self.waiting[message.number]
        self.failed = self.failed or isinstance(message, Failed)
        return message

    def close(self) -> None:
        """End it, whatever it does. Safe to call twice."""
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def _send(self, message: object) -> None:
        # Of a worker that has died `said` tells; what it was given goes to another one then.
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def _ended(self) -> str:
        self.connection.close()
        code = self._process.wait()
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was killed by {signal.Signals(-code).name}"


def _environment(device: Device, threads: int) -> dict[str, str]:
    """The parent's, with the GPU to see, and modules found where the parent finds them."""
    return {
        # The tokenizers' own pool would take every core of the machine, and workers share it.
        "RAYON_NUM_THREADS": str(threads),
        **os.environ,
        VISIBLE: device.gpu,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
