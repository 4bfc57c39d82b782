"""An engine of an artifact → runners, one for each of the model's graphs."""

from __future__ import annotations

from tfc.artifact import Artifact
from tfc.manifest import Engine
from tfc.runtime.backends import backend
from tfc.runtime.backends.base import Runner


def runners_from_engine(
    artifact: Artifact, engine: Engine, threads: int | None = None, streams: int = 1
) -> dict[str, Runner]:
    """Load every graph of an engine, to run on `threads` CPU threads (default: every usable core).

    On the CPU they are shared among `streams` batches at once.

    Raises:
        BadArtifact: a file is missing or damaged.
        BackendUnavailable: the backend cannot run it here.
    """
    files = {graph: artifact.file(file) for graph, file in engine.files.items()}
    runners: dict[str, Runner] = {}
    try:
        for graph, file in files.items():
            runners[graph] = backend(engine.backend).load(file, threads, streams)
    except Exception:
        close_all(runners)
        raise
    return runners


def close_all(runners: dict[str, Runner]) -> None:
    """Close every runner."""
    for runner in runners.values():
        runner.close()
