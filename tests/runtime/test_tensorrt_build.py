"""Building with TensorRT-RTX, which needs no GPU: the kernels it compiles, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfc.errors import (
    BackendUnavailable,
    BadArtifact,
    BadInput,
    ContractNotReached,
    UsageError,
)
from tfc.runtime.backends.base import BuildOptions, Built, Inputs, Profile, Range
from tfc.runtime.backends.kernels import Audit, audit_of_kernels
from tfc.runtime.backends.tensorrt import TENSORRT_RTX
from tfc.runtime.backends.tensorrt_errors import (
    Room,
    build_refusal,
    collecting_logger,
    plan_refusal,
)
from tfc.runtime.backends.tensorrt_flavors import FLAVORS, PORTABLE
from tfc.runtime.backends.tensorrt_runner import engine_from_plan
from tfc.runtime.gpu import gpus

onnx = pytest.importorskip("onnx")

RTX = FLAVORS["tensorrt-rtx"]
RTX_VERSION = RTX.version()
needs_rtx = pytest.mark.skipif(not RTX_VERSION, reason="TensorRT-RTX is not installed")
without_gpu = pytest.mark.skipif(bool(gpus()), reason="is about a machine without a GPU")

# hidden 64, two heads of 32: the smallest for which TensorRT has a fused attention kernel.
LAYER = (Path(__file__).parent.parent / "data" / "encoder_layer.onnxtxt").read_text()
WEIGHTS = {
    "w_qkv": (64, 192),
    "b_qkv": (192,),
    "w_out": (64, 64),
    "b_out": (64,),
    "w_up": (64, 256),
    "b_up": (256,),
    "w_down": (256, 64),
    "b_down": (64,),
    **dict.fromkeys(("g_1", "b_1", "g_2", "b_2"), (64,)),
}
SIZES = Profile(batch=Range(1, 8, 32), sequence=Range(1, 64, 256))


def inputs_of(dtype: str) -> Inputs:
    axes = ("batch", "sequence")
    return Inputs({"x": (dtype, (*axes, 64)), "mask": ("int64", axes)})


def save(path: Path, text: str, weights: dict[str, tuple[int, ...]], dtype: str) -> Path:
    model = onnx.parser.parse_model(text.replace("float16", dtype.replace("float32", "float")))
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        values = (random.standard_normal(shape) * 0.1).astype(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Path]:
    folder = tmp_path_factory.mktemp("layer")
    model = save(folder / "layer.onnx", LAYER, WEIGHTS, "float16")
    plan = folder / "layer.plan"
    return TENSORRT_RTX.build(model, plan, inputs_of("float16"), SIZES), plan


def build(model: Path, inputs: Inputs | None = None, sizes: Profile = SIZES) -> Built:
    plan = model.with_suffix(".plan")
    try:
        return TENSORRT_RTX.build(model, plan, inputs or inputs_of("float16"), sizes)
    except BaseException:
        assert not plan.exists()
        raise


@pytest.mark.rtx
@needs_rtx
def test_the_kernels_of_an_encoder_layer(built: tuple[Built, Path]) -> None:
    assert audit_of_kernels(built[0].kernels) == Audit(
        kernels=17,
        bookkeeping=2,
        fused_attention=1,
        fused_add_layernorm=2,
        split_add_layernorm=0,
        layernorm=0,
        embedding_norm=0,
        fused_add_rmsnorm=0,
        rmsnorm=0,
        gemm=4,
        gemm_residual_add=0,
        datatypes={"Bool": 4, "Half": 10, "Int32": 8, "Int64": 2},
    )


@pytest.mark.rtx
@needs_rtx
def test_what_a_build_reports(built: tuple[Built, Path]) -> None:
    report, plan = built
    assert report.versions == {"tensorrt_rtx": RTX_VERSION}
    assert report.hardware == PORTABLE
    assert report.notes == ()
    assert plan.stat().st_size > sum(2 * int(np.prod(shape)) for shape in WEIGHTS.values())
    assert [path.name for path in plan.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.rtx
@needs_rtx
def test_a_build_for_chosen_gpus_shows_how_far_it_is(tmp_path: Path) -> None:
    model = save(tmp_path / "layer.onnx", LAYER, WEIGHTS, "float16")
    seen: list[tuple[str, int, int]] = []
    options = BuildOptions(("8.9", "12.0"), lambda *step: seen.append(step))
    found = TENSORRT_RTX.build(model, tmp_path / "a.plan", inputs_of("float16"), SIZES, options)
    assert found.hardware == "compute capability 8.9, 12.0"
    assert found.kernels != ()
    assert seen[0][0] == "compiling: building engine"
    done = [step for _, step, _ in seen]
    assert done == sorted(done)
    assert len(set(done)) > 5
    assert {total for *_, total in seen} == {100}
    assert max(done) <= 100


@pytest.mark.rtx
@needs_rtx
def test_a_build_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    model = save(tmp_path / "layer.onnx", LAYER, WEIGHTS, "float16")
    calls: list[int] = []

    def interrupt(what: str, done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TENSORRT_RTX.build(
            model, tmp_path / "a.plan", inputs_of("float16"), SIZES, BuildOptions((), interrupt)
        )
    assert len(calls) < 10  # TensorRT stopped soon after
    assert [path.name for path in tmp_path.iterdir()] == ["layer.onnx"]


@pytest.mark.rtx
@needs_rtx
def test_an_operator_that_tensorrt_does_not_take(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
    skip (float16[batch, sequence, 64] x, float16[64] g) => (float16[batch, sequence, 64] y)
    { y = com.microsoft.SkipLayerNormalization (x, x, g, g) }
    """
    model = tmp_path / "skip.onnx"
    graph = onnx.parser.parse_model(text)
    graph.graph.node[0].name = "encoder.norm"
    onnx.save(graph, model)
    with pytest.raises(BadInput) as raised:
        build(model)
    assert type(raised.value) is BadInput
    assert str(raised.value) == (
        f"{model}, node encoder.norm: TensorRT-RTX does not take this SkipLayerNormalization:"
        ' creator && "Plugin not found, are the plugin name, version, and namespace correct?".'
        " Lower the graph for this backend first: tfc optimize with the target tensorrt"
    )


