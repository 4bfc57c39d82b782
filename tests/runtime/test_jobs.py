"""Batch jobs: rows pass through in order, bad ones are kept apart, files are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tfc.errors import BadData, BadInput, CheckFailed, EnvironmentProblem, NoSpace, UsageError
from tfc.manifest import Signature, Task
from tfc.runtime import Session
from tfc.runtime.formats.streams import Bytes, LineReader
from tfc.runtime.jobs import JobSummary, run_job, texts_from_jsonl
from tfc.runtime.jobs.progress import JobProgress
from tfc.runtime.predictor import Outcome
from tfc.runtime.rows import Columns


class FakeSession:
    """Answers with the text's length; reads ahead like the real one."""

    columns = Columns("text")
    task = Task("zero-shot-classification")
    signature = Signature([], [])

    def __init__(self, window: int = 3, fail_on: str | None = None) -> None:
        self.window, self.fail_on = window, fail_on
        self.identity = {"name": "fake", "sha256": "0"}

    def outcomes(self, items: Iterable[object], **options: Any) -> Iterator[Outcome]:
        source = iter(items)
        waiting: list[Any] = []
        while True:
            while len(waiting) < 2 * self.window and (item := next(source, None)) is not None:
                waiting.append(item)
            if not waiting:
                return
            item = waiting.pop(0)
            if isinstance(item, BadInput | BadData):
                yield Outcome(error=item)
                continue
            if item == self.fail_on:
                raise RuntimeError("the engine broke")
            size = sum(map(len, item)) if isinstance(item, tuple) else len(item)
            yield Outcome({"label": item, "size": size}, None, tokens=size, padded=2 * size)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(path: Path, *rows: Any) -> Path:
    """A file of these rows; bytes are written as they are."""
    encoded = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.ort
def test_a_job_on_a_real_engine(tiny: Any, tmp_path: Path) -> None:
    texts = [f"text number {i} " * (i % 7) for i in range(60)]
    source = written(tmp_path / "in.jsonl", *({"id": i, "text": t} for i, t in enumerate(texts)))
    with Session.load(tiny.path) as session:
        summary = run_job(session, source, tmp_path / "out.jsonl")
        expected = session.predict(texts)
    found = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == list(range(60))
    assert [row["text"] for row in found] == texts
    assert [row["prediction"]["label"] for row in found] == [row["label"] for row in expected]
    assert [row["prediction"]["score"] for row in found] == pytest.approx(
        [row["score"] for row in expected], abs=1e-6
    )
    assert (summary.rows, summary.bad_rows, summary.errors) == (60, 0, None)
    assert summary.tokens == sum(2 + 3 * (i % 7) for i in range(60))
    assert 0.0 <= summary.padding_waste < 0.5


def test_summary(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"text": "one"}, {"text": "three"}, {"other": 1})
    before = time.perf_counter()
    summary = run_job(FakeSession(), source, tmp_path / "out.jsonl")
    passed = time.perf_counter() - before
    assert summary == JobSummary(
        rows=2,
        bad_rows=1,
        resumed_rows=0,
        seconds=summary.seconds,
        rows_per_second=2 / summary.seconds,
        tokens=8,
        tokens_per_second=8 / summary.seconds,
        padding_waste=0.5,
        output=tmp_path / "out.jsonl",
        errors=tmp_path / "out.jsonl.errors.jsonl",
    )
    assert 0 < summary.seconds <= passed


def test_rows_pass_through_unchanged(tmp_path: Path) -> None:
    row = {
        "id": 12345678901234567890,
        "text": "naïve 🎉",
        "nested": {"list": [1, 2.5, None, True]},
        "": "empty key",
        "ключ": "значение",
    }
    source = written(tmp_path / "in.jsonl", row)
    run_job(FakeSession(), source, tmp_path / "out.jsonl")
    (found,) = lines(tmp_path / "out.jsonl")
    assert found == {**row, "prediction": {"label": "naïve 🎉", "size": 7}}
    assert list(found) == [*row, "prediction"]
    assert "naïve 🎉" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_an_earlier_prediction_is_replaced(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"prediction": "old", "text": "new"})
    run_job(FakeSession(), source, tmp_path / "out.jsonl")
    assert lines(tmp_path / "out.jsonl")[0]["prediction"] == {"label": "new", "size": 3}


