"""Reading the compiled kernels, and counting what is fused in them.

The logs in `tests/data/tensorrt_logs` are what TensorRT-RTX 1.7.1 printed for real graphs; the
names, shapes and formats of the tensors were cut out of them, but for those called `whole`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tfc.runtime.backends.base import Kernel, KernelTensor
from tfc.runtime.backends.kernel_log import kernels_from_inspector, kernels_from_log
from tfc.runtime.backends.kernels import Audit, audit_of_kernels

LOGS = Path(__file__).parent.parent / "data" / "tensorrt_logs"
NOTHING = Audit(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {})

# One line as the builder prints it, whole.
ADD_LAYERNORM = (
    "Name: __myl_ReshAddAddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd_myl0_15, LayerType: kgen,"
    " Inputs: [ { Name: __myln_k_arg__bb13964_41_myl0, Dimensions: [-1,64], Strides: [64,1],"
    " StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }, { Name: x,"
    " Dimensions: [-1,-1,64], Strides: [-1,64,1], StrideOrder: [2,1,0], Datatype: Half, Format:"
    " (Linear) Row major linear format }], Constants: [ { Name: __mye13614_reshape_myl0,"
    " Dimensions: [1,64], Strides: [64,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear)"
    " Row major linear format }], Outputs: [ { Name: __myln_k_arg__bb13964_42_myl0, Dimensions:"
    " [-1,64], Strides: [64,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major"
    " linear format }], TacticName: __myl_ReshAddAdd_0xb8b5a0145de1113a364c72063952057d_vec,"
    " StreamId: 0, Metadata: [ONNX Layer: Add_15][ONNX Layer: LayerNormalization_16]"
)
BINDING = (
    " Name: input_ids, IOMode: Input, DataType: Int64, Dimensions: [-1,-1], Location: Device,"
    " IsShapeInferenceIO: false, ProfileInfo: [ { MinShape: [1,1] }]"
)
NORM = "CastMeanSubMulMeanAddSqrtDivMulCastMulAdd"


def audit_of_log(name: str) -> Audit:
    return audit_of_kernels(kernels_from_log([(LOGS / f"{name}.log").read_text()]))


def generated(operations: str, activations: int) -> Kernel:
    reads = tuple(KernelTensor(f"x{i}", "Half") for i in range(activations))
    return Kernel(f"__myl_{operations}_myl0_3", "kgen", reads)


def kinds_of(kernel: Kernel) -> dict[str, int]:
    """The counts of one kernel that are not zero, but for `kernels` and `datatypes`."""
    counts = vars(audit_of_kernels([kernel]))
    return {name: n for name, n in counts.items() if n and name not in ("kernels", "datatypes")}


def test_a_whole_line_of_the_log() -> None:
    assert kernels_from_log([f"Layers:\n{ADD_LAYERNORM}\n\nI/O Tensors:\n{BINDING}"]) == (
        Kernel(
            name="__myl_ReshAddAddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd_myl0_15",
            type="kgen",
            reads=(
                KernelTensor("__myln_k_arg__bb13964_41_myl0", "Half", (-1, 64)),
                KernelTensor("x", "Half", (-1, -1, 64)),
            ),
            writes=(KernelTensor("__myln_k_arg__bb13964_42_myl0", "Half", (-1, 64)),),
            constants=(KernelTensor("__mye13614_reshape_myl0", "Float", (1, 64)),),
            nodes=("Add_15", "LayerNormalization_16"),
        ),
    )


def test_names_of_nodes_may_hold_brackets() -> None:
    line = ADD_LAYERNORM.replace("Add_15]", "a[0]/Add][ONNX Layer: b]")
    (kernel,) = kernels_from_log([line])
    assert kernel.nodes == ("a[0]/Add", "b", "LayerNormalization_16")


def test_a_log_without_layers_gives_no_kernels() -> None:
    assert kernels_from_log(["Engine generation completed in 0.2 seconds.", BINDING, ""]) == ()


def test_minilm_fp16() -> None:
    assert audit_of_log("minilm_fp16") == Audit(
        kernels=62,
        bookkeeping=2,
        fused_attention=6,
        fused_add_layernorm=12,
        split_add_layernorm=0,
        layernorm=0,
        embedding_norm=1,
        fused_add_rmsnorm=0,
        rmsnorm=0,
        gemm=24,
        gemm_residual_add=0,
        datatypes={"Bool": 2, "Half": 56, "Int32": 13, "Int64": 3},
    )


def test_separate_projections_cost_layout_kernels_and_waits() -> None:
    audit = audit_of_log("separate_projections_fp16")
    assert (audit.kernels, audit.bookkeeping) == (16, 15)
    assert (audit.fused_attention, audit.fused_add_layernorm, audit.gemm) == (2, 2, 4)


def test_pre_norm_blocks_add_the_residual_in_the_gemm() -> None:
    audit = audit_of_log("pre_norm_fp16")
    # Two layers: four residual adds and five norms. The last add sits with the last norm.
    assert audit.gemm_residual_add + audit.fused_add_layernorm == 4
    assert (audit.fused_add_layernorm, audit.layernorm) == (1, 4)
    assert (audit.fused_attention, audit.gemm) == (2, 8)


def test_rms_norms_are_counted_apart() -> None:
    audit = audit_of_log("rms_norm_fp16")
    assert (audit.fused_add_rmsnorm, audit.rmsnorm, audit.gemm_residual_add) == (1, 4, 3)
    assert (audit.fused_add_layernorm, audit.layernorm) == (0, 0)


def test_bfloat16_post_norm() -> None:
    audit = audit_of_log("post_norm_bf16")
    assert (audit.fused_attention, audit.fused_add_layernorm, audit.gemm) == (2, 4, 8)
    assert audit.datatypes == {"BFloat16": 18}


def test_the_bias_and_gelu_before_a_norm_are_no_residual_add() -> None:
    audit = audit_of_log("prediction_head_fp16")
    assert (audit.fused_add_layernorm, audit.layernorm, audit.gemm) == (0, 1, 2)


def test_a_norm_that_was_split_over_two_kernels_is_not_fused() -> None:
    audit = audit_of_log("split_norm_fp16")
    assert (audit.fused_add_layernorm, audit.layernorm) == (0, 0)
    assert audit.split_add_layernorm == 1
    assert audit.fused_attention == 1


def test_an_int8_gemm_shows_in_the_data_types() -> None:
    audit = audit_of_log("quantized")
    assert audit.datatypes == {"Half": 3, "Int8": 2}
    assert (audit.gemm, audit.fused_add_layernorm) == (1, 1)


@pytest.mark.parametrize(
    ("operations", "activations", "expected"),
    [
        (f"Add{NORM}", 2, {"fused_add_layernorm": 1}),  # the bias went into the GEMM
        (f"AddAdd{NORM}", 2, {"fused_add_layernorm": 1}),  # it did not
        (f"ReshAddAdd{NORM}", 2, {"fused_add_layernorm": 1}),
        ("AddMeanSubMulMeanAddSqrtDivMulMulAdd", 2, {"fused_add_layernorm": 1}),  # fp32: no casts
        ("AddMeanSubMulMeanAddSqrtCastDivCastMulCastMulAdd", 2, {"fused_add_layernorm": 1}),
        ("AddAddCasMeaSubMulMeaAddSqrDivMulCasMulAdd", 2, {"fused_add_layernorm": 1}),  # 3 letters
        ("AddAddCastMeanSubMulMean", 2, {"split_add_layernorm": 1}),
        ("AddCastMeanSubMulMean", 1, {}),  # the bias alone
        ("CastMeanSubMulMean", 1, {}),
        (f"Add{NORM}", 1, {"layernorm": 1}),  # the bias alone
        (NORM, 1, {"layernorm": 1}),
        (f"CastGathCastGathAdd{NORM}", 0, {"embedding_norm": 1}),
        (f"GathAddAdd{NORM}", 2, {"embedding_norm": 1}),
        ("AddCastMulMeanAddSqrtDivMulCastMul", 2, {"fused_add_rmsnorm": 1}),
        ("CastMulMeanAddSqrtDivMulCastMul", 1, {"rmsnorm": 1}),
        ("AddAdd", 2, {}),
        ("FcAdd", 1, {"gemm": 1}),
        ("FcAddAdd", 2, {"gemm": 1, "gemm_residual_add": 1}),
        ("FcAddDivCastErfCastAddMulMul", 1, {"gemm": 1}),
    ],
)
def test_a_generated_kernel_is_judged_by_its_operations(
    operations: str, activations: int, expected: dict[str, int]
) -> None:
    assert kinds_of(generated(operations, activations)) == expected


@pytest.mark.parametrize(
    ("name", "type_", "expected"),
    [
        ("_gemm_mha_v2_myl0_12", "kgen", {"fused_attention": 1}),
        ("__mye8037_gemm_mha_v2", "kgen", {"fused_attention": 1}),
        ("_gemv_mha_v1_myl0_4", "kgen", {"fused_attention": 1}),
        ("fmha_v2_flash_attention_fp16_64_128", "kgen", {"fused_attention": 1}),
        ("/decoder/mha/out_proj/MatMul_myl0_4", "gemm", {"gemm": 1}),
        ("/decoder/mha/Softmax_myl0_4", "kgen", {}),
        ("node_MatMul_83_myl0_14", "gemm", {"gemm": 1}),
        ("MatMul_8+MatMul_4+MatMul_0_myl0_1", "gemm", {"gemm": 1}),
        ("__mye3611_0_myl0_0", "shape_call", {"bookkeeping": 1}),
        ("copy_h2d___mye14941_myl0_4", "copy", {"bookkeeping": 1}),
        ("__mye20351_myl0_2", "signal", {"bookkeeping": 1}),
        ("__mye20353_myl0_3", "wait", {"bookkeeping": 1}),
    ],
)
def test_other_kernels_are_judged_by_name_and_type(
    name: str, type_: str, expected: dict[str, int]
) -> None:
    assert kinds_of(Kernel(name, type_)) == expected


def test_no_kernels() -> None:
    assert audit_of_kernels([]) == NOTHING


@pytest.mark.parametrize(
    ("key", "half"),
    [
        ("Format/Datatype", "Half"),
        ("Format/Datatype", "Row major linear FP16 format"),
        ("Datatype", "Half"),
    ],
    ids=["10.x", "10.x, bindings", "11.x"],
)
def test_the_inspector_of_each_version(key: str, half: str) -> None:
    layer = {
        "Name": f"__myl_AddAdd{NORM}_myl0_18",
        "LayerType": "kgen",
        "Inputs": [{"Name": "a", "Dimensions": [-1, 64], key: half}],
        "Outputs": [{"Name": "c", key: "Int8"}],
        "TacticName": "",
        "Metadata": "[ONNX Layer: add]\x1e[ONNX Layer: norm]",
    }
    (kernel,) = kernels_from_inspector(json.dumps({"Layers": [layer]}))
    assert kernel.reads == (KernelTensor("a", "Half", (-1, 64)),)
    assert kernel.writes == (KernelTensor("c", "Int8"),)
    assert kernel.datatypes == ("Half", "Int8")
    assert kernel.nodes == ("add", "norm")


def test_an_inspector_that_knows_names_only_gives_no_kernels() -> None:
    assert kernels_from_inspector('{"Layers": ["a", "b"], "Bindings": []}') == ()
