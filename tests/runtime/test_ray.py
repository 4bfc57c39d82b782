"""A Ray job on a real cluster of two workers on this machine.

Ray is not in `tfc[dev]`: these run where it is installed, with `pip install 'tfc[ray]'`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfc.errors import BadArtifact, BadData, CheckFailed, TfcError, UsageError
from tfc.runtime import Session
from tfc.runtime.jobs import run_job
from tfc.runtime.ray import predict_dataset
from tfc.runtime.ray.ask import Ask
from tfc.runtime.ray.job import run_ray_job

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tfc[ray]'")
pytestmark = [
    pytest.mark.ort,
    # Ray leaves sockets and processes to the garbage collector, and deprecates what it needs.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestWarning"),
]

FILES, ROWS = 3, 500


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests: it takes seconds to start."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def text_of(row: int) -> str | None:
    return None if row % 97 == 5 else f"text number {row} " + "word " * (row % 23)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for file in range(FILES):
        ids = range(file * ROWS, (file + 1) * ROWS)
        kinds = pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode()
        columns = {"id": ids, "text": [text_of(row) for row in ids], "kind": kinds}
        pq.write_table(pa.table(columns), folder / f"{file}.parquet")
    return folder


def rows_of(folder: Path) -> pa.Table:
    assert json.loads((folder / "_SUCCESS").read_text())["parts"]
    parts = sorted(folder.glob("part-*.parquet"))
    return pa.concat_tables(map(pq.read_table, parts)).sort_by("id")


def check_equal(found: pa.Table, expected: pa.Table) -> None:
    """The same rows; probabilities as near as other batches of the same texts leave them."""
    good = found.filter(found["prediction_error"].is_null())
    assert good.drop_columns(["prediction_error"]).schema.equals(expected.schema)
    assert good["id"].to_pylist() == expected["id"].to_pylist()
    assert good["kind"].to_pylist() == expected["kind"].to_pylist()
    pairs = zip(good["prediction"].to_pylist(), expected["prediction"].to_pylist(), strict=True)
    for one, other in pairs:
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert dict(one["scores"]) == pytest.approx(dict(other["scores"]), abs=1e-5)


def pids_of_workers() -> list[int]:
    """The processes of the actors; Ray writes what a worker is into its name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes()
        except OSError:  # it has just ended
            continue
        if name.startswith(b"ray::") and b"MapWorker" in name:
            found.append(int(path.parent.name))
    return found


def test_a_worker_is_killed(tiny_artifact: Path, inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tfc", "run", str(tiny_artifact), str(inputs)]
    options = ["-o", f"{output}/", "--ray", "--workers", "2", "--window", "32", "--json"]
    address = ray.get_runtime_context().gcs_address
    job = subprocess.Popen(
        [*command, *options, "--ray-address", address, "--shard-rows", "128"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    staging = tmp_path / ".out.tfc-ray"
    deadline = time.monotonic() + 120
    while not list(staging.glob("*.parquet")):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = pids_of_workers()
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert len(list(staging.glob("*.parquet"))) < FILES * ROWS // 128, "there is work left"
    printed, noise = job.communicate(timeout=240)
    assert job.returncode == 0, noise
    done = json.loads(printed)
    bad = sum(text_of(row) is None for row in range(FILES * ROWS))
    assert (done["rows"], done["bad_rows"], done["workers"]) == (FILES * ROWS - bad, bad, 2)
    assert not staging.exists()

    with Session.load(tiny_artifact) as session:
        run_job(session, inputs, tmp_path / "whole.parquet", window=32)
    found = rows_of(output)
    assert found["id"].to_pylist() == list(range(FILES * ROWS))
    check_equal(found, pq.read_table(tmp_path / "whole.parquet"))


def test_a_dataset(tiny_artifact: Path) -> None:
    texts = [text_of(row) for row in range(10)]
    dataset = ray.data.from_arrow(pa.table({"id": range(10), "body": texts}))
    found = predict_dataset(dataset, tiny_artifact, text_column="body", workers=1, window=4)
    rows = sorted(found.take_all(), key=lambda row: row["id"])
    assert [row["body"] for row in rows] == texts
    with Session.load(tiny_artifact) as session:
        expected = session.predict([text for text in texts if text is not None])
    labels = [row["prediction"]["label"] for row in rows if row["prediction"] is not None]
    assert labels == [prediction["label"] for prediction in expected]
    assert [row["prediction_error"] for row in rows if row["prediction"] is None] == [
        "the field 'body' is null, not a text"
    ]


def test_what_the_cluster_refuses(tiny_artifact: Path, inputs: Path, tmp_path: Path) -> None:
    def refused(kind: type[TfcError], said: str, **asked: Any) -> None:
        with pytest.raises(kind, match=said) as caught:
            run_ray_job(Ask(str(tiny_artifact), **asked), inputs, f"{tmp_path}/out/")
        assert type(caught.value) is kind
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "tiny"]

    refused(UsageError, "has no engine 'nope'", engine="nope")
    refused(CheckFailed, "is not verified", require_verified=True)
    refused(UsageError, "has room for 2 workers of 1 core each, not for 9", workers=9)
    (tiny_artifact / "engines/onnxruntime-fp32/model.onnx").write_bytes(b"damaged")
    refused(BadArtifact, "model.onnx", workers=1)


def test_no_row_can_be_used(tiny_artifact: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out"
    pq.write_table(pa.table({"text": pa.array([None, None], pa.string())}), source)
    with pytest.raises(BadData, match="not one of its 2 rows can be used; one of them: the field"):
        run_ray_job(Ask(str(tiny_artifact), workers=1), source, f"{output}/")
    pq.write_table(pa.table({"text": ["a", None]}), source)
    done = run_ray_job(Ask(str(tiny_artifact), workers=1), source, f"{output}/")
    assert (done.rows, done.bad_rows) == (1, 1)
    with pytest.raises(UsageError, match="a finished job is in this folder"):
        run_ray_job(Ask(str(tiny_artifact), workers=1), source, f"{output}/")
