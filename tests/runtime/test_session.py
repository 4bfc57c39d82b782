"""Sessions on a real engine: the same answers as PyTorch, and errors that name their cause."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfc.artifact import Artifact, new_manifest_files
from tfc.errors import (
    BackendUnavailable,
    BadArtifact,
    BadInput,
    CheckFailed,
    EnvironmentProblem,
    TfcError,
    UsageError,
)
from tfc.manifest import Task, Verdict
from tfc.runtime import Session
from tfc.runtime.backends import backend
from tfc.runtime.tensors import arrays_from_tensors

pytestmark = pytest.mark.ort

ENGINE = "onnxruntime-fp32"
TEXTS: list[Any] = [
    "I was charged twice this month, please help.",
    "",
    "Refund!",
    ("a question", "and its answer"),
    "¿Dónde está mi pedido? 你好，世界 🎉 мир",
    "a much longer text that goes on " * 20,
    ("short", "and a long second text " * 20),
    "naïve café façade",
]
# The engine and PyTorch both compute in float32; on these inputs they differ by some 1e-7.
CLOSE = 1e-5


def engine_of(path: Path) -> Any:
    return Artifact.open(path).manifest.engines[ENGINE]


def verdict(path: Path, word: str, sha256: str | None = None) -> Verdict:
    artifact = Artifact.open(path)
    own = artifact.sha256(artifact.manifest.engines[ENGINE].files["model"])
    return Verdict(word, "", own if sha256 is None else sha256, "d", {}, {}, {}, "CPU")


def scores(found: list[dict[str, Any]]) -> np.ndarray:
    return np.array([list(row["scores"].values()) for row in found])


def test_predicts_what_pytorch_does(tiny: Any) -> None:
    with Session.load(tiny.path) as session:
        found = session.predict(TEXTS)
    expected = tiny.probabilities(TEXTS)
    assert np.abs(scores(found) - expected).max() < CLOSE
    labels = session.task.labels
    assert [row["label"] for row in found] == [labels[i] for i in expected.argmax(1)]
    assert len({row["label"] for row in found}) > 1, "one label for everything proves little"


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
@pytest.mark.parametrize("window", [1, 3, 5, 1000])
def test_order_is_kept_however_it_is_batched(
    tiny: Any, window: int, batch_size: int | None
) -> None:
    texts = [TEXTS[i % len(TEXTS)] for i in range(21)]
    with Session.load(tiny.path, threads=1) as session:
        found = list(session.map(iter(texts), window=window, batch_size=batch_size))
    assert np.abs(scores(found) - tiny.probabilities(texts)).max() < CLOSE


def test_says_what_was_loaded(tiny: Any) -> None:
    with Session.load(tiny.path) as session:
        assert session.engine_name == ENGINE
        assert session.verdict == "not run"
        assert session.task.labels == ["billing", "refund", "other"]
        assert session.signature.outputs[0].name == "logits"


def test_verdict_counts_only_for_the_engine_that_was_checked(tiny: Any, rewrite: Any) -> None:
    rewrite(tiny.path, verdicts={ENGINE: verdict(tiny.path, "verified")})
    assert Session.load(tiny.path).verdict == "verified"
    rewrite(tiny.path, verdicts={ENGINE: verdict(tiny.path, "verified", "another engine's")})
    assert Session.load(tiny.path).verdict == "not run"


def test_prefers_the_engine_that_is_verified(tiny: Any, rewrite: Any) -> None:
    engine = engine_of(tiny.path)
    int8 = dataclasses.replace(engine, precision="int8")
    rewrite(tiny.path, engines={"first": engine, "second": engine, "eight": int8})
    assert Session.load(tiny.path).engine_name == "eight"
    rewrite(tiny.path, verdicts={"second": verdict_for(tiny.path, "second", "verified")})
    assert Session.load(tiny.path).engine_name == "second"
    assert Session.load(tiny.path, engine="first").engine_name == "first"


def verdict_for(path: Path, name: str, word: str) -> Verdict:
    artifact = Artifact.open(path)
    own = artifact.sha256(artifact.manifest.engines[name].files["model"])
    return Verdict(word, "", own, "d", {}, {}, {}, "CPU")


def test_runs_an_engine_that_failed_only_when_it_is_named(tiny: Any, rewrite: Any) -> None:
    rewrite(tiny.path, verdicts={ENGINE: verdict(tiny.path, "failed")})
    with pytest.raises(CheckFailed, match=ENGINE):
        Session.load(tiny.path)
    with Session.load(tiny.path, engine=ENGINE) as session:
        assert session.verdict == "failed"
        assert len(session.predict(["text"])) == 1


def test_a_verified_engine_may_be_required(tiny: Any, rewrite: Any) -> None:
    with pytest.raises(CheckFailed) as never:
        Session.load(tiny.path, require_verified=True)
    assert never.value.what == (
        f"engine {ENGINE} is not verified (parity: not run), and only a verified one may run"
    )
    assert never.value.fix == f"Check it with: tfc verify {tiny.path} --engine {ENGINE}"
    rewrite(tiny.path, verdicts={ENGINE: verdict(tiny.path, "failed")})
    with pytest.raises(CheckFailed, match=r"parity: failed.*Build one in a higher precision"):
        Session.load(tiny.path, engine=ENGINE, require_verified=True)
    rewrite(tiny.path, verdicts={ENGINE: verdict(tiny.path, "verified")})
    with Session.load(tiny.path, require_verified=True) as session:
        assert session.verdict == "verified"
        _, arguments = session.__reduce__()
    rewrite(tiny.path, verdicts={})
    with pytest.raises(CheckFailed, match="parity: not run"):
        Session.load(*arguments)


def test_passes_over_engines_that_cannot_run_here(tiny: Any, rewrite: Any) -> None:
    engine = engine_of(tiny.path)
    other = dataclasses.replace(engine, backend="tvm")
    rewrite(tiny.path, engines={"tvm-fp32": other, ENGINE: engine})
    assert Session.load(tiny.path).engine_name == ENGINE
    rewrite(tiny.path, engines={"tvm-fp32": other})
    with pytest.raises(BackendUnavailable, match="tvm-fp32: this tfc has no backend 'tvm'") as e:
        Session.load(tiny.path)
    assert f"tfc build-engine {tiny.path}" in e.value.fix


def test_an_engine_for_a_gpu_on_a_machine_without(tiny: Any, rewrite: Any) -> None:
    if backend("tensorrt-rtx").availability().can_run:
        pytest.skip("this machine can run it")
    engine = engine_of(tiny.path)
    plan = dataclasses.replace(engine, backend="tensorrt-rtx", precision="fp16")
    rewrite(
        tiny.path,
        engines={"rtx": plan, ENGINE: engine},
        verdicts={"rtx": verdict(tiny.path, "verified")},
    )
    assert Session.load(tiny.path).engine_name == ENGINE
    with pytest.raises(EnvironmentProblem):
        Session.load(tiny.path, engine="rtx")


def test_an_artifact_without_engines(tiny: Any, rewrite: Any) -> None:
    rewrite(tiny.path, engines={})
    with pytest.raises(BackendUnavailable, match="tfc build-engine"):
        Session.load(tiny.path)
    with pytest.raises(UsageError, match="tfc build-engine"):
        Session.load(tiny.path, engine="any")


def test_an_unknown_engine_lists_those_that_are_there(tiny: Any) -> None:
    with pytest.raises(UsageError, match=f"Choose one of: {ENGINE}"):
        Session.load(tiny.path, engine="tensorrt-fp16")


def test_a_changed_engine_file_is_refused(tiny: Any) -> None:
    file = tiny.path / engine_of(tiny.path).files["model"]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadArtifact, match=r"model\.onnx"):
        Session.load(tiny.path)


def test_a_damaged_engine_with_a_matching_hash_is_refused(tiny: Any, rewrite: Any) -> None:
    file = tiny.path / engine_of(tiny.path).files["model"]
    file.write_bytes(file.read_bytes()[:5000])
    rewrite(tiny.path, files=new_manifest_files(tiny.path))
    with pytest.raises(BadArtifact, match="tfc build-engine") as caught:
        Session.load(tiny.path)
    assert caught.value.where == str(file)
    assert caught.value.__cause__ is not None


def test_a_graph_without_the_tasks_output_is_refused(tiny: Any, rewrite: Any) -> None:
    rewrite(tiny.path, task=Task("feature-extraction", pooling="mean"))
    with pytest.raises(BadArtifact, match="no output 'embedding'"):
        Session.load(tiny.path)


@pytest.mark.parametrize("threads", [0, -1])
def test_refuses_impossible_threads(tiny: Any, threads: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        Session.load(tiny.path, threads=threads)


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["a", "b"], "half \ud83d"])
def test_what_is_no_text_is_named_by_its_index(tiny: Any, bad: Any) -> None:
    with Session.load(tiny.path) as session:
        with pytest.raises(BadInput, match=r"^item 2: "):
            session.predict(["a", "b", bad])
        stream = session.map(["a", "b", bad], window=2)
        assert [next(stream), next(stream)] == session.predict(["a", "b"])
        with pytest.raises(BadInput, match=r"^item 2: "):
            next(stream)


def test_one_bare_text_is_refused(tiny: Any) -> None:
    with Session.load(tiny.path) as session:
        with pytest.raises(BadInput, match=r"predict\(\[text\]\)"):
            session.predict("text")
        with pytest.raises(BadInput, match=r"map\(\[text\]\)"):
            session.map("text")


def test_nothing_gives_nothing(tiny: Any) -> None:
    with Session.load(tiny.path) as session:
        assert session.predict([]) == []
        assert list(session.map([])) == []


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"window": 0}])
def test_refuses_impossible_sizes(tiny: Any, values: dict[str, int]) -> None:
    with Session.load(tiny.path) as session, pytest.raises(UsageError):
        list(session.map(["a"], **values))


def test_a_text_longer_than_the_engine_was_built_for(tiny: Any, rewrite: Any) -> None:
    profile = {"batch": [1, 4, 16], "sequence": [1, 8, 12]}
    rewrite(tiny.path, engines={ENGINE: dataclasses.replace(engine_of(tiny.path), profile=profile)})
    texts = ["short", "word " * 11, "word " * 10]
    with Session.load(tiny.path) as session:
        with pytest.raises(BadInput, match=r"^item 1: the text has 13 tokens.* up to 12"):
            session.predict(texts)
        outcomes = list(session.outcomes(texts))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert [outcome.tokens for outcome in outcomes] == [3, 0, 12]


class Recorder:
    """A runner that notes the shapes it was given; it may answer something else."""

    def __init__(self, runner: Any, change: Callable[[Any], Any] = lambda outputs: outputs) -> None:
        self.runner, self.change = runner, change
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Any) -> Any:
        self.shapes.append(inputs["input_ids"].shape)
        return self.change(self.runner.run(inputs))

    def close(self) -> None:
        self.runner.close()


def recording(session: Session, **values: Any) -> Recorder:
    recorder = Recorder(session._runners["model"], **values)
    session._runners = {"model": recorder}
    return recorder


def test_batches_stay_within_the_profile(tiny: Any, rewrite: Any) -> None:
    profile = {"batch": [3, 3, 5], "sequence": [10, 32, 64]}
    rewrite(tiny.path, engines={ENGINE: dataclasses.replace(engine_of(tiny.path), profile=profile)})
    texts = ["short"] * 6 + TEXTS
    with Session.load(tiny.path) as session:
        recorder = recording(session)
        found = session.predict(texts)
        one = session.predict(["short"])
        many = session.predict(texts, batch_size=100)
    assert all(3 <= rows <= 5 and 10 <= width <= 64 for rows, width in recorder.shapes)
    assert np.abs(scores(found) - tiny.probabilities(texts)).max() < CLOSE
    assert np.abs(scores(one) - scores(found)[:1]).max() < CLOSE
    assert np.abs(scores(many) - scores(found)).max() < CLOSE


def test_left_padding(tiny: Any, rewrite: Any) -> None:
    """Positions follow the padding in BERT, so the answer is that of PyTorch padded left."""
    preprocess = Artifact.open(tiny.path).manifest.preprocess
    assert preprocess is not None
    preprocess = dataclasses.replace(preprocess, padding_side="left")
    rewrite(tiny.path, preprocess=preprocess)
    with Session.load(tiny.path) as session:
        recorder = recording(session)
        equal = session.predict(["one two", "six ten"], batch_size=2)
        mixed = session.predict(["one two", "three four five six"], batch_size=2)
    assert np.abs(scores(equal) - tiny.probabilities(["one two", "six ten"])).max() < CLOSE
    assert recorder.shapes == [(2, 4), (2, 6)]
    assert np.abs(scores(mixed)[1] - tiny.probabilities(["three four five six"])[0]).max() < CLOSE
    assert np.abs(scores(mixed)[0] - scores(equal)[0]).max() > CLOSE


def test_values_that_are_not_finite_concern_their_text_only(tiny: Any) -> None:
    def spoil(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        logits = outputs["logits"].copy()
        logits[0, 1] = np.nan
        return {"logits": logits}

    texts = ["one two three", "one two", "one"]  # the longest text is the batch's first row
    with Session.load(tiny.path) as session:
        recording(session, change=spoil)
        outcomes = list(session.outcomes(texts))
        with pytest.raises(CheckFailed, match=r"^item 0: .* not finite"):
            session.predict(texts)
    assert [type(outcome.error) for outcome in outcomes] == [CheckFailed, type(None), type(None)]


def test_the_callers_own_errors_keep_their_place(tiny: Any) -> None:
    own = TfcError("a bad row")
    with Session.load(tiny.path) as session:
        outcomes = list(session.outcomes(["a", own, "b"], window=2))
    assert [outcome.error for outcome in outcomes] == [None, own, None]


def test_map_is_lazy(tiny: Any) -> None:
    read: list[int] = []

    def source() -> Iterator[str]:
        for i in range(1000):
            read.append(threading.get_ident())
            yield f"text {i}"

    with Session.load(tiny.path) as session:
        stream = session.map(source(), window=10)
        assert read == []
        next(stream)
        assert len(read) == 20, "one window and the one that is tokenised meanwhile"
        assert set(read) == {threading.get_ident()}, "the caller's iterator stays in its thread"
        stream.close()  # type: ignore[attr-defined]


def test_tensors_in_tensors_out(tiny: Any) -> None:
    batch = {
        "input_ids": np.array([[101, 7592, 102]]),
        "attention_mask": np.ones((1, 3), np.int64),
        "token_type_ids": np.zeros((1, 3), np.int64),
    }
    with Session.load(tiny.path) as session:
        outputs = session.run(batch)
    assert list(outputs) == ["logits"]
    assert np.abs(outputs["logits"] - tiny.logits(["hello"])).max() < 1e-4


def test_tensors_of_other_libraries_are_used_as_they_are(tiny: Any) -> None:
    import torch

    ids = torch.tensor([[101, 7592, 102]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids * 0}
    arrays = arrays_from_tensors(batch)
    assert arrays["input_ids"].ctypes.data == ids.data_ptr()
    with Session.load(tiny.path) as session:
        found = session.run(batch)["logits"]
        assert np.array_equal(found, session.run(arrays)["logits"])
        learned = torch.ones((1, 3), requires_grad=True)
        with pytest.raises(BadInput, match="'attention_mask' cannot be shared with numpy"):
            session.run({**batch, "attention_mask": learned})


class OnGpu:
    """A tensor in the memory of the CPU that says that it is on a GPU."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape, self.ndim = values.shape, values.ndim

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int) -> Any:
        return self.values.__dlpack__()


