"""An artifact's engine as a function of Spark columns: `prediction_udf`.

It is made with Spark's own `predict_batch_udf`, and needs ``pip install 'tfc[spark]'`` on the
driver and the executors; importing this module does not load Spark. Every Python worker of Spark
loads the engine once, without torch, and keeps it for its later tasks.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import UsageError, require
from tfc.manifest import Manifest
from tfc.manifest import Task as TaskRecord
from tfc.runtime.assembly import takes_tensors_only
from tfc.runtime.batching import CPU, default_plan
from tfc.runtime.formats.predictions import (
    INTEGER,
    NUMBER,
    SCORES,
    TEXT,
    VECTOR,
    Field,
    prediction_fields,
)
from tfc.runtime.predictor import Outcome
from tfc.runtime.session import Session, window_of
from tfc.runtime.tasks import EVERY_TASK, MEDIA_TASKS
from tfc.runtime.tasks.options import options_from_values

Array = npt.NDArray[Any]
ERROR = "error"
# Spark's scalar types for the kinds of fields; `predict_batch_udf` has these and arrays of them.
_SCALARS = {TEXT: "StringType", NUMBER: "DoubleType", INTEGER: "LongType"}


@dataclass(frozen=True)
class _Work:
    """What every Python worker does; `shipped_as` is the artifact's name among Spark's files."""

    artifact: str
    shipped_as: str | None
    engine: str | None
    threads: int
    window: int
    task: TaskRecord
    fields: tuple[Field, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def prediction_udf(
    artifact: str | Path,
    *,
    shipped_as: str | None = None,
    engine: str | None = None,
    threads: int = 1,
    pairs: bool | None = None,
    window: int | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """A function of a column of texts, or of two columns for pairs, that gives their predictions.

    Its type follows from the model alone. Embeddings are an array of floats. Any other prediction
    is a struct of those fields of `tfc.runtime.tasks` that are texts or numbers, with ``scores`` as
    an array in the order of the model's labels, and ``error``: null, or why there is no prediction.
    Of a text that cannot be used (a null) the other fields are null, and so are all numbers of
    ``scores`` or of the embedding.

    Args:
        artifact: its folder, which the driver reads the types from.
        shipped_as: the name under which executors have it, where it was given to
            ``SparkContext.addFile(path, recursive=True)`` or ``addArchive(path + "#name")``; left
            out, they read the folder `artifact`, under the same path.
        engine: the engine's name; left out, the best one that an executor can run.
        threads: CPU threads of each Python worker: Spark runs ``spark.executor.cores`` divided by
            ``spark.task.cpus`` of them at once, so this is best ``spark.task.cpus``.
        pairs: whether texts are pairs; left out, what the task says.
        window: how many rows are sorted by length together; Spark hands over no more than
            ``spark.sql.execution.arrow.maxRecordsPerBatch`` of them.
        options: what the task lets a call choose, and `too_long`, as in `Session.predict`.

    Raises:
        MissingPackage: Spark is not installed.
        BadArtifact: there is no artifact here.
        UsageError: the model reads no texts, its predictions have no columns that
            `predict_batch_udf` could give, or it has no such option.
    """
    require("pyspark", "spark")
    from pyspark.ml.functions import predict_batch_udf

    if threads < 1 or (window is not None and window < 1):
        raise UsageError(
            f"{threads} threads and a window of {window} rows are not possible",
            fix="Give 1 or more",
        )
    manifest = Artifact.open(artifact).manifest
    kind = _task(manifest)
    own = {name: value for name, value in options.items() if name != "too_long"}
    options_from_values(manifest.task.name, kind.options, own)
    work = _Work(
        artifact=str(Path(artifact).resolve()),
        shipped_as=shipped_as,
        engine=engine,
        threads=threads,
        window=window or window_of(manifest.task, default_plan(CPU)),
        task=manifest.task,
        fields=_flat_fields(manifest),
        options=options,
    )
    two = kind.columns.pair is not None if pairs is None else pairs
    udf: Callable[..., Any] = predict_batch_udf(
        functools.partial(_function_of_arrays, work, two),
        return_type=_type(work.fields),
        batch_size=work.window,
    )
    return udf


def _task(manifest: Manifest) -> Any:
    name = manifest.task.name
    if name in MEDIA_TASKS or name not in EVERY_TASK or manifest.preprocess is None:
        raise (
            takes_tensors_only(name)
            if name not in MEDIA_TASKS
            else UsageError(
                f"a Spark column holds texts, and {name} reads files", fix="Run it with: tfc run"
            )
        )
    return EVERY_TASK[name]


def _flat_fields(manifest: Manifest) -> tuple[Field, ...]:
    """The fields that have a type in `predict_batch_udf`: it knows scalars and arrays of them."""
    task = manifest.task
    kinds = {VECTOR, *_SCALARS, *([SCORES] if task.labels else [])}
    fields = prediction_fields(task, manifest.signature)
    found = tuple(each for each in fields if each.kind in kinds)
    if not found:
        raise UsageError(
            f"the predictions of {task.name} are nested, and Spark's predict_batch_udf gives none"
            " such",
            fix="Write them as Parquet, for Spark to read: tfc run -o folder/ --output-format"
            " parquet",
        )
    return found


def _type(fields: Sequence[Field]) -> Any:
    """The Spark type of a prediction."""
    from pyspark.sql import types

    if fields[0].kind == VECTOR:
        return types.ArrayType(types.FloatType())
    kinds = {kind: getattr(types, name)() for kind, name in _SCALARS.items()}
    kinds[SCORES] = types.ArrayType(types.DoubleType())
    named = [types.StructField(each.name, kinds[each.kind]) for each in fields]
    return types.StructType([*named, types.StructField(ERROR, kinds[TEXT])])


def _function_of_arrays(work: _Work, pairs: bool) -> Callable[..., Any]:
    """In a Python worker: arrays of texts → predictions, as `predict_batch_udf` wants both."""
    path = work.artifact
    if work.shipped_as is not None:
        from pyspark import SparkFiles

        path = SparkFiles.get(work.shipped_as)
    session = _session(path, work.engine, work.threads)

    def of_items(items: Sequence[object]) -> Any:
        found = list(session.outcomes(items, window=work.window, **work.options))
        return _columns(found, work)

    def of_texts(texts: Array) -> Any:
        return of_items([_text(text) for text in texts])

    def of_pairs(texts: Array, others: Array) -> Any:
        both = zip(texts, others, strict=True)
        return of_items([(_text(text), _text(other)) for text, other in both])

    return of_pairs if pairs else of_texts


@functools.cache
def _session(path: str, engine: str | None, threads: int) -> Session:
    """One for each engine in a process, which lives as long as that."""
    # The tokenizers' own pool would take every core of the machine, and workers share it.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    return Session.load(path, engine, threads)


def _text(value: object) -> object:
    """The text; None for what pandas puts in the place of a null."""
    return value if isinstance(value, str) else None


def _columns(outcomes: Sequence[Outcome], work: _Work) -> Any:
    if work.fields[0].kind == VECTOR:
        return _vectors(outcomes, work.fields[0])
    columns = {each.name: _column(outcomes, each, work.task.labels) for each in work.fields}
    reasons = [None if each.error is None else each.error.what for each in outcomes]
    return {**columns, ERROR: np.array(reasons, object)}


def _column(outcomes: Sequence[Outcome], wanted: Field, labels: Sequence[str]) -> Array:
    values = [each.prediction.get(wanted.name) for each in outcomes]
    if wanted.kind != SCORES:
        return np.array(values, object)
    none = dict.fromkeys(labels, np.nan)
    return np.array([[(value or none)[label] for label in labels] for value in values])


def _vectors(outcomes: Sequence[Outcome], wanted: Field) -> Array:
    """`[rows, size]`, float32; NaN for none, which Spark makes null.

    Where every row is bad and the size is not known, there is one column.
    """
    found = [each.prediction.get(wanted.name) for each in outcomes]
    size = wanted.size or next((len(vector) for vector in found if vector is not None), 1)
    none = np.full(size, np.nan, np.float32)
    return np.stack(
        [none if vector is None else np.asarray(vector, np.float32) for vector in found]
    )