@pytest.mark.rtx
@needs_rtx
def test_an_fp32_attention_is_computed_from_its_products(tmp_path: Path) -> None:
    model = save(tmp_path / "fp32.onnx", LAYER, WEIGHTS, "float32")
    built = build(model, inputs_of("float32"))
    assert built.notes == (
        "TensorRT has no fused kernel for an attention of these types and sizes: it is computed"
        " from its products (fused attention takes fp16 or bf16, and head sizes of 16 to 256 that"
        " are multiples of 8)",
    )
    assert audit_of_kernels(built.kernels).fused_attention == 0
    half = build(save(tmp_path / "fp16.onnx", LAYER, WEIGHTS, "float16"))
    assert half.notes == ()
    assert audit_of_kernels(half.kernels).fused_attention == 1


@pytest.mark.rtx
@needs_rtx
def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    model = tmp_path / "junk.onnx"
    model.write_bytes(b"hello" * 10)
    with pytest.raises(BadInput, match="TensorRT-RTX finds no graph in this file"):
        build(model)


@pytest.mark.rtx
@needs_rtx
def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no such ONNX file"):
        build(tmp_path / "absent.onnx")


@pytest.mark.rtx
@needs_rtx
def test_inputs_that_the_graph_does_not_have(tmp_path: Path) -> None:
    model = save(tmp_path / "layer.onnx", LAYER, WEIGHTS, "float16")
    declared = Inputs({"ids": ("int64", ("batch", "sequence"))})
    with pytest.raises(BadInput, match=r"has the inputs \['mask', 'x'\], but \['ids'\]"):
        build(model, declared)


@pytest.mark.rtx
@needs_rtx
def test_sizes_out_of_order(tmp_path: Path) -> None:
    model = save(tmp_path / "layer.onnx", LAYER, WEIGHTS, "float16")
    with pytest.raises(UsageError, match="do not fit the inputs") as raised:
        build(model, sizes=Profile(batch=Range(8, 4, 32)))
    assert raised.value.fix == "Each axis needs min <= opt <= max"


@pytest.mark.rtx
@needs_rtx
@without_gpu
def test_loading_needs_a_gpu_before_it_looks_at_the_plan(tmp_path: Path) -> None:
    plan = tmp_path / "damaged.plan"
    plan.write_bytes(b"damaged" * 1000)
    with pytest.raises(BackendUnavailable, match="TensorRT-RTX runs on NVIDIA GPUs only") as raised:
        TENSORRT_RTX.load(plan)
    assert str(raised.value) == TENSORRT_RTX.availability().why_not_run


@pytest.mark.rtx
@needs_rtx
@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        (lambda data: b"damaged" * 1000, "did not write this file"),
        (lambda data: data[:1000], "finds this engine cut short"),
        (lambda data: data[:3], "finds this engine cut short"),
        (lambda data: b"", "finds this engine cut short"),
    ],
    ids=["not a plan", "cut", "three bytes", "empty"],
)
def test_a_damaged_plan(
    built: tuple[Built, Path], tmp_path: Path, keep: Callable[[bytes], bytes], sentence: str
) -> None:
    plan = tmp_path / "damaged.plan"
    plan.write_bytes(keep(built[1].read_bytes()))
    trt = RTX.load()
    with pytest.raises(BadArtifact, match=sentence) as raised:
        engine_from_plan(RTX, trt, collecting_logger(trt), plan)
    assert raised.value.fix == "Build it again on this machine: tfc build-engine"


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file"
            " is generated on an incompatible device, expecting compute 8.9 got compute 8.6, please"
            " rebuild.)",
            "this engine was built for compute capability 8.6, and the GPU here has 8.9",
            "Build it again on this machine: tfc build-engine; one for several GPUs:"
            " --hardware-compatible",
        ),
        (
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file"
            " is not compatible with this version of TensorRT, expecting library version 10.16.1"
            " got 10.13.3, please rebuild.)",
            "this engine was built with TensorRT 10.13.3, and 10.16.1 is installed here",
            "Build it again on this machine: tfc build-engine; or install that version: pip install"
            " 'tensorrt==10.13.3.*'",
        ),
        (
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (Not for this machine)",
            "TensorRT cannot load this engine here; it was built with another version or for"
            " another GPU: Not for this machine",
            "Build it again on this machine: tfc build-engine",
        ),
    ],
)
def test_a_plan_for_another_gpu_or_version(text: str, what: str, fix: str) -> None:
    error = plan_refusal(FLAVORS["tensorrt"], text, Path("engine.plan"))
    assert type(error) is BackendUnavailable
    assert (error.what, error.fix) == (what, fix)


