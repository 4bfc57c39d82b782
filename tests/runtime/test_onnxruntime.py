"""The ONNX Runtime backend: what it builds runs, and what it raises is tfc's."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.errors import BackendUnavailable, BadArtifact, BadInput, EnvironmentProblem, UsageError
from tfc.runtime.backends import onnxruntime as module
from tfc.runtime.backends import onnxruntime_sessions
from tfc.runtime.backends.base import Inputs, Profile, Range
from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tfc.runtime.backends.onnxruntime_binding import CUDA_PLACE
from tfc.runtime.backends.onnxruntime_provider import (
    CPU,
    CUDA,
    IDENTITY_MODEL,
    Provider,
    best_provider,
)
from tfc.runtime.backends.onnxruntime_sessions import SessionSettings
from tfc.runtime.gpu import DriverError, Gpu

pytestmark = pytest.mark.ort

BACKEND = OnnxRuntimeBackend()
INPUTS = Inputs({"ids": ("int64", ("batch", "sequence")), "attention_mask": ("int64", ("batch",))})
PROFILE = Profile(Range(2, 4, 8), Range(3, 8, 16))

SUM = """
<ir_version: 10, opset_import: ["" : 21]>
sum (int64[batch,sequence] ids, int64[batch] attention_mask) => (int64[batch,1] total)
{
    axis = Constant <value_ints: ints = [1]> ()
    sums = ReduceSum (ids, axis)
    column = Unsqueeze (attention_mask, axis)
    total = Add (sums, column)
}
"""


def model_file(path: Path, text: str = SUM) -> Path:
    onnx = pytest.importorskip("onnx")
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


def test_what_is_built_runs(tmp_path: Path) -> None:
    model = model_file(tmp_path / "model.onnx")
    built = BACKEND.build(model, tmp_path / "engines" / "engine.onnx", INPUTS, PROFILE)
    runner = BACKEND.load(tmp_path / "engines" / "engine.onnx", threads=1)
    outputs = runner.run(
        {"ids": np.array([[1, 2, 3], [4, 5, 6]]), "attention_mask": np.ones(2, int)}
    )
    assert outputs["total"].tolist() == [[7], [16]]
    assert built.versions["onnxruntime"] == BACKEND.availability().version
    assert built.hardware == runner.hardware == best_provider().hardware


def test_takes_arrays_that_are_not_contiguous(tmp_path: Path) -> None:
    runner = BACKEND.load(model_file(tmp_path / "model.onnx"))
    ids = np.array([[1, 0, 2, 0], [4, 0, 5, 0]])[:, ::2]
    assert runner.run({"ids": ids, "attention_mask": np.zeros(2, int)})["total"].tolist() == [
        [3],
        [9],
    ]


def test_builds_with_the_smallest_sizes_of_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    run = module.OnnxRuntimeRunner.run

    def spy(self: Any, inputs: Any) -> Any:
        given.append(dict(inputs))
        return run(self, inputs)

    monkeypatch.setattr(module.OnnxRuntimeRunner, "run", spy)
    model = model_file(tmp_path / "model.onnx")
    BACKEND.build(model, tmp_path / "engine.onnx", INPUTS, PROFILE)
    assert given[0]["ids"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert given[0]["attention_mask"].tolist() == [1, 1]


def test_a_graph_that_does_not_run_is_not_built(tmp_path: Path) -> None:
    broken = SUM.replace(
        "axis = Constant <value_ints: ints = [1]>", "axis = Constant <value_ints: ints = [5]>"
    )
    model = model_file(tmp_path / "model.onnx", broken)
    with pytest.raises((BadInput, BadArtifact)):
        BACKEND.build(model, tmp_path / "engine.onnx", INPUTS, PROFILE)
    assert not (tmp_path / "engine.onnx").exists()
    assert model.exists()


def test_a_graph_that_left_its_weights_behind_is_not_built(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    text = SUM.replace("{", "{ big = Constant <value = int64[2] {1, 2}> ()\n", 1)
    model = onnx.parser.parse_model(text)
    weight = onnx.numpy_helper.from_array(np.ones(1024, np.int64), "weight")
    model.graph.initializer.append(weight)
    model.graph.node.append(onnx.helper.make_node("Identity", ["weight"], ["kept"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("kept", 7, [1024]))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin")
    (tmp_path / "out").mkdir()
    with pytest.raises(BadArtifact, match=r"weights\.bin"):
        BACKEND.build(tmp_path / "model.onnx", tmp_path / "out" / "e.onnx", INPUTS, PROFILE)
    assert not (tmp_path / "out" / "e.onnx").exists()


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 64],
    ids=["truncated", "empty", "garbage"],
)
def test_a_damaged_engine_names_the_file_and_the_fix(spoil: Any, tmp_path: Path) -> None:
    engine = model_file(tmp_path / "engine.onnx")
    engine.write_bytes(spoil(engine.read_bytes()))
    with pytest.raises(BadArtifact, match="tfc build-engine") as caught:
        BACKEND.load(engine)
    assert caught.value.where == str(engine)
    assert re.fullmatch(r"ONNX Runtime cannot read this engine: [A-Z][^:]*", caught.value.what)
    assert type(caught.value.__cause__).__module__.startswith("onnxruntime")


def test_a_missing_engine(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="tfc build-engine"):
        BACKEND.load(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "text",
    [
        SUM.replace('"" : 21', '"" : 99'),
        SUM.replace("ir_version: 10", "ir_version: 99"),
        SUM.replace("ReduceSum", "com.example.Unheard").replace(
            '"" : 21', '"" : 21, "com.example" : 1'
        ),
    ],
    ids=["opset", "ir version", "operator"],
)
def test_a_graph_that_is_too_new_asks_for_an_upgrade(text: str, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="pip install -U"):
        BACKEND.load(model_file(tmp_path / "engine.onnx", text))


def test_an_operator_without_a_kernel_asks_for_an_upgrade(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (bfloat16[2,2] x) => (bfloat16[2,2] y) { y = MatMul (x, x) }
    """
    if best_provider().name != CPU:
        pytest.skip("the GPU has this kernel")
    with pytest.raises(BackendUnavailable, match="MatMul"):
        BACKEND.load(model_file(tmp_path / "engine.onnx", text))


