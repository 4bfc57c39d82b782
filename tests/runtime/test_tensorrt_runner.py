"""The runner's own logic, on stand-ins for TensorRT and CUDA (`tests/fake_gpu.py`)."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_gpu import (
    BROKEN,
    ERROR,
    INTERNAL_ERROR,
    TRT,
    USER_MANAGED,
    WHOLE_GRAPH_CAPTURE,
    Context,
    Cudart,
    Engine,
)

from tfc.errors import BackendUnavailable, BadArtifact, BadInput, UsageError
from tfc.runtime.backends import device_tensor, tensorrt_runner
from tfc.runtime.backends.base import GpuMemory
from tfc.runtime.backends.cuda_calls import Cuda, checked, cudart_installed, load_cudart
from tfc.runtime.backends.cuda_memory import DeviceBuffer
from tfc.runtime.backends.tensorrt_flavors import FLAVORS
from tfc.runtime.backends.tensorrt_runner import RunSettings, TensorRTRunner, runner_from_plan

TENSORRT, RTX = FLAVORS["tensorrt"], FLAVORS["tensorrt-rtx"]
ONE_LANE = RunSettings(lanes=1)


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Cudart:
    cudart = Cudart()
    monkeypatch.setattr(tensorrt_runner, "load_cudart", lambda: cudart)
    return cudart


def runner_of(
    engine: Engine,
    said: list[tuple[str, str]] | None = None,
    flavor: Any = TENSORRT,
    settings: RunSettings = ONE_LANE,
) -> TensorRTRunner:
    logger = SimpleNamespace(said=said if said is not None else [])
    return TensorRTRunner(flavor, TRT, logger, engine, settings, plan_bytes=1000)


def ids(*shape: int) -> dict[str, np.ndarray]:
    return {"ids": np.arange(np.prod(shape), dtype=np.int64).reshape(shape)}


def test_a_batch(cudart: Cudart) -> None:
    output = runner_of(Engine(cudart)).run(ids(2, 3))["doubled"]
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output, [[0, 2, 4], [6, 8, 10]])


def test_results_outlive_the_next_batch(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    first = runner.run(ids(2, 3))["doubled"]
    for _ in range(3):
        runner.run({"ids": np.full((2, 3), 7, np.int64)})
    np.testing.assert_array_equal(first, [[0, 2, 4], [6, 8, 10]])


def test_buffers_grow_and_are_reused(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    for shape in ((2, 3), (4, 8), (1, 1)):
        batch = ids(*shape)
        np.testing.assert_array_equal(runner.run(batch)["doubled"], batch["ids"] * 2)
    activations = 64
    assert cudart.mallocs == [activations, 6 * 8, 6 * 4, 32 * 8, 32 * 4]
    assert len(cudart.held) == 3


def test_narrower_integers_and_views_are_converted(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    batch = np.arange(12, dtype=np.int32).reshape(3, 4).T[:, ::2]
    np.testing.assert_array_equal(runner.run({"ids": batch})["doubled"], batch * 2)


def test_bfloat16_outputs_come_back_as_float32(cudart: Cudart) -> None:
    output = runner_of(Engine(cudart, "BF16")).run(ids(2, 3))["doubled"]
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output, [[0, 2, 4], [6, 8, 10]])


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({}, "the input 'ids' is missing. The batch has []"),
        (
            {"ids": np.zeros((1, 2), np.float32)},
            "the input 'ids' is of type float32; this engine takes int64."
            " Convert it with .astype('int64')",
        ),
        (
            ids(5, 2),
            "the input 'ids' has the shape (5, 2); this engine takes (1, 1) to (4, 8)."
            " Use smaller batches, or build the engine for this shape: tfc build-engine",
        ),
    ],
)
def test_a_batch_that_the_engine_does_not_take(
    cudart: Cudart, batch: dict[str, Any], sentence: str
) -> None:
    runner = runner_of(Engine(cudart))
    with pytest.raises(UsageError) as raised:
        runner.run(batch)
    assert str(raised.value) == sentence
    assert runner.run(ids(1, 1))["doubled"] == 0


def test_a_batch_that_fails_says_why(cudart: Cudart) -> None:
    engine = Engine(cudart)
    said: list[tuple[str, str]] = []
    runner = runner_of(engine, said)
    engine.failing = True
    execute = Context.execute_async_v3

    def execute_and_say(self: Context, stream: int) -> bool:
        said.extend([(INTERNAL_ERROR, "noise"), (ERROR, "the reason")])
        return execute(self, stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Context, "execute_async_v3", execute_and_say)
        with pytest.raises(BackendUnavailable) as raised:
            runner.run(ids(1, 1))
    assert raised.value.what == "TensorRT failed to run this batch: the reason"


def test_cuda_errors_are_translated(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    cudart.sync_answer = BROKEN
    with pytest.raises(BackendUnavailable, match=r"refuses: something broke \(cudaErrorX\)"):
        runner.run(ids(1, 1))


def test_gpu_memory_that_runs_out(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    cudart.room = 100
    with pytest.raises(BackendUnavailable, match=r"the GPU is out of memory\. Use a smaller"):
        runner.run(ids(4, 8))
    assert runner.run(ids(1, 2))["doubled"].tolist() == [[0, 2]]


def test_closing_gives_everything_back_and_can_be_repeated(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    for _ in range(3):
        runner.run(ids(2, 2))
    assert runner.graphs == 1
    runner.close()
    runner.close()
    assert (cudart.held, cudart.pinned, cudart.streams, cudart.graphs) == ({}, {}, {}, {})
    with pytest.raises(UsageError, match="this engine is closed"):
        runner.run(ids(1, 1))


def test_the_order_of_a_batch(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart), settings=RunSettings(1, graphs=False))
    runner.run(ids(2, 3))
    (stream,) = cudart.streams
    order = ["copy in", "enqueue", "copy out", "synchronize"]
    assert cudart.said == [(what, stream) for what in order]


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_threads_get_their_own_results(cudart: Cudart, lanes: int) -> None:
    engine = Engine(cudart)
    runner = runner_of(engine, settings=RunSettings(lanes))
    wrong: list[int] = []

    def work(number: int) -> None:
        for call in range(40):
            batch = {"ids": np.full((1 + call % 4, 1 + number), 10 * number + call, np.int64)}
            if not (runner.run(batch)["doubled"] == 2 * batch["ids"]).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= len(cudart.streams) == runner.memory.lanes <= lanes
    runner.close()
    assert (cudart.held, cudart.graphs) == ({}, {})


def test_lanes_are_made_when_they_are_needed(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart), settings=RunSettings(lanes=2, graphs=False))
    runner.run(ids(2, 3))
    runner.run(ids(2, 3))
    assert runner.memory == GpuMemory(1000, 1, 2, 64, buffers=6 * 8 + 6 * 4, pinned=6 * 8 + 6 * 4)
    assert runner.memory.on_gpu == 1000 + 64 + 72
    with runner._pool.lane(0):  # one is in use: the next batch needs another
        runner.run(ids(2, 3))
    assert runner.memory.lanes == len(cudart.streams) == 2
    assert runner.memory.on_gpu == 1000 + 2 * 64 + 2 * 72


def test_a_graph_is_captured_when_a_shape_comes_again(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    for call in range(4):
        batch = ids(2, 3)
        batch["ids"] += call
        np.testing.assert_array_equal(runner.run(batch)["doubled"], batch["ids"] * 2)
    ran = [what for what, _ in cudart.said if what in ("enqueue", "launch")]
    # Twice run, the second time by the graph's own context, then recorded; then launched.
    assert ran == ["enqueue", "enqueue", "enqueue", "launch", "launch"]
    assert runner.graphs == 1


def test_graphs_and_other_shapes_between_them(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    shapes = [(4, 8), (2, 3), (2, 3), (1, 4), (2, 3), (1, 4), (3, 3), (1, 4), (2, 3)]
    for number, shape in enumerate(shapes):
        batch = {"ids": np.full(shape, number, np.int64)}
        np.testing.assert_array_equal(runner.run(batch)["doubled"], batch["ids"] * 2)
    assert runner.graphs == 2
    assert [what for what, _ in cudart.said].count("launch") == 3


def test_buffers_that_move_take_the_graphs_with_them(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    for shape in ((1, 2), (1, 2), (4, 8), (1, 2), (1, 2)):
        batch = ids(*shape)
        np.testing.assert_array_equal(runner.run(batch)["doubled"], batch["ids"] * 2)
        if shape == (4, 8):
            assert cudart.graphs == {}
    assert runner.graphs == 1


def test_contexts_of_graphs_share_the_lane_s_memory(cudart: Cudart) -> None:
    engine = Engine(cudart)
    runner = runner_of(engine)
    for _ in range(2):
        runner.run(ids(2, 3))
    assert len(engine.contexts) == 2
    assert len({context.memory for context in engine.contexts}) == 1
    assert {context.made_with for context in engine.contexts} == {USER_MANAGED}


def test_a_capture_that_fails_leaves_the_engine_running(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart))
    cudart.capture_answer = BROKEN
    for call in range(4):
        batch = {"ids": np.full((2, 3), call, np.int64)}
        np.testing.assert_array_equal(runner.run(batch)["doubled"], batch["ids"] * 2)
    (lane,) = runner._pool.lanes
    assert lane.why_no_graphs == "the GPU refuses: something broke (cudaErrorX)"
    assert (runner.graphs, cudart.capturing) == (0, {})
    assert [what for what, _ in cudart.said].count("enqueue") == 5  # one of them in the capture


def test_graphs_can_be_left_out(cudart: Cudart) -> None:
    runner = runner_of(Engine(cudart), settings=RunSettings(1, graphs=False))
    for _ in range(4):
        runner.run(ids(2, 3))
    assert [what for what, _ in cudart.said].count("enqueue") == 4
    assert runner.graphs == 0


@pytest.mark.parametrize("graphs", [True, False])
def test_tensorrt_rtx_captures_graphs_by_itself(cudart: Cudart, graphs: bool) -> None:
    engine = Engine(cudart)
    runner = runner_of(engine, flavor=RTX, settings=RunSettings(1, graphs))
    for number, shape in enumerate([(4, 8), (2, 3), (2, 3), (1, 3), (2, 3)]):
        batch = {"ids": np.full(shape, number, np.int64)}
        np.testing.assert_array_equal(runner.run(batch)["doubled"], batch["ids"] * 2)
    strategies = [context.made_with.cuda_graph_strategy for context in engine.contexts]
    assert strategies == ([None, WHOLE_GRAPH_CAPTURE] if graphs else [None])
    assert runner.memory.activations == 64 * len(strategies)
    assert {context.memory for context in engine.contexts} == {None}
    if graphs:  # what comes again
        assert [context.ran for context in engine.contexts] == [
            [(4, 8), (2, 3), (1, 3)],
            [(2, 3), (2, 3)],
        ]
    assert [what for what, _ in cudart.said].count("enqueue") == 5
    assert runner.graphs == 0


def test_the_profile_is_chosen_for_each_batch(cudart: Cudart) -> None:
    short, long = ((1, 1), (4, 2), (8, 2)), ((1, 2), (2, 8), (4, 8))
    engine = Engine(cudart, profiles=(short, long))
    runner = runner_of(engine, settings=RunSettings(1, graphs=False))
    for shape, profile in (((8, 2), 0), ((4, 8), 1), ((2, 2), 0), ((1, 3), 1)):
        batch = ids(*shape)
        np.testing.assert_array_equal(runner.run(batch)["doubled"], batch["ids"] * 2)
        (context,) = engine.contexts
        assert context.active_optimization_profile == profile
    with pytest.raises(UsageError, match=r"takes \(1, 1\) to \(8, 2\), or \(1, 2\) to \(4, 8\)"):
        runner.run(ids(8, 3))


def test_tensors_on_the_device_are_used_where_they_are(cudart: Cudart) -> None:
    engine = Engine(cudart)
    runner = runner_of(engine)
    memory = np.arange(6, dtype=np.int64).reshape(2, 3)
    tensor = on_the_gpu(memory)
    outputs = runner.run_on_device({"ids": tensor})
    assert tensor.streams == list(cudart.streams)  # what it is ready for
    assert engine.contexts[0].addresses["ids"] == memory.ctypes.data
    doubled = outputs["doubled"]
    assert engine.contexts[0].addresses["doubled"] == doubled.address
    assert (doubled.shape, doubled.dtype, doubled.__dlpack_device__()) == ((2, 3), "f4", (2, 3))
    assert "copy in" not in [what for what, _ in cudart.said]
    assert bytes(cudart.held[doubled.address]) == (memory * 2).astype(np.float32).tobytes()
    held = len(cudart.held)
    del outputs, doubled
    assert len(cudart.held) == held - 1


def test_arrays_and_tensors_of_the_device_together(cudart: Cudart) -> None:
    outputs = runner_of(Engine(cudart)).run_on_device(ids(2, 3))
    data = bytes(cudart.held[outputs["doubled"].address])
    assert np.frombuffer(data, np.float32).tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("memory", "device", "sentence"),
    [
        (np.zeros((2, 3), np.int32), 3, "is of type int32; this engine takes int64"),
        (np.zeros((2, 3), np.int64), 1, "is on GPU 1; this engine is on GPU 3"),
        (np.zeros((9, 3), np.int64), 3, "has the shape"),
        (np.zeros((3, 2), np.int64).T, 3, "is not contiguous"),
        (np.zeros((2, 3), np.complex64), 3, "has a type that no engine reads"),
    ],
)
def test_a_tensor_of_the_device_that_the_engine_does_not_take(
    cudart: Cudart, memory: Any, device: int, sentence: str
) -> None:
    with pytest.raises((UsageError, BadInput), match=sentence):
        runner_of(Engine(cudart)).run_on_device({"ids": on_the_gpu(memory, device)})


def on_the_gpu(memory: np.ndarray, device: int = 3) -> Any:
    """A tensor of another library that says that it is on a GPU."""

    class Tensor:
        shape = memory.shape
        streams: list[int] = []  # noqa: RUF012

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, device

        def __dlpack__(self, *, stream: int) -> Any:
            self.streams.append(stream)
            return capsule_of(memory, (2, device))

    return Tensor()


def capsule_of(memory: np.ndarray, device: tuple[int, int]) -> Any:
    """numpy's own capsule, which says another device."""
    capsule = memory.__dlpack__()
    address = device_tensor._pointer(capsule, b"dltensor")
    found = device_tensor._Managed.from_address(address).tensor.device
    found.type, found.id = device
    return capsule


