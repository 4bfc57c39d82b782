"""Engines on a GPU: sizes, callers, CUDA graphs, memory, tensors that stay there.

Where there is none they are skipped, and the checks themselves run on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_checks import (
    ALL_ROWS,
    INPUTS,
    LAYER,
    ONE_ROW,
    PROFILE,
    TOLERANCE,
    batch_of,
    check_memory,
    check_repeats,
    check_sizes,
    check_threads,
    reference,
    save_layer,
)

from tfc.errors import UsageError
from tfc.runtime.backends.cuda_calls import load_cudart
from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeRunner
from tfc.runtime.backends.tensorrt import TENSORRT, TENSORRT_RTX, TensorRTBackend
from tfc.runtime.backends.tensorrt_flavors import FLAVORS
from tfc.runtime.backends.tensorrt_runner import RunSettings, TensorRTRunner, runner_from_plan
from tfc.runtime.gpu import gpus, why_no_gpu

needs_gpu = pytest.mark.skipif(not gpus(), reason=f"needs a GPU: {why_no_gpu()}")
BACKENDS = {backend.name: backend for backend in (TENSORRT, TENSORRT_RTX)}
# TensorRT-RTX runs a general kernel for a shape until one for this shape is compiled: a batch may
# be rounded in another way when it comes again.
ROUNDING = {"tensorrt": 0.0, "tensorrt-rtx": TOLERANCE}


@pytest.fixture(scope="module")
def reference_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layer as ONNX Runtime runs it on the CPU."""
    folder = tmp_path_factory.mktemp("layer")
    return save_layer(folder / "layer.onnx", LAYER.replace(ONE_ROW, ALL_ROWS))


@pytest.fixture(scope="module", params=list(BACKENDS))
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A backend that runs here, and a plan of the layer."""
    backend: TensorRTBackend = BACKENDS[request.param]
    if problem := backend.availability().why_not_run:
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp(request.param)
    model = save_layer(folder / "layer.onnx", LAYER)
    backend.build(model, folder / "plan", INPUTS, PROFILE)
    return backend, folder / "plan"


@pytest.fixture
def made(plan: Any) -> Iterator[Callable[..., TensorRTRunner]]:
    """`made(lanes=…, graphs=…)` is a runner of the plan."""
    backend, path = plan
    runners: list[TensorRTRunner] = []

    def make(**settings: Any) -> TensorRTRunner:
        runners.append(runner_from_plan(FLAVORS[backend.name], path, RunSettings(**settings)))
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()


def bytes_of_gpu() -> int:
    code, free, total = load_cudart().cudaMemGetInfo()
    assert int(code) == 0
    return int(total) - int(free)


@pytest.mark.ort
def test_the_tolerance_is_that_of_half_precision(tmp_path: Path) -> None:
    batch = batch_of(8, 64)
    half, single = (reference(tmp_path, batch, dtype) for dtype in ("float16", "float32"))
    worst = np.abs(half - single).max()
    assert TOLERANCE / 10 < worst < TOLERANCE


@pytest.mark.ort
def test_the_checks_pass_what_is_right_and_no_more(reference_layer: Path, tmp_path: Path) -> None:
    runner = OnnxRuntimeBackend().load(reference_layer, threads=1)
    check_sizes(runner.run, tmp_path)
    check_threads(runner.run)
    check_repeats(runner.run, runner.run)
    check_memory(runner.run, lambda: 0)
    used = iter(range(0, 1 << 40, 1 << 30))
    with pytest.raises(AssertionError):
        check_memory(runner.run, lambda: next(used))
    shared: dict[str, Any] = {}

    def overwrites(batch: Any) -> Any:
        for name, array in runner.run(batch).items():
            kept = shared.setdefault(name, np.zeros((8, 64, 64), array.dtype))
            kept[: array.shape[0], : array.shape[1]] = array
            shared[name] = kept
        return {
            name: kept[: len(batch["x"]), : batch["x"].shape[1]] for name, kept in shared.items()
        }

    with pytest.raises(AssertionError):
        check_threads(overwrites)

    def wrong(batch: Any) -> Any:
        return {"y": runner.run(batch)["y"] + np.float16(4 * TOLERANCE)}

    with pytest.raises(AssertionError):
        check_sizes(wrong, tmp_path)
    with pytest.raises(AssertionError):
        check_repeats(runner.run, wrong)


@pytest.mark.gpu
@needs_gpu
def test_every_size_of_the_profile(made: Any, tmp_path: Path) -> None:
    runner = made()
    check_sizes(runner.run, tmp_path)
    with pytest.raises(UsageError, match="this engine takes"):
        runner.run(batch_of(9, 16))
    runner.close()
    runner.close()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("lanes", [1, 2])
def test_callers_at_once(made: Any, plan: Any, lanes: int) -> None:
    check_threads(made(lanes=lanes).run, ROUNDING[plan[0].name])


@pytest.mark.gpu
@needs_gpu
def test_cuda_graphs_change_nothing(made: Any, plan: Any) -> None:
    with_graphs, without = made(lanes=1), made(lanes=1, graphs=False)
    check_repeats(with_graphs.run, without.run, ROUNDING[plan[0].name])
    if plan[0].name == "tensorrt":
        (lane,) = with_graphs._pool.lanes
        assert lane.why_no_graphs == ""
        assert with_graphs.graphs > 0
    assert without.graphs == 0


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("graphs", [True, False])
def test_memory_stays_where_it_is(made: Any, graphs: bool) -> None:
    runner = made(lanes=1, graphs=graphs)
    check_memory(runner.run, bytes_of_gpu)
    told = runner.memory
    check_memory(runner.run, lambda: runner.memory.on_gpu)
    assert runner.memory == told


def on_cuda(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return {name: torch.from_numpy(array).cuda() for name, array in batch.items()}


@pytest.mark.gpu
@needs_gpu
def test_tensors_stay_on_the_gpu(made: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    runner = made(lanes=1)

    def run(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = runner.run_on_device(on_cuda(batch))
        given = torch.from_dlpack(outputs["y"])
        assert given.is_cuda
        assert given.data_ptr() == outputs["y"].address
        return {"y": given.cpu().numpy()}

    check_sizes(run, tmp_path)
    check_memory(run, bytes_of_gpu)


@pytest.fixture(scope="module")
def cuda_provider(reference_layer: Path) -> OnnxRuntimeRunner:
    """The layer on ONNX Runtime's CUDA provider."""
    runner = OnnxRuntimeBackend().load(reference_layer)
    if runner.hardware == "CPU":
        pytest.skip("ONNX Runtime's CUDA provider does not work here")
    return runner


@pytest.mark.gpu
@needs_gpu
def test_onnx_runtime_on_the_gpu(cuda_provider: OnnxRuntimeRunner, tmp_path: Path) -> None:
    check_sizes(cuda_provider.run, tmp_path)
    check_threads(cuda_provider.run, TOLERANCE)


@pytest.mark.gpu
@needs_gpu
def test_onnx_runtime_leaves_tensors_on_the_gpu(
    cuda_provider: OnnxRuntimeRunner, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")

    def run(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = cuda_provider.run_on_device(on_cuda(batch))
        return {"y": torch.from_dlpack(outputs["y"]).cpu().numpy()}

    check_sizes(run, tmp_path)
