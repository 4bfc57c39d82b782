"""The arithmetic of a graph, and the share of it in each precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from tfc.errors import ContractNotReached
from tfc.kernel_report import KernelRecord
from tfc.runtime.backends.base import Profile, Range
from tfc.steps.flops import Product, products_of_graph
from tfc.steps.precision_audit import (
    Judged,
    check_precision,
    judge_products,
    percent,
    precision_audit,
)

SIZES = Profile(Range(1, 2, 8), Range(1, 16, 64), {"past": Range(0, 5, 9)})
B, S, P = 2, 16, 5
PRODUCTS = {"twice": "2*batch", "flat": "batch*sequence"}
HEAD = '<ir_version: 10, opset_import: ["" : 23]>\ngraph'


def products(text: str, *, infer: bool = False) -> list[Product]:
    """Inputs called `w` are weights; axes called `twice` and `flat` are products of others."""
    model = ir.from_onnx_text(HEAD + text)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
    for value in [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]:
        if value.name == "w":
            zeros = np.zeros(value.shape.numpy(), value.dtype.numpy())
            value.const_value = ir.tensor(zeros)
        elif value.shape is not None:
            value.shape = ir.Shape([PRODUCTS.get(str(d), d) for d in value.shape])
    if infer:
        ShapeInferencePass()(model)
    return products_of_graph(model, SIZES)


def test_a_product_with_weights() -> None:
    (product,) = products(
        "(float16[batch,sequence,64] x, float16[64,96] w)"
        " => (float16[batch,sequence,96] y) { y = MatMul(x, w) }"
    )
    assert product == Product("MatMul_0", "", False, "fp16", 2 * B * S * 64 * 96, True)


def test_weights_that_are_transposed_in_the_graph_are_weights() -> None:
    (product,) = products(
        "(float[batch,sequence,8] x, float16[96,8] w) => (float[batch,sequence,96] y)"
        " { t = Transpose<perm = [1, 0]>(w)\n c = Cast<to = 1>(t)\n y = MatMul(x, c) }"
    )
    assert product.of_tokens
    assert product.flops == 2 * B * S * 8 * 96


@pytest.mark.parametrize("attribute", ["", "<transB = 1>"])
def test_a_gemm_on_pooled_tensors(attribute: str) -> None:
    shape = "3,64" if attribute else "64,3"
    (product,) = products(
        f"(float[batch,64] x, float[{shape}] w) => (float[batch,3] y)"
        f" {{ y = Gemm{attribute}(x, w) }}"
    )
    assert (product.flops, product.precision, product.of_tokens) == (2 * B * 64 * 3, "fp32", False)


def test_a_gemm_on_flattened_tokens_is_of_tokens() -> None:
    (product,) = products(
        "(float[flat,64] x, float[64,96] w) => (float[flat,96] y) { y = Gemm(x, w) }"
    )
    assert (product.flops, product.of_tokens) == (2 * B * S * 64 * 96, True)


def test_a_gemm_of_a_transposed_tensor() -> None:
    (product,) = products(
        "(float[64,batch] x, float[64,3] w) => (float[batch,3] y) { y = Gemm<transA = 1>(x, w) }"
    )
    assert product.flops == 2 * B * 64 * 3


def test_an_attention_with_a_cache() -> None:
    kv = "float16[batch,2,sequence,32] k, float16[batch,2,sequence,48] v"
    past = "float16[batch,2,past,32] pk, float16[batch,2,past,48] pv"
    (product,) = products(
        f"(float16[batch,4,sequence,32] q, {kv}, {past}) => (float16[batch,4,sequence,48] y)"
        " { y, k2, v2 = Attention(q, k, v, , pk, pv) }"
    )
    assert product.flops == 2 * B * 4 * S * (S + P) * (32 + 48)
    assert product.attention


def test_an_attention_in_products_counts_once() -> None:
    heads = "float16[batch,4,sequence,32]"
    products_of = (
        f"({heads} q, {heads} k, float16[batch,4,sequence,48] v, bool[batch,1,1,sequence] m,"
        " float16 low) => (float16[batch,4,sequence,48] y) { t = Transpose<perm = [0,1,3,2]>(k)\n"
        " s = MatMul(q, t)\n n = Where(m, s, low)\n p = Softmax(n)\n y = MatMul(p, v) }"
    )
    (product,) = products(products_of, infer=True)
    flops = 2 * B * 4 * S * S * (32 + 48)
    assert product == Product("MatMul_4", "", True, "fp16", flops, True)


def test_an_attention_of_three_axes_with_grouped_keys() -> None:
    (product,) = products(
        "(float16[batch,sequence,128] q, float16[batch,sequence,64] k,"
        " float16[batch,sequence,64] v) => (float16[batch,sequence,128] y)"
        " { y = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v) }"
    )
    assert product.flops == 2 * B * 4 * S * S * (32 + 32)


def test_axes_that_are_products_and_axes_that_nobody_knows() -> None:
    known, unknown = products(
        "(float16[twice,sequence,8] x, float16[rows,4,8] z, float16[8,8] w)"
        " => (float16[twice,sequence,8] y, float16[rows,4,8] u)"
        " { y = MatMul(x, w)\n u = MatMul(z, w) }"
    )
    assert known.flops == 2 * 2 * B * S * 8 * 8
    assert unknown.flops is None


def test_a_product_of_which_only_the_shape_is_used_is_left_out() -> None:
    found = products(
        "(float16[batch,sequence,8] x, float16[8,8] w) => (float16[batch,sequence,8] y)"
        " { a = MatMul(x, w)\n s = Shape(a)\n b = Reshape(x, s)\n y = MatMul(b, w) }"
    )
    assert [product.node for product in found] == ["MatMul_3"]


def test_quantised_factors_give_the_type_that_they_are_stored_in() -> None:
    inputs = "int8[batch,sequence,8] x, int8[8,8] w, float16 s, float16[8,8] h"
    found = products(
        f"({inputs}) => (float16[batch,sequence,8] y, float16[batch,sequence,8] z)"
        " { a = DequantizeLinear(x, s)\n b = DequantizeLinear(w, s)"
        "\n bt = Transpose<perm = [1, 0]>(b)\n y = MatMul(a, bt)"
        "\n p = Identity(h)\n z = MatMul(y, b) }"
    )
    assert [product.precision for product in found] == ["int8", "fp16"]


def product(node: str, **fields: object) -> Product:
    values = {"module": "", "attention": False, "precision": "fp16", "flops": 100}
    return Product(node=node, **{**values, "of_tokens": True, **fields})


def kernel(name: str, kind: str, precision: str, *nodes: str) -> KernelRecord:
    return KernelRecord(name, "kgen", kind, [], [], precision, list(nodes), [""] * len(nodes))


RECORDS = [
    kernel("k0", "gemm", "fp16", "q", "k"),
    kernel("k1", "attention", "fp16", "attend"),
    kernel("k2", "gemm", "int8", "ffn"),
    kernel("k3", "gemm", "unknown", "out"),
    # an attention that was decomposed: two products, the wider one counts
    kernel("k4", "gemm", "fp16", "attend2"),
    kernel("k5", "gemm", "fp32", "attend2"),
    kernel("k6", "layout", "", "gone"),
]


def test_every_product_is_judged_by_the_kernels_that_hold_it() -> None:
    wanted = [
        ("q", False, "fp16"),
        ("k", False, "fp16"),
        ("attend", True, "fp16"),
        ("ffn", False, "int8"),
        ("out", False, "unknown"),
        ("attend2", True, "fp32"),
        ("gone", False, "unknown"),
    ]
    judged = judge_products([product(n, attention=a) for n, a, _ in wanted], RECORDS)
    assert [(one.product.node, one.compiled) for one in judged] == [(n, t) for n, _, t in wanted]
    assert judged[5].kernels == ("k4", "k5")


def test_a_fused_attention_is_not_judged_by_a_product_that_names_it_too() -> None:
    records = [kernel("k0", "gemm", "fp32", "attend"), kernel("k1", "attention", "fp16", "attend")]
    (judged,) = judge_products([product("attend", attention=True)], records)
    assert (judged.compiled, judged.kernels) == ("fp16", ("k1",))


def judged(node: str, compiled: str, **fields: object) -> Judged:
    return Judged(product(node, **fields), compiled, ("__myl_FcAdd",))


def test_the_shares_as_compiled_and_as_the_graph_says() -> None:
    audit = precision_audit(
        [
            judged("a", "fp16", flops=600),
            judged("b", "fp16", flops=200, precision="fp32"),
            judged("c", "fp16", flops=100, attention=True),
            judged("d", "unknown", flops=100),
            judged("e", "fp16", flops=None),
        ]
    ).as_json()
    assert audit["compiled"] == {
        "fp16": {"flops": 900, "share": 0.9, "gemms": 3, "attentions": 1},
        "unknown": {"flops": 100, "share": 0.1, "gemms": 1, "attentions": 0},
    }
    assert audit["graph"]["fp32"] == {"flops": 200, "share": 0.2, "gemms": 1, "attentions": 0}
    assert (audit["narrowed"], audit["unsized"]) == (1, 1)


HEADS = {"of_tokens": False, "precision": "fp32"}


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ([judged("a", "fp16")], ()),
        ([judged("a", "fp16"), judged("head", "fp32", flops=40, **HEADS)], ()),
        ([judged("a", "fp16"), judged("b", "fp32", precision="fp32")], ("b",)),
        ([judged("a", "int8")], ()),
        ([judged("a", "unknown")], ()),
        ([], ()),
    ],
    ids=["all", "a head", "kept for overflow", "narrower", "unknown", "nothing"],
)
def test_engines_that_are_what_their_name_says(found: list[Judged], kept: tuple[str, ...]) -> None:
    check_precision("fp16", found, kept, where="model.onnx")


def test_fp32_promises_nothing() -> None:
    check_precision("fp32", [judged("a", "fp32")], (), where="model.onnx")


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (
            [judged("a", "fp16", flops=300), judged("b", "fp32", precision="fp32", module="m.b")],
            "the engine is called fp16, but 1 of its 2 products, 25 % of the FLOPs, are compiled "
            "in fp32: b (m.b) in __myl_FcAdd",
        ),
        (
            [judged(str(i), "fp32") for i in range(5)],
            "the engine is called fp16, but 5 of its 5 products, 100 % of the FLOPs, are compiled "
            "in fp32: 0 in __myl_FcAdd, 1 in __myl_FcAdd, 2 in __myl_FcAdd, and 2 more",
        ),
        # [tokens, hidden]: no rank tells them from a head, but there is nothing else
        (
            [judged("a", "fp16"), judged("flat", "fp32", flops=900, **HEADS)],
            "the engine is called fp16, but 1 of its 2 products, 90 % of the FLOPs, are compiled "
            "in fp32: flat in __myl_FcAdd",
        ),
    ],
    ids=["one", "all", "flat"],
)
def test_engines_that_are_not_what_their_name_says(found: list[Judged], what: str) -> None:
    with pytest.raises(ContractNotReached) as caught:
        check_precision("fp16", found, (), where="model.onnx")
    assert caught.value.what == what
    assert caught.value.where == "model.onnx"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("share", "shown"),
    [(1.0, "100 %"), (0.99999, "99.9 %"), (0.5, "50 %"), (0.00001, "< 0.1 %"), (0.0, "0 %")],
)
def test_shares_are_rounded_down(share: float, shown: str) -> None:
    assert percent(share) == shown
