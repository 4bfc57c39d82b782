"""The OpenVINO backend: the numbers, the precision, and what is refused."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tfc.errors import BackendUnavailable, BadArtifact, BadInput, UsageError
from tfc.runtime.backends import openvino as module
from tfc.runtime.backends.base import BuildOptions, Inputs, Profile, Range
from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tfc.runtime.backends.openvino import OpenVinoBackend

BACKEND = OpenVinoBackend()
INPUTS = Inputs({"ids": ("int64", ("batch", "sequence")), "x": ("float32", ("batch", 8))})
PROFILE = Profile(Range(2, 4, 8), Range(3, 8, 16))
WEIGHT = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
LAYER = """
<ir_version: 10, opset_import: ["" : 21]>
layer (int64[batch,sequence] ids, float[batch,8] x) => (float[batch,8] y, int64[batch,1] total)
{
    axis = Constant <value_ints: ints = [1]> ()
    total = ReduceSum (ids, axis)
    y = MatMul (x, w)
}
"""
BF16 = LAYER.replace(
    "y = MatMul (x, w)",
    "a = Cast <to = 16> (x) b = Cast <to = 16> (w) c = MatMul (a, b) y = Cast <to = 1> (c)",
)


@pytest.fixture
def library() -> ModuleType:
    return pytest.importorskip("openvino", reason="the package openvino is not installed")


def model_file(path: Path, text: str = LAYER) -> Path:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "w"))
    path.write_bytes(model.SerializeToString())
    return path


def int8_file(path: Path, *, dynamic: bool) -> Path:
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.cpu_dynamic import cpu_dynamic
    from tfc.optimizers.precision.int8.cpu_static import cpu_static
    from tfc.optimizers.precision.int8.ranges import Range as Ends

    model = ir.load(model_file(path))
    product = next(node for node in model.graph if node.op_type == "MatMul")
    product.name = "product"
    if dynamic:
        cpu_dynamic(model, ["product"])
    else:
        cpu_static(model, ["product"], {"x": Ends(-4, 4)})
    ir.save(model, path)
    return path


def feed(batch: int = 2) -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).normal(size=(batch, 8)).astype(np.float32)
    return {"ids": np.arange(batch * 3).reshape(batch, 3), "x": x}


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = BACKEND.availability()
    assert not found.can_build
    assert not found.can_run
    assert "pip install 'tfc[openvino]'" in found.why_not_run


def test_what_is_built_runs_in_fp32(library: ModuleType, tmp_path: Path) -> None:
    engine = tmp_path / "engines" / "engine.onnx"
    built = BACKEND.build(model_file(tmp_path / "model.onnx"), engine, INPUTS, PROFILE)
    outputs = BACKEND.load(engine, threads=1).run(feed())
    assert sorted(outputs) == ["total", "y"]
    assert outputs["total"].tolist() == [[3], [12]]
    # In bf16, which OpenVINO takes by itself where the CPU has it, it would be off by 1e-3.
    assert np.abs(outputs["y"] - feed()["x"] @ WEIGHT).max() < 1e-5
    assert built.versions == {"openvino": BACKEND.availability().version}
    assert (built.hardware, built.notes) == ("CPU", ())


def test_bf16_where_the_graph_says_so(library: ModuleType, tmp_path: Path) -> None:
    if "BF16" not in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    outputs = BACKEND.load(model_file(tmp_path / "model.onnx", BF16)).run(feed())
    assert 1e-4 < np.abs(outputs["y"] - feed()["x"] @ WEIGHT).max() < 0.1
    assert outputs["y"].dtype == np.float32


@pytest.mark.parametrize(("text", "half"), [(BF16, "bf16"), (BF16.replace("16>", "10>"), "fp16")])
def test_no_engine_in_a_precision_without_kernels(
    library: ModuleType, tmp_path: Path, text: str, half: str
) -> None:
    path = model_file(tmp_path / "model.onnx", text)
    model = library.Core().read_model(str(path))
    with pytest.raises(BackendUnavailable, match=f"OpenVINO has no {half} kernels on this CPU"):
        module._check_precision(model, ["FP32"], path)


@pytest.mark.ort
@pytest.mark.parametrize("dynamic", [True, False])
def test_int8_gives_the_numbers_of_onnx_runtime(
    library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dynamic: bool
) -> None:
    monkeypatch.setattr(module, "integer_products_saturate", lambda: False)
    path = int8_file(tmp_path / "model.onnx", dynamic=dynamic)
    built = BACKEND.build(path, tmp_path / "engine.onnx", INPUTS, PROFILE)
    expected = OnnxRuntimeBackend().load(path).run(feed())["y"]
    got = BACKEND.load(tmp_path / "engine.onnx").run(feed())["y"]
    # One step of an activation, of which a rounding that falls on the other side makes a product.
    step = 8 / 255 * float(np.abs(WEIGHT).max())
    assert np.abs(got - expected).max() < step
    assert np.abs(got - feed()["x"] @ WEIGHT).max() > 1e-4
    assert ["--int8-form static" in note for note in built.notes] == [True] * dynamic


def test_int8_is_refused_where_it_saturates(
    library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "integer_products_saturate", lambda: True)
    engine = tmp_path / "engine.onnx"
    with pytest.raises(BackendUnavailable, match=r"no VNNI.* Use the backend onnxruntime"):
        BACKEND.build(int8_file(tmp_path / "m.onnx", dynamic=False), engine, INPUTS, PROFILE)
    assert not engine.exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ids": None}, "the input 'ids' is missing"),
        ({"more": np.zeros(2)}, "it has no input 'more'"),
        ({"x": np.zeros((2, 8))}, "'x' is float64 of 2 axes, and has to be float32 of 2"),
        ({"x": np.zeros(8, np.float32)}, "'x' is float32 of 1 axes, and has to be float32 of 2"),
        ({"x": np.zeros((2, 9), np.float32)}, "the engine does not take these inputs: "),
    ],
)
def test_inputs_that_do_not_fit(
    library: ModuleType, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    runner = BACKEND.load(model_file(tmp_path / "model.onnx"))
    expected = runner.run(feed())["y"]
    bad = {name: array for name, array in {**feed(), **change}.items() if array is not None}
    with pytest.raises(BadInput) as refusal:
        runner.run(bad)
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert np.array_equal(runner.run(feed())["y"], expected), "it goes on after bad inputs"


def test_compute_capabilities_are_of_gpus(tmp_path: Path) -> None:
    options = BuildOptions(compute_capabilities=("8.9",))
    with pytest.raises(UsageError, match="OpenVINO runs the graph on the CPU"):
        BACKEND.build(tmp_path / "m.onnx", tmp_path / "e.onnx", INPUTS, PROFILE, options)


def test_from_several_threads(library: ModuleType, tmp_path: Path) -> None:
    runner = BACKEND.load(model_file(tmp_path / "model.onnx"))
    feeds = [feed(batch) for batch in range(1, 20)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(runner.run, feeds))
    for given, got in zip(feeds, outputs, strict=True):
        assert np.abs(got["y"] - given["x"] @ WEIGHT).max() < 1e-5


def test_closed_twice_and_used_after(library: ModuleType, tmp_path: Path) -> None:
    runner = BACKEND.load(model_file(tmp_path / "model.onnx"))
    runner.close()
    runner.close()
    with pytest.raises(UsageError, match="closed"):
        runner.run(feed())


@pytest.mark.parametrize("share", [0.5, 0.0], ids=["truncated", "empty"])
def test_a_damaged_engine(library: ModuleType, tmp_path: Path, share: float) -> None:
    engine = model_file(tmp_path / "engine.onnx")
    content = engine.read_bytes()
    engine.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadArtifact, match="--backend openvino") as caught:
        BACKEND.load(engine)
    assert caught.value.where == str(engine)
    engine.unlink()
    with pytest.raises(BadArtifact, match="the engine is missing"):
        BACKEND.load(engine)