def test_other_columns_and_pairs(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"q": "question", "a": "answer"}, {"q": "only"})
    summary = run_job(
        FakeSession(), source, tmp_path / "out.jsonl", text_column="q", pair_column="a"
    )
    assert lines(tmp_path / "out.jsonl")[0]["prediction"]["label"] == ["question", "answer"]
    assert summary.bad_rows == 1
    assert "no field 'a'" in lines(tmp_path / "out.jsonl.errors.jsonl")[0]["error"]


BAD = [
    (b"{", "not valid JSON"),
    (b'{"text": "a"} {}', "not valid JSON"),
    (b"[1, 2]", "not a JSON object but an array"),
    (b'"text"', "not a JSON object but a text"),
    (b"null", "not a JSON object but null"),
    (b'{"text": null}', "the field 'text' is null, not a text"),
    (b'{"text": 5}', "the field 'text' is a number, not a text"),
    (b'{"text": ["a"]}', "the field 'text' is an array, not a text"),
    (b'{"Text": "a"}', "no field 'text'; the row has: Text"),
    (b"{}", "no field 'text'; the row has: no fields"),
    (b'{"text": "caf\xe9"}', "not UTF-8 text (byte 14 of the line)"),
    (b'{"text": "a\x00b"}', "not valid JSON"),
    (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not usable JSON"),
    (b"[" * 200_000, "not usable JSON"),
]


@pytest.mark.parametrize(("raw", "problem"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_bad_row_is_kept_apart(raw: bytes, problem: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"text": "before"}, raw, {"text": "after"})
    summary = run_job(FakeSession(), source, tmp_path / "out.jsonl")
    assert [row["text"] for row in lines(tmp_path / "out.jsonl")] == ["before", "after"]
    (found,) = lines(tmp_path / "out.jsonl.errors.jsonl")
    assert found["line"] == 2
    assert problem in found["error"]
    assert found["row"] == raw.decode(errors="backslashreplace")
    assert (summary.rows, summary.bad_rows) == (2, 1)


@pytest.mark.ort
def test_what_only_the_session_can_see_is_a_bad_row_too(
    tiny: Any, rewrite: Any, tmp_path: Path
) -> None:
    import dataclasses

    from tfc.artifact import Artifact

    engines = Artifact.open(tiny.path).manifest.engines
    profile = {"batch": [1, 4, 16], "sequence": [1, 8, 12]}
    rewrite(
        tiny.path, engines={k: dataclasses.replace(e, profile=profile) for k, e in engines.items()}
    )
    source = written(
        tmp_path / "in.jsonl",
        {"text": "word " * 30},
        {"text": "fine"},
        b'{"text": "half \\ud83d"}',
    )
    with Session.load(tiny.path) as session:
        run_job(session, source, tmp_path / "out.jsonl")
    assert [row["text"] for row in lines(tmp_path / "out.jsonl")] == ["fine"]
    found = lines(tmp_path / "out.jsonl.errors.jsonl")
    assert [row["line"] for row in found] == [1, 3]
    assert "32 tokens" in found[0]["error"]
    assert "lone surrogate" in found[1]["error"]
    assert found[1]["row"] == '{"text": "half \\ud83d"}'


def test_half_a_character_in_another_field_passes_through(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", b'{"text": "a", "note": "\\ud83d"}')
    run_job(FakeSession(), source, tmp_path / "out.jsonl")
    assert lines(tmp_path / "out.jsonl")[0]["note"] == "\ud83d"


def test_order_and_line_numbers_with_many_bad_rows(tmp_path: Path) -> None:
    rows = [{"text": str(i)} if i % 3 else {"no": i} for i in range(100)]
    source = written(tmp_path / "in.jsonl", *rows)
    run_job(FakeSession(window=5), source, tmp_path / "out.jsonl", shard_rows=30)
    assert [row["text"] for row in lines(tmp_path / "out.jsonl")] == [
        str(i) for i in range(100) if i % 3
    ]
    errors = lines(tmp_path / "out.jsonl.errors.jsonl")
    assert [row["line"] for row in errors] == [i + 1 for i in range(100) if not i % 3]


def test_windows_line_ends_byte_order_mark_blank_lines_and_no_last_newline(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": 1}\r\n{"text": "b"}')
    summary = run_job(FakeSession(), source, tmp_path / "out.jsonl")
    assert [row["text"] for row in lines(tmp_path / "out.jsonl")] == ["a", "b"]
    assert lines(tmp_path / "out.jsonl.errors.jsonl") == [
        {
            "file": str(source),
            "line": 4,
            "error": "the field 'text' is a number, not a text",
            "row": '{"text": 1}',
        }
    ]
    assert summary.rows == 2


def test_an_old_errors_file_goes_with_the_old_output(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"text": "a"}, b"{")
    run_job(FakeSession(), source, tmp_path / "out.jsonl")
    assert "out.jsonl.errors.jsonl" in files(tmp_path)
    written(source, {"text": "better"})
    run_job(FakeSession(), source, tmp_path / "out.jsonl")
    assert files(tmp_path) == {"in.jsonl", "out.jsonl"}
    assert lines(tmp_path / "out.jsonl")[0]["text"] == "better"


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_input(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    with pytest.raises(BadData, match="the input file is empty"):
        run_job(FakeSession(), source, tmp_path / "out.jsonl")
    assert files(tmp_path) == {"in.jsonl"}


def test_an_input_of_bad_rows_only_names_the_first(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", b"", {"body": "a"}, {"body": "b"})
    with pytest.raises(BadData, match=r"not one of its 2 rows.* no field 'text'") as caught:
        run_job(FakeSession(), source, tmp_path / "out.jsonl")
    assert caught.value.where == f"{source}, line 2"
    assert "--text-column" in caught.value.fix
    assert files(tmp_path) == {"in.jsonl"}


def test_limit(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *({"text": str(i)} for i in range(9)))
    summary = run_job(FakeSession(), source, tmp_path / "out.jsonl", limit=4)
    assert (summary.rows, len(lines(tmp_path / "out.jsonl"))) == (4, 4)
    with pytest.raises(UsageError, match="limit"):
        run_job(FakeSession(), source, tmp_path / "out.jsonl", limit=0)


def test_a_missing_input(tmp_path: Path) -> None:
    for source in (tmp_path / "none.jsonl", written(tmp_path / "file") / "below"):
        with pytest.raises(BadData, match="there is no such file") as caught:
            run_job(FakeSession(), source, tmp_path / "out.jsonl")
        assert caught.value.where == str(source)
    assert files(tmp_path) == {"file"}


def test_an_input_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "in.jsonl", {"text": "a"})

    def refused(*_: Any) -> Any:  # root, who may run the tests, is refused nothing
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(BadData, match="cannot be read: Permission denied"):
        run_job(FakeSession(), source, tmp_path / "out.jsonl")


def test_an_input_that_breaks_off() -> None:
    class Broken:
        read = 0

        def readline(self, most: int) -> bytes:
            self.read += 1
            if self.read == 3:
                raise OSError(errno.EIO, "Input/output error")
            return b'{"text": "a"}\n'

    with pytest.raises(BadData, match="line 3: reading it failed: Input/output error"):
        list(LineReader(Bytes(Broken()), "in.jsonl"))  # type: ignore[arg-type]


def test_paths_that_make_no_sense(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"text": "a"})
    link = tmp_path / "link.jsonl"
    link.symlink_to(source)
    errors = written(tmp_path / "out.jsonl.errors.jsonl", {"text": "a"})
    for input, output, problem in [
        (source, source, "overwrite its own input"),
        (link, source, "overwrite its own input"),
        (source, tmp_path / "." / "in.jsonl", "overwrite its own input"),
        (errors, tmp_path / "out.jsonl", "overwrite its own input"),
        (tmp_path, tmp_path / "out.csv", "lies in the folder of the inputs"),
        (tmp_path, tmp_path, "lies in the folder of the inputs"),
        (source, tmp_path, "this folder is not empty: it holds in.jsonl"),
        (source, tmp_path / "out", "does not tell what to write"),
        (source, source / "out.jsonl", "a file is where"),
    ]:
        with pytest.raises(UsageError, match=problem):
            run_job(FakeSession(), input, output)
    assert lines(source) == [{"text": "a"}]


def test_makes_the_outputs_folder(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"text": "a"})
    run_job(FakeSession(), source, tmp_path / "new" / "deep" / "out.jsonl")
    assert files(tmp_path / "new" / "deep") == {"out.jsonl"}


def test_output_is_readable_by_others(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"text": "a"}, b"{")
    run_job(FakeSession(), source, tmp_path / "out.jsonl")
    for name in ("out.jsonl", "out.jsonl.errors.jsonl"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_the_old_files_alone(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"text": "a"}, b"{", {"text": "b"}, {"text": "c"})
    old = {"out.jsonl": b"old output", "out.jsonl.errors.jsonl": b"old errors"}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RuntimeError, match="the engine broke"):
        run_job(FakeSession(fail_on="c"), source, tmp_path / "out.jsonl")
    assert files(tmp_path) == {"in.jsonl", *old, ".out.jsonl.tfc-job"}
    assert {name: (tmp_path / name).read_bytes() for name in old} == old


