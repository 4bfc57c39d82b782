"""ONNX Runtime's sessions: how they are made, and that one file is loaded once in a process."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.vnni import integer_products_saturate

_ERROR = 3  # a severity of ONNX Runtime's log


@dataclass(frozen=True)
class SessionSettings:
    """What ONNX Runtime's sessions are made with: execution providers in order, CPU threads."""

    providers: tuple[str, ...]
    threads: int


def shared_session(ort: Any, engine: Path, settings: SessionSettings) -> Any:
    """ONNX Runtime's session for a file, the same one for everybody in this process who has it.

    So its weights, and what it packs them to for its kernels, are in memory once; ONNX Runtime's
    own container of packed weights is not in its Python API. A file that was written anew, and a
    forked child, which lacks the session's threads, get a session of their own.
    """
    if not engine.is_file():
        return _new_session(ort, engine, settings)  # raises
    found = engine.stat()
    key = (engine.resolve(), found.st_mtime_ns, found.st_size, settings, os.getpid())
    session = _sessions.get(key)
    if session is None:
        # Without a lock: two threads at once load it twice, and a fork finds none held.
        session = _sessions[key] = _new_session(ort, engine, settings)
    return session


_sessions: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()


def _new_session(ort: Any, engine: Path, settings: SessionSettings) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = settings.threads
    # Threads that wait without spinning: a session runs several batches at once, and spinning
    # takes the cores from the others (on two cores, 1.3 times the CPU time per batch).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if integer_products_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = _ERROR
    return ort.InferenceSession(str(engine), options, providers=list(settings.providers))
