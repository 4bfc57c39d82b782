"""One worker of a Ray job: an engine in an actor, which predicts tables of rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfc.runtime.formats.predictions import prediction_fields
from tfc.runtime.rows import Columns
from tfc.runtime.session import Session

PREDICTION = "prediction"
REASON = "prediction_error"


@dataclass(frozen=True)
class Work:
    """What every worker of a job does.

    Attributes:
        artifact: its folder, under the same name on every machine.
        engine: the engine's name, which is the same for all.
        threads: CPU threads of each worker.
        columns: where the texts are.
        window: how many rows are sorted by length together.
        half: whether embeddings are float16.
        options: what a call of `Session.outcomes` is given besides.
    """

    artifact: str
    engine: str
    threads: int
    columns: Columns
    window: int
    half: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """The engine that the workers load, what parity says of it, and what it runs on."""

    engine: str
    verdict: str
    hardware: str


def engine_loaded_here(artifact: str, engine: str | None, require_verified: bool) -> Chosen:
    """The engine that this machine runs, loaded once to see that it can; asked of a worker's.

    Raises:
        BadArtifact, BackendUnavailable, CheckFailed, UsageError: as `Session.load`.
    """
    with Session.load(artifact, engine, threads=1, require_verified=require_verified) as session:
        return Chosen(session.engine_name, session.verdict, session.hardware)


class Worker:
    """Called with tables of rows. The engine is loaded once, when the actor starts.

    Raises:
        BadData: a table has no column of texts where `Work.columns` says.
        CheckFailed: the engine gives values that are not finite numbers.
    """

    def __init__(self, work: Work) -> None:
        # The tokenizers' own pool would take every core of the machine, and workers share it.
        os.environ.setdefault("RAYON_NUM_THREADS", str(work.threads))
        self._work = work
        self._session = Session.for_jobs(work.artifact, work.engine, work.threads)
        self._fields = prediction_fields(self._session.task, self._session.signature)

    def __call__(self, table: Any) -> Any:
        """The rows with two more columns: their predictions, and why there is none."""
        from tfc.runtime.formats.arrow import prediction_columns
        from tfc.runtime.formats.parquet import check_text_columns, items_of_batch

        work = self._work
        check_text_columns(table.schema, work.columns)
        items = (
            item for batch in table.to_batches() for item in items_of_batch(batch, work.columns)
        )
        outcomes = list(self._session.outcomes(items, window=work.window, **work.options))
        found = prediction_columns(outcomes, self._fields, work.half)
        names = [name for name in table.column_names if name not in (PREDICTION, REASON)]
        table = table.select(names)
        for name, column in zip((PREDICTION, REASON), found, strict=True):
            table = table.append_column(name, column)
        return table