@pytest.mark.parametrize(
    "inputs",
    [
        {"ids": np.ones((2, 3), int)},
        {"ids": np.ones((2, 3), np.int32), "attention_mask": np.ones(2, int)},
        {"ids": np.ones(3, int), "attention_mask": np.ones(2, int)},
        {"ids": np.ones((2, 3), int), "attention_mask": np.ones(5, int)},
        {"ids": np.ones((2, 3), int), "attention_mask": np.ones(2, int), "more": np.ones(1)},
    ],
    ids=["missing", "type", "rank", "shape", "unknown"],
)
def test_inputs_that_do_not_fit(
    inputs: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runner = BACKEND.load(model_file(tmp_path / "model.onnx"))
    with pytest.raises(BadInput) as caught:
        runner.run(inputs)
    assert caught.value.__cause__ is not None
    assert capfd.readouterr().err == "", "what is raised is not printed too"


def test_out_of_memory_is_told_from_bad_inputs(tmp_path: Path) -> None:
    runner = BACKEND.load(model_file(tmp_path / "model.onnx"))

    class Full:
        def run(self, *_: Any) -> Any:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 99")

    runner._session = Full()
    with pytest.raises(EnvironmentProblem, match="batch_size"):
        runner.run({})


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    runner = BACKEND.load(model_file(tmp_path / "model.onnx"))
    runner.close()
    runner.close()
    with pytest.raises(UsageError, match="closed"):
        runner.run({})


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads(threads: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    seen: list[Any] = []
    real = onnxruntime.InferenceSession

    def spy(path: str, options: Any, **values: Any) -> Any:
        seen.append(options)
        return real(path, options, **values)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    BACKEND.load(model_file(tmp_path / "model.onnx"), threads=threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert seen[0].intra_op_num_threads == (threads or cores)
    assert seen[0].execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert seen[0].graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_the_probe_is_one_identity_node() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(IDENTITY_MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


@pytest.fixture
def provider_cache() -> Any:
    best_provider.cache_clear()
    yield
    best_provider.cache_clear()


@pytest.mark.usefixtures("provider_cache")
def test_cuda_counts_only_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from tfc.runtime.backends import onnxruntime_provider

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("tfc.runtime.gpu.gpus", lambda: (Gpu("NVIDIA L4", "8.9", "13.0"),))
    monkeypatch.setattr(onnxruntime_provider, "_runs", lambda library, provider: False)
    assert best_provider().hardware == "CPU"
    assert best_provider().names == [CPU]

    best_provider.cache_clear()
    monkeypatch.setattr(onnxruntime_provider, "_runs", lambda library, provider: True)
    assert best_provider().hardware == "NVIDIA L4"
    assert best_provider().names == [CUDA, CPU]

    best_provider.cache_clear()
    monkeypatch.setattr("tfc.runtime.gpu.gpus", lambda: ())
    assert best_provider().hardware == "CPU"


def test_the_probe_tells_a_provider_that_falls_back() -> None:
    """Asked for CUDA without a GPU, ONNX Runtime warns and runs on the CPU."""
    import onnxruntime

    from tfc.runtime.backends.onnxruntime_provider import Provider, _runs
    from tfc.runtime.gpu import gpus

    assert _runs(onnxruntime, Provider(CPU, "CPU"))
    if CUDA in onnxruntime.get_available_providers() and not gpus():
        assert not _runs(onnxruntime, Provider(CUDA, "a GPU that is not there"))


def test_availability_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = BACKEND.availability()
    assert not found.can_run
    assert not found.can_build
    assert "pip install onnxruntime" in found.why_not_run


def test_one_file_is_loaded_once_in_a_process(tmp_path: Path) -> None:
    model = model_file(tmp_path / "model.onnx")
    first, second = BACKEND.load(model, threads=1), BACKEND.load(model, threads=1)
    assert first._session is second._session
    assert BACKEND.load(model, threads=2)._session is not first._session
    first.close()
    batch = {"ids": np.array([[1, 2]]), "attention_mask": np.zeros(1, int)}
    assert second.run(batch)["total"].tolist() == [[3]]
    second.close()
    gc.collect()
    assert not [key for key in onnxruntime_sessions._sessions if key[0] == model.resolve()]


def test_a_file_that_was_written_anew_is_loaded_anew(tmp_path: Path) -> None:
    model = model_file(tmp_path / "model.onnx")
    batch = {"ids": np.array([[1, 2]]), "attention_mask": np.ones(1, int)}
    first = BACKEND.load(model)
    model_file(model, SUM.replace("Add (sums", "Sub (sums"))
    assert BACKEND.load(model).run(batch)["total"].tolist() == [[2]]
    assert first.run(batch)["total"].tolist() == [[4]]


def test_a_forked_child_has_a_session_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_file(tmp_path / "model.onnx")
    first = BACKEND.load(model)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert BACKEND.load(model)._session is not first._session


def test_threads_of_a_gpu_s_session_are_left_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module, "best_provider", lambda: Provider(CUDA, "NVIDIA L4"))
    monkeypatch.setattr(module, "shared_session", lambda ort, path, s: asked.append(s) or Outputs())
    runner = BACKEND.load(tmp_path / "model.onnx")
    assert asked == [SessionSettings((CUDA, CPU), 1)]
    assert runner._place is CUDA_PLACE


class Outputs:
    def get_outputs(self) -> list[Any]:
        return []


class OnCuda:
    """A tensor in the memory of the CPU that says that it is on a GPU."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape = values.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int) -> Any:
        assert stream == 1
        return self.values.__dlpack__()


def test_tensors_are_bound_where_they_are(tmp_path: Path) -> None:
    """On the CPU, which binds tensors as a GPU does."""
    runner = BACKEND.load(model_file(tmp_path / "model.onnx"))
    if runner.hardware != "CPU":
        pytest.skip("is about the CPU's provider")
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    total = runner.run_on_device({"ids": OnCuda(ids), "attention_mask": np.ones(2, int)})["total"]
    assert (total.shape, total.dtype, total.__dlpack_device__()) == ((2, 1), np.int64, (1, 0))
    runner.close()
    gc.collect()
    assert np.from_dlpack(total).tolist() == [[7], [16]]


def test_what_others_have_queued_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = module.OnnxRuntimeRunner(Outputs(), "NVIDIA L4", CUDA_PLACE)
    waited: list[int] = []
    monkeypatch.setattr(module, "wait_for_gpu", waited.append)
    monkeypatch.setattr(module, "outputs_where_they_are", lambda *given: {"given": given[3]})
    assert runner.run_on_device({}) == {"given": CUDA_PLACE}
    assert waited == [0]

    def fails(index: int) -> None:
        raise DriverError("a kernel failed")

    monkeypatch.setattr(module, "wait_for_gpu", fails)
    with pytest.raises(BackendUnavailable, match="cannot be waited for: a kernel failed"):
        runner.run_on_device({})


def test_a_tensor_that_does_not_fit_is_refused_as_an_array_is(tmp_path: Path) -> None:
    runner = BACKEND.load(model_file(tmp_path / "model.onnx"))
    with pytest.raises(BadInput, match="does not take these inputs"):
        runner.run_on_device({"ids": OnCuda(np.zeros((1, 2), np.float32))})
