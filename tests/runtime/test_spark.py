"""Predictions as a Spark column, in a real local session with two Python workers.

Spark is not in `tfc[dev]`: it is 400 MB, and needs Java. These run where both are installed, with
`pip install 'tfc[spark]'`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tfc.errors import MissingPackage, UsageError, is_installed
from tfc.manifest import Signature, Task, TensorSpec
from tfc.runtime import Session, spark
from tfc.runtime.predictor import Outcome
from tfc.runtime.spark import prediction_udf

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "spark_job.py"
TEXTS = [None if row == 3 else f"text {row} " + "word " * (row % 23) for row in range(50)]
needs_spark = pytest.mark.skipif(
    not is_installed("pyspark") or shutil.which("java") is None,
    reason="Spark or Java is not installed: pip install 'tfc[spark]', and Java 17",
)
# Spark leaves sockets to the garbage collector.
quiet = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestWarning")


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        running = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "16").getOrCreate()
        running.sparkContext.setLogLevel("ERROR")
        yield running
        running.stop()


@needs_spark
@quiet
@pytest.mark.ort
def test_predictions_are_a_column(session: Any, tiny_artifact: Path) -> None:
    session.sparkContext.addFile(str(tiny_artifact), recursive=True)
    frame = session.createDataFrame(list(enumerate(TEXTS)), "id long, text string")
    predict = prediction_udf(tiny_artifact, shipped_as=tiny_artifact.name, window=8)
    found = frame.repartition(2).withColumn("prediction", predict("text"))
    kinds = dict(found.dtypes)
    assert kinds["prediction"] == (
        "struct<label:string,score:double,scores:array<double>,error:string>"
    )
    rows = [row.prediction for row in found.orderBy("id").collect()]
    bad = rows.pop(3)
    assert (bad.label, bad.score) == (None, None)
    assert set(bad.scores) == {None}
    assert bad.error == "this is a NoneType, not a text"
    with Session.load(tiny_artifact, threads=1) as loaded:
        expected = loaded.predict([text for text in TEXTS if text is not None])
        labels = loaded.task.labels
    for row, wanted in zip(rows, expected, strict=True):
        assert (row.label, row.error) == (wanted["label"], None)
        assert row.score == pytest.approx(wanted["score"], abs=1e-5)
        assert row.scores == pytest.approx([wanted["scores"][name] for name in labels], abs=1e-5)


@needs_spark
@pytest.mark.ort
def test_the_example(tiny_artifact: Path, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["a", "b c"]}), tmp_path / "in.parquet")
    done = subprocess.run(
        [sys.executable, EXAMPLE, tiny_artifact, tmp_path / "in.parquet", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    found = pq.read_table(tmp_path / "out").to_pylist()
    assert sorted(row["text"] for row in found) == ["a", "b c"]
    assert all(0 < row["prediction"]["score"] <= 1 for row in found)


@pytest.mark.skipif(is_installed("pyspark"), reason="Spark is installed")
def test_without_spark() -> None:
    with pytest.raises(MissingPackage, match=r"pip install 'tfc\[spark\]'"):
        prediction_udf("anything")


@dataclass
class Model:
    """What the fields follow from."""

    task: Task
    signature: Any = None


def test_fields_follow_from_the_model() -> None:
    def names(task: Task) -> list[str]:
        return [field.name for field in spark._flat_fields(cast("Any", Model(task)))]

    labelled = Task("text-classification", "single_label", ["a", "b"])
    assert names(labelled) == ["label", "score", "scores"]
    assert names(Task("zero-shot-classification")) == ["label", "score"]
    assert names(Task("question-answering")) == ["answer", "score", "start", "end"]
    with pytest.raises(UsageError, match="token-classification are nested"):
        names(Task("token-classification"))


def test_a_bad_row_has_a_vector_of_nan() -> None:
    (wanted,) = spark.prediction_fields(
        Task("feature-extraction"),
        Signature([], [TensorSpec("embedding", "float32", ["batch", 2])]),
    )
    good = Outcome({"embedding": np.ones(2, np.float32)})
    found = spark._vectors([Outcome(error=UsageError("no")), good], wanted)
    assert found.dtype == np.float32
    assert json.dumps(found.tolist()) == "[[NaN, NaN], [1.0, 1.0]]"
