"""Ray jobs without Ray: what is refused, how a cluster is divided, and the columns of a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tfc.cli import cli as group
from tfc.errors import EnvironmentProblem, UsageError
from tfc.runtime import Session
from tfc.runtime.ray.pool import Pool, pool_from_nodes
from tfc.runtime.ray.worker import Work, Worker
from tfc.runtime.rows import Columns

TEXTS = ["hello there", None, "a", "", "word " * 9]


@pytest.fixture
def run(tiny_artifact: Path) -> Callable[..., Result]:
    def call(*arguments: object) -> Result:
        words = ["run", str(tiny_artifact), *map(str, arguments), "--ray"]
        return CliRunner().invoke(group, words)

    return call


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), path)
    return path


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


def test_what_makes_no_sense_with_ray(
    run: Callable[..., Result], table: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text(json.dumps({"text": "a"}))
    out = f"{tmp_path}/out/"
    for arguments, sentence in [
        ((table, "-o", out, "--restart"), "a job with --ray always begins anew"),
        ((table, "-o", out, "--limit", 5), "files in any order, so --limit has no first rows"),
        ((table, "-o", out, "--id-column", "id"), "a bad row stays with all its columns"),
        ((table, "-o", out, "--shadow", "1%"), "rows are not run again on Ray's workers"),
        ((table, "-o", out, "--log-json"), "Ray keeps the log"),
        ((table, "-o", out, "--metrics-file", tmp_path / "m"), "Ray keeps the metrics"),
        ((table, "-o", out, "--output-format", "csv"), "reads and writes Parquet, not csv"),
        ((rows, "-o", out), "a Ray job reads Parquet files, not jsonl"),
        (("-", "-o", out), "a Ray job cannot read standard input"),
        ((table, "-o", "-"), "a Ray job writes a folder of Parquet files"),
        ((table, "-o", tmp_path / "out.parquet"), "a Ray job writes a folder of Parquet files"),
        ((table, "-o", out, "--set", "k=1"), "text-classification has no option 'k'"),
        ((table, "-o", out, "--half-embeddings"), "are no embeddings"),
    ]:
        ended = run(*arguments)
        assert (ended.exit_code, sentence in said(ended)) == (2, True), ended.output
    assert not Path(out).exists()


def test_workers_are_of_ray(tiny_artifact: Path, table: Path, tmp_path: Path) -> None:
    words = ["run", str(tiny_artifact), str(table), "-o", f"{tmp_path}/o/", "--workers", "2"]
    ended = CliRunner().invoke(group, words)
    assert ended.exit_code == 2
    assert "--workers and --ray-address are of jobs with Ray Add --ray" in said(ended)


def test_wrong_columns_and_a_missing_package(
    run: Callable[..., Result], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = run(table, "-o", f"{tmp_path}/out/", "--text-column", "body")
    assert ended.exit_code == 5
    assert "there is no column 'body'; the file has: id, text" in said(ended)
    ended = run(table, "-o", f"{tmp_path}/out/")
    assert ended.exit_code == 4
    assert "the package 'ray' is not installed Install it with: pip install 'tfc[ray]'" in said(
        ended
    )


def test_importing_it_does_not_load_ray() -> None:
    code = "import sys, tfc.runtime.ray, tfc.runtime.ray.job; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_cluster_is_divided() -> None:
    cores, gpus = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}
    assert pool_from_nodes([cores], False, None, None) == Pool(1, 8, 0)
    assert pool_from_nodes([cores, cores], False, None, None) == Pool(2, 8, 0)
    assert pool_from_nodes([cores, cores], False, 1, None) == Pool(1, 8, 0), "of one machine"
    assert pool_from_nodes([cores, cores], False, 3, None) == Pool(3, 4, 0)
    assert pool_from_nodes([cores, gpus], True, None, None) == Pool(2, 8, 1)
    assert pool_from_nodes([cores], False, 4, None) == Pool(4, 2, 0)
    with pytest.raises(UsageError, match="room for 4 workers of 2 cores each, not for 5"):
        pool_from_nodes([cores], False, 5, 2)
    with pytest.raises(UsageError, match="room for 2 workers of 1 core each and a GPU, not for 3"):
        pool_from_nodes([gpus], True, 3, 1)
    with pytest.raises(EnvironmentProblem, match="no CPU core"):
        pool_from_nodes([{"memory": 1.0}], False, None, None)
    assert (Pool(2, 1, 0).reserved, Pool(1, 8, 0).reserved) == (0.5, 7)


def test_a_worker_keeps_every_row(tiny_artifact: Path) -> None:
    rows = pa.table({"id": range(len(TEXTS)), "text": TEXTS, "prediction": [1.0] * len(TEXTS)})
    work = Work(str(tiny_artifact), "onnxruntime-fp32", 1, Columns("text"), window=4)
    found = Worker(work)(rows)
    assert found.column_names == ["id", "text", "prediction", "prediction_error"]
    assert found["prediction_error"].to_pylist() == [
        *(None, "the field 'text' is null, not a text", None, None, None),
    ]
    good = [text for text in TEXTS if text is not None]
    with Session.load(tiny_artifact) as session:
        expected = session.predict_arrow(pa.array(good))
    assert found["prediction"].type == expected.type
    assert found["prediction"].drop_null().combine_chunks().to_pylist() == expected.to_pylist()
    assert found["prediction"].null_count == 1