NO_KERNELS = (
    "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any"
    " implementation for node {ForeignNode[Cast_0...Gelu_2]}. In computeCosts at"
    " /_src/optimizer/common/tactic/optimizer.cpp:4184)"
)
LISTED = (
    "ForeignNode {ForeignNode[Cast_0...Gelu_2]} metadata: [ONNX Layer: Cast_0][ONNX Layer: MatMul_1"
    "][ONNX Layer: Gelu_2]"
)


@pytest.fixture
def three_nodes(tmp_path: Path) -> Path:
    """A graph of three nodes, two of them of a layer."""
    text = """
        <ir_version: 8, opset_import: ["" : 20]>
        g (int64[batch, 4] x, float[4, 4] w) => (float[batch, 4] y) {
            a = Cast <to = 1> (x)
            b = MatMul (a, w)
            y = Gelu (b)
        }
    """
    model = onnx.parser.parse_model(text)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
        if index:
            entry = node.metadata_props.add()
            entry.key, entry.value = "tfc.module", "bert.encoder.layer.3.intermediate"
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_region_without_kernels_is_told_by_its_nodes_and_modules(three_nodes: Path) -> None:
    error = build_refusal(FLAVORS["tensorrt"], NO_KERNELS, three_nodes, [LISTED])
    assert type(error) is ContractNotReached
    assert error.what == (
        "TensorRT has no kernels for a part of this graph: 3 nodes from Cast_0 to Gelu_2, in"
        " bert.encoder.layer.3"
    )
    assert error.fix == (
        "Build in another precision (--bf16, or fp32), or update TensorRT: a combination of these"
        " operators and types is not implemented in this version"
    )
    one = NO_KERNELS.replace("{ForeignNode[Cast_0...Gelu_2]}", "MatMul_1 [profile 2]")
    error = build_refusal(FLAVORS["tensorrt"], one, Path("gone.onnx"), [])
    assert error.what == ("TensorRT has no kernels for a part of this graph: the node MatMul_1")


def test_a_region_without_kernels_for_want_of_memory(three_nodes: Path) -> None:
    said = [
        LISTED,
        "Skipping tactic 0x0 due to insufficient memory on requested size of 30064771072 detected"
        " for tactic 0x0.",
    ]
    room = Room(Range(1, 32, 256), 24_000_000_000)
    error = build_refusal(FLAVORS["tensorrt"], NO_KERNELS, three_nodes, said, room)
    assert type(error) is BackendUnavailable
    assert "asked for 30.1 GB and found 24.0 GB free" in error.what
    assert error.fix == (
        "Build for a smaller largest batch or sequence: --batch 1:32:163 would fit, or free memory"
        " on the GPU"
    )


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (
            "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (Requested"
            " size was 3221225472 bytes.)",
            ", which asked for 3.2 GB",
        ),
        ("Error Code 1: Cuda Runtime (out of memory)", ""),
        (
            "Requested amount of GPU memory (8589934592 bytes) could not be allocated. There may"
            " not be enough free memory for allocation to succeed.",
            ", which asked for 8.6 GB",
        ),
    ],
)
def test_memory_that_runs_out_while_building(text: str, asked: str) -> None:
    error = build_refusal(FLAVORS["tensorrt"], text, Path("m.onnx"), [])
    assert type(error) is BackendUnavailable
    assert error.what.startswith(f"TensorRT ran out of memory while building{asked}: ")
    assert error.fix == ("Build for a smaller largest batch or sequence, or free memory on the GPU")


def test_a_gpu_that_fails_while_building() -> None:
    text = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Cuda Runtime (In generateForCurrent at"
        " /_src/runtime/core/cudaDeviceProfile.cpp:221 (cudaError 35: CUDA driver version is"
        " insufficient for CUDA runtime version))"
    )
    error = build_refusal(FLAVORS["tensorrt"], text, Path("model.onnx"), [])
    assert type(error) is BackendUnavailable
    assert "cudaError 35: CUDA driver version is insufficient" in error.what
    assert "/_src/" not in error.what


def test_a_build_that_fails_for_a_reason_unknown_to_tfc() -> None:
    text = "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Bad. In f at /a.cpp:1)"
    error = build_refusal(FLAVORS["tensorrt"], text, Path("model.onnx"), [])
    assert type(error) is BadInput
    assert error.what == "TensorRT cannot build this graph: Bad"
