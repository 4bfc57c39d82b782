"""The runner's own logic, on stand-ins for TensorRT and CUDA whose GPU memory is host memory."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfc.errors import BackendUnavailable, BadArtifact, UsageError
from tfc.runtime.backends import cuda_memory, tensorrt_runner
from tfc.runtime.backends.cuda_memory import DeviceBuffer, checked, cudart_installed, load_cudart
from tfc.runtime.backends.tensorrt_flavors import FLAVORS
from tfc.runtime.backends.tensorrt_runner import TensorRTRunner, runner_from_plan

RTX = FLAVORS["tensorrt-rtx"]
ERROR, INTERNAL_ERROR = "ERROR", "INTERNAL_ERROR"
TRT = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
    ILogger=SimpleNamespace(ERROR=ERROR, INTERNAL_ERROR=INTERNAL_ERROR),
)
OK, NO_MEMORY, BROKEN = (SimpleNamespace(name=name) for name in ("ok", "memory", "cudaErrorX"))
STREAM = 7
Answer = tuple[Any, ...]


class Cudart:
    """CUDA whose device memory is host memory."""

    def __init__(self) -> None:
        self.cudaStreamNonBlocking = 1
        self.cudaError_t = SimpleNamespace(cudaSuccess=OK, cudaErrorMemoryAllocation=NO_MEMORY)
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.held: dict[int, Any] = {}
        self.mallocs: list[int] = []
        self.streams = 0
        self.sync_answer = OK
        self.room = 1 << 20

    def cudaMalloc(self, size: int) -> Answer:
        if size > self.room:
            return NO_MEMORY, None
        memory = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(memory)] = memory
        self.mallocs.append(size)
        return OK, ctypes.addressof(memory)

    def cudaFree(self, address: int) -> Answer:
        del self.held[address]
        return (OK,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: int, stream: int
    ) -> Answer:
        device = target if kind == 1 else source
        assert size <= len(self.held[device])
        ctypes.memmove(target, source, size)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Answer:
        self.streams += 1
        return OK, STREAM

    def cudaStreamDestroy(self, stream: int) -> Answer:
        self.streams -= 1
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> Answer:
        return (self.sync_answer,)

    def cudaGetErrorString(self, code: SimpleNamespace) -> Answer:
        return OK, b"something broke"


class Context:
    """Doubles `ids` [batch, sequence] into `doubled`, in the type of the engine's output."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.running = threading.Lock()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return all(size <= most for size, most in zip(shape, self.engine.most, strict=True))

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 2) if self.engine.dynamic else self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        assert self.running.acquire(blocking=False), "two batches at a time"
        count = int(np.prod(self.shape))
        ids = np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(self.addresses["ids"]))
        doubled = (ids * 2).astype(np.float32)
        data = doubled.tobytes()
        if self.engine.types["doubled"] == "BF16":
            data = (doubled.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        ctypes.memmove(self.addresses["doubled"], data, len(data))
        self.running.release()
        return not self.engine.failing


class Engine:
    num_io_tensors = 2

    def __init__(self, output: str = "FLOAT", *, dynamic: bool = False) -> None:
        self.types = {"ids": "INT64", "doubled": output}
        self.most = (4, 8)
        self.dynamic = dynamic
        self.failing = False

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "ids" else "out"

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self.types[name])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        assert profile == 0
        return [(1, 1), (2, 4), self.most]

    def create_execution_context(self) -> Context:
        return Context(self)


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Cudart:
    cudart = Cudart()
    monkeypatch.setattr(tensorrt_runner, "load_cudart", lambda: cudart)
    return cudart


def runner_of(engine: Engine, said: list[tuple[str, str]] | None = None) -> TensorRTRunner:
    logger = SimpleNamespace(said=said if said is not None else [])
    return TensorRTRunner(RTX, TRT, logger, engine)


def ids(*shape: int) -> dict[str, np.ndarray]:
    return {"ids": np.arange(np.prod(shape), dtype=np.int64).reshape(shape)}


def test_a_batch(cudart: Cudart) -> None:
    output = runner_of(Engine()).run(ids(2, 3))["doubled"]
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output, [[0, 2, 4], [6, 8, 10]])


def test_buffers_grow_and_are_reused(cudart: Cudart) -> None:
    runner = runner_of(Engine())
    for shape in ((2, 3), (4, 8), (1, 1)):
        batch = ids(*shape)
        np.testing.assert_array_equal(runner.run(batch)["doubled"], batch["ids"] * 2)
    assert cudart.mallocs == [6 * 8, 6 * 4, 32 * 8, 32 * 4]
    assert len(cudart.held) == 2


