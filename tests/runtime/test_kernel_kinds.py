"""What kernels are for, and what their matrix products compute in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tfc.runtime.backends.base import Kernel, KernelTensor
from tfc.runtime.backends.kernel_kinds import (
    ATTENTION,
    GEMM,
    bytes_written,
    kinds_of,
    product_precision,
    types_of,
)
from tfc.runtime.backends.kernel_log import kernels_from_log

LOGS = Path(__file__).parent.parent / "data" / "tensorrt_logs"
BERT = kernels_from_log([(LOGS / "bert_fp16_whole.log").read_text()])


def tensor(datatype: str, *dims: int, name: str = "t") -> KernelTensor:
    return KernelTensor(name, datatype, dims)


def generated(operations: str, **tensors: tuple[KernelTensor, ...]) -> Kernel:
    return Kernel(f"__myl_{operations}_myl0_3", "kgen", **tensors)


def test_every_kind_in_a_bert_of_two_layers() -> None:
    assert Counter(kinds_of(BERT)) == {
        "gemm": 10,
        "mask": 7,
        "norm": 6,
        "layout": 5,
        "attention": 2,
        "bookkeeping": 2,
    }


def test_the_products_of_a_bert_and_their_types() -> None:
    found = [
        product_precision(kernel)
        for kernel, kind in zip(BERT, kinds_of(BERT), strict=True)
        if kind in (GEMM, ATTENTION)
    ]
    assert found == ["fp16"] * 10 + ["fp32"] * 2  # the pooler and the classifier


@pytest.mark.parametrize(
    ("operations", "kind"),
    [
        ("AddMeanSubMulMeanAddSqrtDivMulMulAdd", "norm"),
        ("AddSqrtDivMulCastMulAddReshGathCast", "norm"),
        ("SlicReshAddReshMaxrSubExpSum", "softmax"),
        ("MoveReshTran", "layout"),
        ("ReshReplConc", "layout"),
        ("ReshCast", "cast"),
        ("AddReshTran", "pointwise"),
        ("SlicSlicDivCastErfCastAddMulMulMul", "pointwise"),
        ("MulReshFcAddTanh", "gemm"),
        ("CastIotaCastReshSlicReplReshIotaEtc", "other"),  # the name was cut
    ],
)
def test_a_generated_kernel_is_told_by_its_operations(operations: str, kind: str) -> None:
    assert kinds_of([generated(operations)]) == [kind]


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        ("wait", "wait"),
        ("signal", "wait"),
        ("copy", "bookkeeping"),
        ("shape_call", "bookkeeping"),
        ("gemm", "gemm"),
        ("cast", "cast"),
        ("reshape", "layout"),
        ("kgen", "other"),
    ],
)
def test_a_kernel_without_operations_is_told_by_its_type(type_: str, kind: str) -> None:
    assert kinds_of([Kernel("__mye41747_myl0_12", type_)]) == [kind]


def chain(*steps: tuple[str, str, str], given: str = "Int64") -> list[Kernel]:
    """Kernels by (name, what they read, what they write); the first reads an input."""
    return [
        Kernel(
            name,
            "kgen",
            (tensor("Half" if index else given, name=source),),
            (tensor("Half", name=target),),
        )
        for index, (name, source, target) in enumerate(steps)
    ]


def test_cached_keys_are_no_mask() -> None:
    steps = ("__myl_Cast_myl0_0", "past_key", "k"), ("_gemm_mha_v2_myl0_1", "k", "out")
    assert kinds_of(chain(*steps, given="Float")) == ["cast", "attention"]
    assert kinds_of(chain(*steps, given="Int64")) == ["mask", "attention"]


def test_what_an_attention_reads_is_no_mask_if_it_came_out_of_a_product() -> None:
    kernels = chain(
        ("__myl_CastSele_myl0_0", "attention_mask", "mask"),
        ("__myl_FcAdd_myl0_1", "x", "qkv"),
        ("__myl_ReshTran_myl0_2", "qkv", "q"),
    )
    reads = (tensor("Half", name="q"), tensor("Half", name="mask"))
    attention = Kernel("_gemm_mha_v2_myl0_3", "kgen", reads)
    assert kinds_of([*kernels, attention]) == ["mask", "gemm", "layout", "attention"]


def test_the_mask_of_a_pooling_is_no_attention_mask() -> None:
    kernels = chain(
        ("__myl_Cast_myl0_0", "attention_mask", "weights"),
        ("__myl_MulSum_myl0_1", "weights", "embedding"),
    )
    assert kinds_of(kernels) == ["cast", "pointwise"]


def test_a_tensor_that_is_written_twice_comes_from_the_later_kernel() -> None:
    kernels = chain(
        ("__myl_Cast_myl0_0", "ids", "sizes"),
        ("__myl_FcAdd_myl0_1", "x", "buffer"),
        ("__myl_Repl_myl0_2", "sizes", "buffer"),
        ("_gemm_mha_v2_myl0_3", "buffer", "out"),
    )
    assert kinds_of(kernels) == ["mask", "gemm", "mask", "attention"]


SCALAR = tensor("Float", 1)


@pytest.mark.parametrize(
    ("reads", "constants", "precision"),
    [
        ([tensor("Half", -1, 64)], [tensor("Half", 64, 64), SCALAR], "fp16"),
        ([tensor("Half", -1, 64)], [tensor("Half", 1, 64), tensor("Half", 64, 64)], "fp16"),
        # the activation is cast in the kernel
        ([tensor("Half", -1, 64)], [tensor("Float", 64, 64)], "fp32"),
        # either may be cast in the kernel
        ([tensor("Float", -1, 64)], [tensor("Half", 64, 64)], "unknown"),
        ([tensor("Int8", -1, 64)], [tensor("Int8", 64, 64), SCALAR], "int8"),
        ([tensor("FP8", -1, 64)], [tensor("FP8", 64, 64)], "fp8"),
        # weights alone are quantised: they are widened in the kernel
        ([tensor("Half", -1, 64)], [tensor("Int8", 64, 64)], "fp16"),
        # a residual in another type than the product
        ([tensor("Int8", -1, 64), tensor("Half", -1, 64)], [tensor("Int8", 64, 64)], "int8"),
        # two activations: scores of an attention
        ([tensor("Half", -1, -1, 32), tensor("Half", -1, 32, -1)], [SCALAR], "fp16"),
        ([tensor("Half", -1, -1, 32), tensor("Int32", -1)], [], "fp16"),
        ([tensor("Half", -1, 64), tensor("Float", -1, 64)], [SCALAR], "unknown"),
        ([tensor("Something new", -1, 64)], [SCALAR], "unknown"),
        ([], [], "unknown"),
    ],
)
def test_the_type_of_a_product(
    reads: list[KernelTensor], constants: list[KernelTensor], precision: str
) -> None:
    kernel = Kernel("product", "gemm", tuple(reads), (), tuple(constants))
    assert product_precision(kernel) == precision


def test_bytes_are_told_where_every_axis_is() -> None:
    fixed = generated("Add", writes=(tensor("Half", 4, 64), tensor("Bool", 4)))
    assert bytes_written(fixed) == 4 * 64 * 2 + 4
    assert bytes_written(generated("Add", writes=(tensor("Half", -1, 64),))) is None
    assert bytes_written(generated("Add", writes=(tensor("Odd", 4),))) is None
    assert bytes_written(generated("Add", writes=(KernelTensor("x", "Half"),))) is None


def test_types_are_told_in_the_words_of_this_project() -> None:
    kernel = generated(
        "Cast", reads=(tensor("Int64"), tensor("BFloat16")), writes=(tensor("Float"),)
    )
    assert types_of(kernel) == (("bf16", "int64"), ("fp32",))