def test_an_output_whose_shape_depends_on_the_data(cudart: Cudart) -> None:
    with pytest.raises(BadArtifact, match="the shape of the output 'doubled' depends on the data"):
        runner_of(Engine(cudart, dynamic=True)).run(ids(1, 2))


def test_a_tensor_that_numpy_cannot_hold(cudart: Cudart) -> None:
    with pytest.raises(BadArtifact, match="'doubled' is of the type FP8, which has no numpy form"):
        runner_of(Engine(cudart, "FP8"))


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="there is no such engine"):
        runner_from_plan(RTX, tmp_path / "absent.plan")


def test_an_empty_tensor_still_has_an_address(cudart: Cudart) -> None:
    buffer = DeviceBuffer(Cuda(cudart))
    assert buffer.reserve(0)
    assert buffer.address != 0


@pytest.mark.skipif(not cudart_installed(), reason="cuda-python is not installed")
def test_the_real_bindings_answer_as_checked_expects() -> None:
    cudart = load_cudart()
    assert checked(cudart, (cudart.cudaError_t.cudaSuccess, 5)) == 5
    assert checked(cudart, (cudart.cudaError_t.cudaSuccess,)) is None
    with pytest.raises(BackendUnavailable, match=r"invalid argument \(cudaErrorInvalidValue\)"):
        checked(cudart, (cudart.cudaError_t.cudaErrorInvalidValue, None))
    with pytest.raises(BackendUnavailable, match="the GPU is out of memory"):
        checked(cudart, (cudart.cudaError_t.cudaErrorMemoryAllocation, None))