def test_tensors_on_a_gpu_stay_there(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime binds what is in the CPU's memory as it binds what is on a GPU."""
    ids = np.array([[101, 7592, 102]])
    batch = {"attention_mask": np.ones((1, 3), np.int64), "token_type_ids": OnGpu(ids * 0)}
    with Session.load(tiny.path) as session:
        assert session.memory is None
        with pytest.raises(BadInput, match="cannot be shared with numpy"):
            session.run({**batch, "input_ids": OnGpu(ids)})
        monkeypatch.setattr(session, "hardware", "NVIDIA L4")
        outputs = session.run({**batch, "input_ids": OnGpu(ids)})
        with pytest.raises(BadInput, match="has size 65"):
            session.run({**batch, "input_ids": OnGpu(np.ones((1, 65), np.int64))})
        expected = tiny.logits(["hello"])
        assert np.abs(np.from_dlpack(outputs["logits"]) - expected).max() < 1e-4
        (runner,) = session._loaded().values()
        monkeypatch.setattr(session, "_runners", {"model": SimpleNamespace(run=runner.run)})
        with pytest.raises(BadInput, match="this engine takes no tensors on a GPU"):
            session.run({**batch, "input_ids": OnGpu(ids)})
        monkeypatch.undo()


def spoiled(**changes: Any) -> dict[str, Any]:
    ids = np.ones((2, 4), np.int64)
    batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}
    return {name: value for name, value in {**batch, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (spoiled(token_type_ids=None), "the input 'token_type_ids' is missing"),
        (spoiled(more=np.ones(1)), "there is no 'more'"),
        (spoiled(input_ids=np.ones((2, 4), np.int32)), "of type int32; this engine takes int64"),
        (spoiled(input_ids=np.ones(4, np.int64)), "has 1 axes; this engine takes 2"),
        (spoiled(input_ids=[[1, 2], [3, 4]]), "is a list, not a numpy array"),
        (spoiled(attention_mask=np.ones((2, 5), np.int64)), "disagree on 'sequence': 4, and 5"),
        (
            spoiled(input_ids=np.ones((17, 4), np.int64)),
            "'batch' of the input 'input_ids' has size 17",
        ),
        (spoiled(input_ids=np.ones((2, 65), np.int64)), "has size 65.* 1 to 64"),
        (spoiled(input_ids=np.ones((0, 4), np.int64)), "has size 0"),
        (spoiled(input_ids=np.full((2, 4), 10**6)), "does not take these inputs: indices element"),
    ],
)
def test_tensors_that_do_not_fit(tiny: Any, batch: dict[str, Any], match: str) -> None:
    with Session.load(tiny.path) as session, pytest.raises(BadInput, match=match):
        session.run(batch)