def test_narrower_integers_and_views_are_converted(cudart: Cudart) -> None:
    runner = runner_of(Engine())
    batch = np.arange(12, dtype=np.int32).reshape(3, 4).T[:, ::2]
    np.testing.assert_array_equal(runner.run({"ids": batch})["doubled"], batch * 2)


def test_bfloat16_outputs_come_back_as_float32(cudart: Cudart) -> None:
    output = runner_of(Engine("BF16")).run(ids(2, 3))["doubled"]
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
    runner = runner_of(Engine())
    with pytest.raises(UsageError) as raised:
        runner.run(batch)
    assert str(raised.value) == sentence
    assert runner.run(ids(1, 1))["doubled"] == 0


def test_a_batch_that_fails_says_why(cudart: Cudart) -> None:
    engine = Engine()
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
    assert raised.value.what == "TensorRT-RTX failed to run this batch: the reason"


def test_cuda_errors_are_translated(cudart: Cudart) -> None:
    runner = runner_of(Engine())
    cudart.sync_answer = BROKEN
    with pytest.raises(BackendUnavailable, match=r"refuses: something broke \(cudaErrorX\)"):
        runner.run(ids(1, 1))


def test_gpu_memory_that_runs_out(cudart: Cudart) -> None:
    runner = runner_of(Engine())
    cudart.room = 100
    with pytest.raises(BackendUnavailable, match=r"the GPU is out of memory\. Use a smaller"):
        runner.run(ids(4, 8))
    assert runner.run(ids(1, 2))["doubled"].tolist() == [[0, 2]]


def test_closing_gives_everything_back_and_can_be_repeated(cudart: Cudart) -> None:
    runner = runner_of(Engine())
    runner.run(ids(2, 2))
    runner.close()
    runner.close()
    assert (cudart.held, cudart.streams) == ({}, 0)
    with pytest.raises(UsageError, match="this engine is closed"):
        runner.run(ids(1, 1))


def test_threads_run_one_after_the_other(cudart: Cudart) -> None:
    runner = runner_of(Engine())
    wrong: list[int] = []

    def work(number: int) -> None:
        batch = {"ids": np.full((2, 4), number, np.int64)}
        for _ in range(50):
            if not (runner.run(batch)["doubled"] == 2 * number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_output_whose_shape_depends_on_the_data(cudart: Cudart) -> None:
    with pytest.raises(BadArtifact, match="the shape of the output 'doubled' depends on the data"):
        runner_of(Engine(dynamic=True)).run(ids(1, 2))


def test_a_tensor_that_numpy_cannot_hold(cudart: Cudart) -> None:
    with pytest.raises(BadArtifact, match="'doubled' is of the type FP8, which has no numpy form"):
        runner_of(Engine("FP8"))


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="there is no such engine"):
        runner_from_plan(RTX, tmp_path / "absent.plan")


def test_an_empty_tensor_still_has_an_address(cudart: Cudart) -> None:
    assert DeviceBuffer(cudart).reserve(0) != 0


def test_free_memory_is_the_gpus_own_answer(
    cudart: Cudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "load_cudart", lambda: cudart)
    monkeypatch.setattr(cuda_memory, "cudart_installed", lambda: True)
    monkeypatch.setattr(cudart, "cudaMemGetInfo", lambda: (OK, 5, 7), raising=False)
    assert cuda_memory.free_bytes() == 5
    bad = SimpleNamespace(name="cudaErrorNoDevice")
    monkeypatch.setattr(cudart, "cudaMemGetInfo", lambda: (bad, 0, 0))
    with pytest.raises(BackendUnavailable, match="the GPU refuses"):
        cuda_memory.free_bytes()
    monkeypatch.setattr(cuda_memory, "cudart_installed", lambda: False)
    assert cuda_memory.free_bytes() is None


@pytest.mark.skipif(not cudart_installed(), reason="cuda-python is not installed")
def test_the_real_bindings_answer_as_checked_expects() -> None:
    cudart = load_cudart()
    assert checked(cudart, (cudart.cudaError_t.cudaSuccess, 5)) == 5
    assert checked(cudart, (cudart.cudaError_t.cudaSuccess,)) is None
    with pytest.raises(BackendUnavailable, match=r"invalid argument \(cudaErrorInvalidValue\)"):
        checked(cudart, (cudart.cudaError_t.cudaErrorInvalidValue, None))
    with pytest.raises(BackendUnavailable, match="the GPU is out of memory"):
        checked(cudart, (cudart.cudaError_t.cudaErrorMemoryAllocation, None))
