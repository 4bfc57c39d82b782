"""The formats of batch jobs: what goes in comes out again, with its types."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tfc.errors import BadData, UsageError
from tfc.manifest import Signature, Task, TensorSpec
from tfc.runtime.jobs import run_job
from tfc.runtime.predictor import Outcome
from tfc.runtime.rows import Columns

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

DIMENSION = 4


class Lengths:
    """Classifies a text by its length."""

    columns = Columns("text")
    task = Task("text-classification", "single_label", ["short", "long"])
    signature = Signature([], [])
    window = 8
    identity: ClassVar[dict[str, Any]] = {"name": "fake", "sha256": "0"}

    def outcomes(self, items: Iterable[object], **_: Any) -> Iterator[Outcome]:
        for item in items:
            if isinstance(item, BadData):
                yield Outcome(error=item)
            else:
                yield Outcome(self.prediction(str(item)), tokens=1, padded=1)

    def prediction(self, text: str) -> dict[str, Any]:
        label = "long" if len(text) > 3 else "short"
        return {"label": label, "score": 1 / (1 + len(text)), "scores": {"short": 0.5, "long": 0.5}}


class Vectors(Lengths):
    """Embeds a text."""

    task = Task("feature-extraction", pooling="mean")
    signature = Signature([], [TensorSpec("embedding", "float32", ["batch", DIMENSION])])

    def prediction(self, text: str) -> dict[str, Any]:
        return {"embedding": np.arange(DIMENSION, dtype=np.float32) + len(text) / 3}


ROWS = [{"id": i, "text": f"text {i}" if i % 3 else "é\n,", "n": i / 4} for i in range(20)]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def expected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "prediction": Lengths().prediction(row["text"])} for row in rows]


def cells(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter=delimiter))


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, "zstd", asbytes=True)
    return packed


@pytest.mark.parametrize("codec", ["", ".gz", ".bz2", ".zst"])
def test_compressed_json_lines_in_and_out(codec: str, tmp_path: Path) -> None:
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    name = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}.get(codec)
    source = tmp_path / f"in.jsonl{codec}"
    packed = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}.get(codec, zstd)
    source.write_bytes(packed(content))
    output = tmp_path / f"out.jsonl{codec}"
    summary = run_job(Lengths(), source, output)
    assert summary.rows == 20
    with pa.input_stream(output, compression=name) as stream:
        found = [json.loads(line) for line in io.BufferedReader(stream)]
    assert found == expected(ROWS), "several shards, each compressed, are one file"


def test_csv_keeps_its_texts_as_they_are(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(
        '﻿zip,text,note\r\n00501,"one, ""two""\r\nthree",\r\n\r\n7,four,x\r\n'.encode()
    )
    run_job(Lengths(), source, tmp_path / "out.csv")
    first, second = cells(tmp_path / "out.csv")
    assert first["zip"] == "00501"
    assert first["text"] == 'one, "two"\r\nthree'
    assert (first["note"], second["note"]) == ("", "x")
    assert list(first) == [
        *("zip", "text", "note"),
        *("prediction.label", "prediction.score", "prediction.scores"),
    ]
    assert (first["prediction.label"], float(second["prediction.score"])) == ("long", 0.2)
    assert json.loads(first["prediction.scores"]) == {"short": 0.5, "long": 0.5}
    again = run_job(Lengths(), tmp_path / "out.csv", tmp_path / "again.csv")
    assert again.rows == 2
    assert cells(tmp_path / "again.csv") == [first, second], "predictions are replaced"


def test_tab_separated(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("text\tid\na,b\t1\n", encoding="utf-8")
    run_job(Lengths(), tmp_path / "in.tsv", tmp_path / "out.tsv")
    (row,) = cells(tmp_path / "out.tsv", "\t")
    assert (row["text"], row["id"]) == ("a,b", "1")


BAD_CSV = [
    (b"2", "the row has 1 fields, and the header 2"),
    (b"2,a,b", "the row has 3 fields, and the header 2"),
    (b"caf\xe9,b,c", "the row has 3 fields, and the header 2"),
    (b"2,caf\xe9", "not UTF-8 text"),
    (b'2,"a"b', "not valid CSV"),
]


@pytest.mark.parametrize(("raw", "problem"), BAD_CSV, ids=[str(i) for i in range(len(BAD_CSV))])
def test_a_bad_row_of_csv_spoils_no_other(raw: bytes, problem: str, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(b'id,text\n1,"two\nlines"\n' + raw + b"\n3,after\n")
    summary = run_job(Lengths(), source, tmp_path / "out.csv")
    assert [row["id"] for row in cells(tmp_path / "out.csv")] == ["1", "3"]
    (bad,) = lines(tmp_path / "out.csv.errors.jsonl")
    assert (summary.bad_rows, bad["line"]) == (1, 4)
    assert problem in bad["error"]
    assert bad["row"] == raw.decode(errors="backslashreplace")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"id,body\n1,a\n", "there is no column 'text'; the file has: id, body"),
        (b"text,text\n1,a\n", "the header has the column 'text' twice"),
        (b"t\xe9xt,text\n1,a\n", "the header is not UTF-8"),
        (b"", "the input file is empty"),
        (b"id,text\n", "the input file is empty"),
    ],
)
def test_a_csv_that_cannot_be_used(content: bytes, problem: str, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(content)
    with pytest.raises(BadData, match=problem):
        run_job(Lengths(), source, tmp_path / "out.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv"}


def parquet_rows(path: Path) -> Any:
    table = pa.table(
        {
            "id": pa.array(range(20), pa.int16()),
            "text": pa.array([None if i == 4 else f"text {i}" for i in range(20)]),
            "when": pa.array([datetime.datetime(2024, 1, 1 + i) for i in range(20)]),
            "price": pa.array([Decimal(i).scaleb(-2) for i in range(20)], pa.decimal128(9, 2)),
            "kind": pa.array(["a", "b"] * 10).dictionary_encode(),
            "list": pa.array([[i, None] for i in range(20)]),
            "prediction": pa.array(range(20)),
        }
    )
    pq.write_table(table, path, row_group_size=7)
    return table


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = parquet_rows(tmp_path / "in.parquet")
    summary = run_job(Lengths(), tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    kept = [name for name in table.schema.names if name != "prediction"]
    good = table.filter(pa.compute.is_valid(table["text"]))
    assert found.select(kept).equals(good.select(kept))
    assert found["prediction"].combine_chunks().field("label").to_pylist() == ["long"] * 19
    assert found.schema.field("prediction").type == pa.struct(
        [
            ("label", pa.string()),
            ("score", pa.float64()),
            ("scores", pa.map_(pa.string(), pa.float64())),
        ]
    )
    assert (summary.rows, summary.bad_rows) == (19, 1)
    (bad,) = lines(tmp_path / "out.parquet.errors.jsonl")
    assert (bad["line"], bad["error"]) == (5, "the field 'text' is null, not a text")
    assert json.loads(bad["row"])["when"] == "2024-01-05T00:00:00"


@pytest.mark.parametrize("half", [False, True])
def test_embeddings_are_lists_of_one_size(half: bool, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", ROWS)
    run_job(Vectors(), source, tmp_path / "out.parquet", half_embeddings=half)
    found = pq.read_table(tmp_path / "out.parquet")
    number = pa.float16() if half else pa.float32()
    vectors = found["prediction"].combine_chunks().field("embedding")
    assert vectors.type == pa.list_(number, DIMENSION)
    values = vectors.flatten().to_numpy().reshape(20, DIMENSION)
    wanted = [Vectors().prediction(row["text"])["embedding"] for row in ROWS]
    assert np.array_equal(values, np.stack(wanted).astype(np.float16 if half else np.float32))
    assert found.drop_columns("prediction").to_pylist() == ROWS


def test_float16_is_for_embeddings_in_parquet(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(UsageError, match="only Parquet"):
        run_job(Vectors(), source, tmp_path / "out.jsonl", half_embeddings=True)
    with pytest.raises(UsageError, match="no embeddings"):
        run_job(Lengths(), source, tmp_path / "out.parquet", half_embeddings=True)


def test_the_columns_of_json_are_those_of_its_first_rows(tmp_path: Path) -> None:
    """Eight rows are a shard: the ninth and later must fit the columns of the first."""
    first = [{"text": "a", "n": 1, "mixed": i if i else "x", "none": None} for i in range(8)]
    later = [
        {"text": "fits", "n": None, "mixed": {"a": 1}, "none": 5},
        {"text": "b", "n": "one"},
        {"text": "c", "new": 1},
        {"text": "d", "n": 2**70},
        {"text": "fewer fields"},
    ]
    source = jsonl(tmp_path / "in.jsonl", first + later)
    run_job(Lengths(), source, tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet").drop_columns("prediction").to_pylist()
    assert [row["mixed"] for row in found] == ["x", *map(str, range(1, 8)), '{"a": 1}', None]
    assert found[8] == {"text": "fits", "n": None, "mixed": '{"a": 1}', "none": "5"}
    assert [
        (bad["line"], bad["error"]) for bad in lines(tmp_path / "out.parquet.errors.jsonl")
    ] == [
        (10, "the field 'n' is a text, and its column is int64"),
        (11, "the field 'new' is not among the output's columns"),
        (12, "the field 'n' is a number, and its column is int64"),
    ]


PAIRS = ["parquet jsonl", "parquet csv", "csv parquet", "jsonl csv", "csv jsonl"]


@pytest.mark.parametrize(("source", "output"), [pair.split() for pair in PAIRS])
def test_one_format_in_another_out(source: str, output: str, tmp_path: Path) -> None:
    texts = [{"id": str(row["id"]), "text": row["text"]} for row in ROWS]
    path = jsonl(tmp_path / "rows.jsonl", texts)
    if source == "parquet":
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(texts), path)
    if source == "csv":
        path = tmp_path / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ["id", "text"])
            writer.writeheader()
            writer.writerows(texts)
    target = tmp_path / f"out.{output}"
    run_job(Lengths(), path, target)
    if output == "csv":
        found = cells(target)
        assert [row["prediction.label"] for row in found][:2] == ["short", "long"]
    elif output == "parquet":
        found = pq.read_table(target).to_pylist()
    else:
        found = lines(target)
        assert found == expected(texts)
    assert [{"id": row["id"], "text": row["text"]} for row in found] == texts


def test_several_files_globs_and_folders_in_order(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, row in {"b.jsonl": 1, "a.jsonl": 0, "deep/c.jsonl.gz": 2, "_hidden.jsonl": 9}.items():
        content = json.dumps({"text": "t", "id": row}).encode() + b"\n{\n"
        path = tmp_path / "in" / name
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    (tmp_path / "in" / "README.txt").write_text("no rows", encoding="utf-8")
    folder, output = tmp_path / "in", tmp_path / "out.jsonl"

    def ids(*inputs: str | Path) -> list[int]:
        run_job(Lengths(), inputs, output)
        return [row["id"] for row in lines(output)]

    assert ids(folder) == [0, 1, 2]
    assert ids(f"{folder}/*.jsonl") == [9, 0, 1]
    assert ids(f"{folder}/**/[a-z].jsonl*") == [0, 1, 2]
    assert ids(folder / "b.jsonl", folder / "a.jsonl") == [1, 0]
    bad = lines(tmp_path / "out.jsonl.errors.jsonl")
    assert [(row["file"], row["line"]) for row in bad] == [
        (str(folder / "b.jsonl"), 2),
        (str(folder / "a.jsonl"), 2),
    ]


def test_inputs_that_make_no_sense(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "in.csv").write_text("text\na\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Any, str, type[Exception], str]] = [
        ([source, tmp_path / "in.csv"], "out.jsonl", UsageError, "several formats: csv and jsonl"),
        (["-", source], "out.jsonl", UsageError, "has no name that tells its format"),
        (tmp_path / "empty", "out.jsonl", BadData, "no input file here"),
        (f"{tmp_path}/*.parquet", "out.jsonl", BadData, "no input file here"),
        (source, "out.xml", UsageError, "does not tell what to write"),
        (source, "-", UsageError, "there is no format 'xml'"),
    ]
    for inputs, output, kind, said in cases:
        target = output if output == "-" else tmp_path / output
        form = "xml" if output == "-" else None
        with pytest.raises(kind, match=said):
            run_job(Lengths(), inputs, target, output_format=form)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"PAR1 no", "cannot be read as Parquet"), (b"", "cannot be read as Parquet")],
)
def test_a_damaged_parquet(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(content)
    with pytest.raises(BadData, match=problem):
        run_job(Lengths(), tmp_path / "in.parquet", tmp_path / "out.jsonl")


def test_a_parquet_without_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "body": ["a", "b"]}), tmp_path / "in.parquet")
    with pytest.raises(BadData, match="the column 'text' is int64, not texts"):
        run_job(Lengths(), tmp_path / "in.parquet", tmp_path / "out.jsonl")
    with pytest.raises(BadData, match="no column 'title'; the file has: text, body"):
        run_job(Lengths(), tmp_path / "in.parquet", tmp_path / "o.jsonl", text_column="title")


def test_files_with_other_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "id": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": ["b"], "id": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(BadData, match="the column 'id' is string, and int64 in the first file"):
        run_job(Lengths(), f"{tmp_path}/*.parquet", tmp_path / "out.parquet")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_compression(damage: str, tmp_path: Path) -> None:
    data = bytearray(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS * 5).encode()))
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 255
    (tmp_path / "in.jsonl.gz").write_bytes(data)
    with pytest.raises(BadData, match="reading it failed"):
        run_job(Lengths(), tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl")


def test_a_line_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfc.runtime.formats.streams.MOST_LINE_BYTES", 64)
    rows = [{"text": "before"}, {"text": "x" * 1000}, {"text": "after"}]
    source = jsonl(tmp_path / "in.jsonl", rows)
    run_job(Lengths(), source, tmp_path / "out.jsonl")
    assert [row["text"] for row in lines(tmp_path / "out.jsonl")] == ["before", "after"]
    (bad,) = lines(tmp_path / "out.jsonl.errors.jsonl")
    assert bad["line"] == 2
    assert "longer than" in bad["error"]


def test_text_formats_need_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    source = jsonl(tmp_path / "in.jsonl", ROWS)
    run_job(Lengths(), source, tmp_path / "out.csv")
    run_job(Lengths(), tmp_path / "out.csv", tmp_path / "again.jsonl")
    assert len(lines(tmp_path / "again.jsonl")) == 20