def test_nothing_is_at_the_final_path_before_the_end(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *({"text": str(i)} for i in range(9)))
    seen: list[bool] = []
    run_job(
        FakeSession(),
        source,
        tmp_path / "out.jsonl",
        on_progress=lambda now: seen.append((tmp_path / "out.jsonl").exists()),
    )
    *before, after = seen
    assert before
    assert not any(before)
    assert after


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A limit on the size of files stands in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *({"text": "x" * 1000} for _ in range(100)))
    with files_of_at_most(20_000), pytest.raises(NoSpace, match="no space left") as caught:
        run_job(FakeSession(window=50), source, tmp_path / "out.jsonl")
    assert isinstance(caught.value.__cause__, OSError)
    assert files(tmp_path) == {"in.jsonl"}


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "in.jsonl", {"text": "a"})

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(EnvironmentProblem, match="not permitted"):
        run_job(FakeSession(), source, tmp_path / "out.jsonl")


def test_progress_grows_to_the_size_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfc.runtime.jobs.progress.PROGRESS_INTERVAL_S", 0.0)
    source = written(tmp_path / "in.jsonl", *({"text": str(i)} for i in range(9)), b"{")
    calls: list[JobProgress] = []
    run_job(FakeSession(window=4), source, tmp_path / "out.jsonl", on_progress=calls.append)
    size = source.stat().st_size
    assert {call.total_bytes for call in calls} == {size}
    assert [call.rows for call in calls] == [0, 4, 8, 9, 9]
    assert [call.bad_rows for call in calls] == [0, 0, 0, 1, 1]
    done = [call.bytes for call in calls]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, size)