def test_a_model_without_text_takes_tensors_only(tiny: Any, rewrite: Any) -> None:
    rewrite(tiny.path, preprocess=None)
    with Session.load(tiny.path) as session:
        assert "logits" in session.run(spoiled())
        with pytest.raises(UsageError, match="takes tensors"):
            session.predict(["text"])


def test_a_closed_session_says_so(tiny: Any) -> None:
    session = Session.load(tiny.path)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.predict(["text"])
    with pytest.raises(UsageError, match="closed"):
        session.run(spoiled())


def test_threads_share_a_session(tiny: Any) -> None:
    expected = tiny.probabilities(TEXTS)
    wrong: list[float] = []
    with Session.load(tiny.path) as session:

        def work() -> None:
            for _ in range(5):
                wrong.append(float(np.abs(scores(session.predict(TEXTS)) - expected).max()))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(wrong) == 20
    assert max(wrong) < CLOSE


class Gate:
    """A runner that waits for a second batch to run beside it, or finds that none does."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.together = False
        self._barrier = threading.Barrier(2, action=self._met)

    def _met(self) -> None:
        self.together = True

    def run(self, inputs: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(timeout=0.3)
        return self.runner.run(inputs)

    def close(self) -> None:
        self.runner.close()


@pytest.mark.parametrize(("threads", "together"), [(1, False), (2, True)])
def test_several_batches_run_at_once_on_several_threads(
    tiny: Any, threads: int, together: bool
) -> None:
    with Session.load(tiny.path, threads=threads) as session:
        if session.hardware != "CPU":
            pytest.skip("on a GPU the number of threads does not count")
        gate = Gate(session._runners["model"])
        session._runners = {"model": gate}
        found = session.predict(["one", "two", "three", "four"], batch_size=2)
    assert gate.together is together
    assert len(found) == 4


def test_a_batch_that_fails_ends_the_call(tiny: Any) -> None:
    def fail(outputs: Any) -> Any:
        time.sleep(0.01)  # long enough for the caller to hear of it before all are done
        raise BadInput("the engine broke")

    with Session.load(tiny.path, threads=2) as session:
        recorder = recording(session, change=fail)
        with pytest.raises(BadInput, match="the engine broke"):
            session.predict(["text"] * 50, batch_size=1)
    assert len(recorder.shapes) < 50, "the batches after it are given up"
