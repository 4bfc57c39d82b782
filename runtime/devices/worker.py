"""The process of one device: it loads the engine once, and predicts the windows that it is given.

It ends when its parent does, however that ends: the socket between them closes then.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

from tfc.errors import TfcError
from tfc.runtime.devices.messages import Begin, Done, End, Failed, Load, Loaded, Ran, Said, Window

Inbox = queue.SimpleQueue[Any]


def main() -> None:
    """Serve the socket whose number is the first argument, until it closes."""
    # A stop is the parent's to give, between shards; where a scheduler signals all processes of a
    # job, this one goes on until the parent closes the socket.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    load = inbox.get()
    if load.cores is not None:
        os.sched_setaffinity(0, load.cores)
    try:
        _serve(load, inbox, connection)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the parent is gone


def _read(connection: Connection, inbox: Inbox) -> None:
    """Take what comes at any time, so that the parent never waits to say it."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # nobody is there to wait for what is running
    except Exception:  # an item that this process cannot unpickle: without a reader it would hang
        traceback.print_exc()
        os._exit(1)


def _serve(load: Load, inbox: Inbox, connection: Connection) -> None:
    from tfc.runtime.session import Session

    try:
        session = Session.load(
            load.artifact, load.engine, load.threads, require_verified=load.require_verified
        )
    except Exception as error:
        _fail(connection, inbox, None, error)
    own = Loaded(
        engine=session.engine_name,
        verdict=session.verdict,
        hardware=session.hardware,
        identity=session.identity,
        window=session.window,
    )
    connection.send(own)
    while True:
        begin: Begin = inbox.get()
        _predict(session, begin, inbox, connection)


def _predict(session: Any, begin: Begin, inbox: Inbox, connection: Connection) -> None:
    """Answer windows until `End`, in their order."""
    waiting: deque[tuple[int, int]] = deque()  # of each window without an answer: number and size
    lock = threading.Lock()  # batches run in several threads

    def items() -> Iterator[object]:
        while not isinstance(message := inbox.get(), End):
            window: Window = message
            waiting.append((window.number, len(window.items)))
            yield from window.items

    def say(message: Said) -> None:
        with lock:
            connection.send(message)

    try:
        outcomes = session.outcomes(
            items(), on_batch=lambda tokens, padded: say(Ran(tokens, padded)), **begin.settings
        )
        while (first := next(outcomes, None)) is not None:
            number, size = waiting[0]
            say(Done(number, [first, *islice(outcomes, size - 1)]))
            waiting.popleft()
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        _fail(connection, inbox, waiting[0][0] if waiting else None, error)


def _fail(connection: Connection, inbox: Inbox, number: int | None, error: Exception) -> None:
    """Say what was raised, and wait for the end of the job."""
    own = error if isinstance(error, TfcError) else None
    trace = "" if own is not None else "".join(traceback.format_exception(error))
    connection.send(Failed(number, own, trace))
    while True:
        inbox.get()