def test_progress_is_not_reported_for_every_row(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *({"text": str(i)} for i in range(2000)))
    calls: list[JobProgress] = []
    run_job(FakeSession(window=100), source, tmp_path / "out.jsonl", on_progress=calls.append)
    assert 2 <= len(calls) < 200


def test_a_pipe_can_be_the_input(tmp_path: Path) -> None:
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b'{"text": "piped"}\n'))
    writer.start()
    summary = run_job(FakeSession(), pipe, tmp_path / "out.jsonl")
    writer.join()
    assert summary.rows == 1


def test_holds_no_more_rows_than_the_session_reads_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file of rows without the text column must not gather in memory."""
    from collections import deque

    longest = 0

    class Watched(deque[Any]):
        def append(self, item: Any) -> None:
            nonlocal longest
            super().append(item)
            longest = max(longest, len(self))

    monkeypatch.setattr("tfc.runtime.jobs.rows.deque", Watched)
    source = written(tmp_path / "in.jsonl", {"text": "one"}, *({"no": i} for i in range(500)))
    run_job(FakeSession(window=4), source, tmp_path / "out.jsonl", shard_rows=1000)
    assert 0 < longest <= 2 * 4


def test_an_engine_whose_values_are_not_finite(tmp_path: Path) -> None:
    class Broken(FakeSession):
        def outcomes(self, items: Iterable[object], **options: Any) -> Iterator[Outcome]:
            for item in items:
                yield Outcome(error=CheckFailed(f"not finite for {item}"))

    source = written(tmp_path / "in.jsonl", {"text": "a"})
    with pytest.raises(BadData, match="not finite for a"):
        run_job(Broken(), source, tmp_path / "out.jsonl")


def test_texts_of_a_file(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", {"body": "a"}, {"body": ""}, {"body": "c"}, b"{")
    assert texts_from_jsonl(source, "body", 3) == ["a", "", "c"]
    assert texts_from_jsonl(source, "body", 1) == ["a"]
    with pytest.raises(BadData, match="not valid JSON") as caught:
        texts_from_jsonl(source, "body")
    assert caught.value.where == f"{source}, line 4"
    with pytest.raises(BadData, match="the input file is empty"):
        texts_from_jsonl(written(tmp_path / "empty.jsonl"))
    with pytest.raises(BadData, match="no such file"):
        texts_from_jsonl(tmp_path / "none.jsonl")
