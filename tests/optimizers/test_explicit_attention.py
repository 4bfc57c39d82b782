"""`Attention` as its products: each kind of mask, rows without a key, and what stays as it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tfc.optimizers.attention_products import all_attention_products
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.lowering.explicit_attention import ExplicitAttention
from tfc.optimizers.passes import FusionPass
from tfc.optimizers.precision.half import half_from_fp32
from tfc.optimizers.precision.ranges import overflowing
from tfc.optimizers.precision.types import BF16, FP16, HalfType
from tfc.optimizers.raising.attention import Attention

pytestmark = pytest.mark.ort

HEADS = "float[batch,2,sequence,8]"
BLOCK = """g (HEADS q, HEADS k, HEADS v, MASK m) => (HEADS y) {
  NODES
}""".replace("HEADS", HEADS)
PRODUCTS = ["Transpose", "MatMul", "Where", "Softmax", "MatMul"]
GUARDED = ["Transpose", "MatMul", "Where", "Softmax", "IsNaN", "Where", "MatMul"]
LOWEST = float(np.finfo(np.float32).min)


def block(graphs, mask: str = "", nodes: str = "") -> ir.Model:
    call = f"y = Attention<scale=1.0>(q, k, v{', m' if mask else ''})"
    text = BLOCK.replace("MASK", mask) if mask else BLOCK.replace(", MASK m", "")
    model = graphs.model(text.replace("NODES", nodes or call))
    for each in model.graph:
        each.name = f"node_{each.op_type}"
    return model


@pytest.mark.parametrize(
    ("mask", "ops"),
    [
        ("", ["Transpose", "MatMul", "Softmax", "MatMul"]),
        ("bool[batch,1,1,sequence]", PRODUCTS),
        ("bool[batch,1,sequence,sequence]", GUARDED),
        ("bool[sequence,sequence]", GUARDED),
        ("float[batch,1,1,sequence]", [op.replace("Where", "Add") for op in PRODUCTS]),
        ("float[1,2,sequence,sequence]",
         ["Transpose", "MatMul", "Add", "Softmax", "IsNaN", "Where", "MatMul"]),
    ],
)  # fmt: skip
def test_each_kind_of_mask(graphs, mask: str, ops: list[str]) -> None:
    model = block(graphs, mask)
    fused, result = graphs.fuse(model, ExplicitAttention())
    assert (result.changed, graphs.ops(fused)) == (1, ops)
    assert fused.graph[-1].name == "node_Attention"
    (found,) = all_attention_products(fused)
    assert [node.op_type for node in found.nodes] == ops[1:]


def test_a_scale_that_was_not_folded_is_a_factor_of_the_queries(graphs) -> None:
    for attribute, factor in (("<scale=0.25>", 0.25), ("", 8**-0.5)):
        model = block(graphs, nodes=f"y = Attention{attribute}(q, k, v)")
        fused, _ = graphs.fuse(model, ExplicitAttention())
        assert graphs.ops(fused) == ["Mul", "Transpose", "MatMul", "Softmax", "MatMul"]
        number = fused.graph[0].inputs[1].const_value.numpy()
        assert (number.dtype, float(number)) == (np.float32, pytest.approx(factor))


def test_grouped_keys_are_repeated(graphs) -> None:
    text = """g (float[batch,6,sequence,8] q, float[batch,2,sequence,8] k,
      float[batch,2,sequence,8] v) => (float[batch,6,sequence,8] y) {
      y = Attention<scale=1.0>(q, k, v)
    }"""
    fused, _ = graphs.fuse(graphs.model(text), ExplicitAttention())
    repeat = ["Unsqueeze", "Expand", "Reshape"]
    assert graphs.ops(fused) == [*repeat, *repeat, "Transpose", "MatMul", "Softmax", "MatMul"]
    product = next(node for node in fused.graph if node.op_type == "MatMul")
    assert [str(d) for d in product.outputs[0].shape] == ["batch", "6", "sequence", "sequence"]


@pytest.mark.parametrize("mask", ["bool", "float"])
@pytest.mark.parametrize("half", [None, FP16, BF16])
def test_a_row_without_a_key_stays_zero(graphs, mask: str, half: HalfType | None) -> None:
    model = block(graphs, f"{mask}[batch,1,sequence,sequence]")
    keep = np.tril(np.ones((2, 1, 5, 5), bool))
    keep[0, :, :, :2] = False  # padding on the left: rows 0 and 1 see nothing
    feed = graphs.feed(model)
    feed["m"] = keep if mask == "bool" else np.where(keep, 0, -np.inf).astype(np.float32)
    (expected,) = outputs_of(model, [feed])
    assert not expected["y"][0, :, :2].any()
    FusionPass(ExplicitAttention()).apply(model)
    if half is not None:
        model, report = half_from_fp32(model, half)
        assert report.half["Softmax"] == 1
        assert set(report.fp32) == {"Transpose"}  # of an input, which is in fp32
    (found,) = outputs_of(model, [feed])
    assert not found["y"][0, :, :2].any()
    tolerance = {None: 1e-6, FP16: 5e-3, BF16: 4e-2}[half]
    np.testing.assert_allclose(found["y"], expected["y"], atol=tolerance)


def test_a_text_without_tokens_gets_the_mean_of_the_values(graphs) -> None:
    model = block(graphs, "bool[batch,1,1,sequence]")
    FusionPass(ExplicitAttention()).apply(model)
    feed = graphs.feed(model)
    feed["m"] = np.zeros((2, 1, 1, 5), bool)
    mean = np.broadcast_to(feed["v"].mean(axis=2, keepdims=True), feed["v"].shape)
    for half in (None, FP16, BF16):
        made = model if half is None else half_from_fp32(model, half)[0]
        (found,) = outputs_of(made, [feed])
        np.testing.assert_allclose(found["y"], mean, atol=1e-6 if half is None else 1e-2)


@pytest.mark.parametrize("half", [FP16, BF16])
def test_masks_are_added_in_half_and_the_softmax_is_in_fp32(graphs, half: HalfType) -> None:
    """The lowest number of a mask is raised to one that half holds, or its rows would be NaN."""
    model = block(graphs, "float[batch,1,1,sequence]")
    FusionPass(ExplicitAttention()).apply(model)
    converted, report = half_from_fp32(model, half)
    assert report.half == {"MatMul": 2, "Add": 1}
    assert report.fp32 == {"Softmax": 1, "Transpose": 1}
    masks = [node for node in converted.graph if node.op_type == "Max"]
    assert [node.inputs[0].name for node in masks] == ["m"]
    feed = graphs.feed(model)
    feed["m"] = np.full((2, 1, 1, 5), LOWEST, np.float32)
    feed["m"][:, ..., 2] = 0
    expected, found = (outputs_of(each, [feed])[0]["y"] for each in (model, converted))
    np.testing.assert_allclose(found, expected, atol=4e-2)
    (again,) = all_attention_products(converted)
    assert [node.op_type for node in again.nodes] == ["MatMul", "Add", "Softmax", "MatMul"]


def test_scores_that_fp16_cannot_hold_keep_the_whole_attention_in_fp32(graphs) -> None:
    nodes = """a = Neg(q)
      b = Neg(k)
      c = Neg(v)
      z = Attention<scale=1.0>(a, b, c, m)
      y = Neg(z)"""
    model = block(graphs, "bool[batch,1,sequence,sequence]", nodes)
    for node in model.graph:
        node.name = node.outputs[0].name
    FusionPass(ExplicitAttention()).apply(model)
    feed = graphs.feed(model)
    assert overflowing(model, [feed]) == {}
    large = {**feed, "q": feed["q"] * 300, "k": feed["k"] * 300}
    found = overflowing(model, [large])
    (products,) = all_attention_products(model)
    assert list(found) == [products.scores.outputs[0].name]
    converted, report = half_from_fp32(model, too_large=found)
    kept = [str(node.name) for node in products.nodes]
    assert list(report.kept) == kept
    types = {n.name: n.outputs[0].dtype for n in converted.graph if n.name in kept}
    assert set(types.values()) == {ir.DataType.FLOAT, ir.DataType.BOOL}
    naive, _ = half_from_fp32(model)
    whole, kept_wide, broken = (outputs_of(m, [large])[0]["y"] for m in (model, converted, naive))
    assert np.abs(kept_wide - whole).max() < 1  # queries and keys have 11 bits
    assert np.abs(broken - whole).max() > 1


ROWS = "bool[batch,1,sequence,sequence]"
ADDED = "n = Where(m, zero, low)\n  y = Attention(q, k, v, n)"


@pytest.mark.parametrize(
    ("mask", "nodes", "reason"),
    [
        ("", "y = Attention<is_causal=1>(q, k, v)", "it is causal"),
        ("", "y = Attention<softcap=2.0>(q, k, v)", "it has softcap"),
        ("", "y, a, b = Attention(q, k, v, , q, q)", "it reads a cache"),
        ("", "z, a, b = Attention(q, k, v)\n  y = Add(z, a)", "more than its result is used"),
        (ROWS, "y = Attention<softmax_precision=11>(q, k, v, m)",
         "a row may be masked throughout, and the softmax is wider"),
    ],
)  # fmt: skip
def test_what_stays_an_attention(graphs, mask: str, nodes: str, reason: str) -> None:
    model = block(graphs, mask, nodes)
    if "precision" in nodes:  # a graph in half that asks for a softmax in fp32
        for value in model.graph.inputs[:3]:
            value.dtype = ir.DataType.FLOAT16
        (node,) = model.graph
        node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", 1)
    assert graphs.refusal(model, ExplicitAttention()) == reason


@pytest.mark.parametrize(("low", "guard"), [(-np.inf, True), (LOWEST / 4, False)])
def test_a_mask_made_with_infinities_has_a_guard(graphs, low: float, guard: bool) -> None:
    nodes = "n = Where(m, zero, low)\n  y = Attention<scale=1.0>(q, k, v, n)"
    text = BLOCK.replace("MASK m", f"{ROWS} m, float zero, float low").replace("NODES", nodes)
    model = graphs.model(text, zero=np.float32(0), low=np.float32(low))
    fused, _ = graphs.fuse(model, ExplicitAttention())
    ops = [op.replace("Where", "Add") for op in PRODUCTS]
    more = ["IsNaN", "Where"] if guard else []
    assert graphs.ops(fused) == ["Where", *ops[:-1], *more, ops[-1]]


def test_one_row_of_a_mask_has_a_guard_too(graphs) -> None:
    """As where only one position of the last layer is read."""
    text = """g (float[batch,2,1,8] q, HEADS k, HEADS v, ROWS m, int64[1] from, int64[1] to,
      int64[1] axis) => (float[batch,2,1,8] y) {
      n = Slice(m, from, to, axis)
      y = Attention<scale=1.0>(q, k, v, n)
    }""".replace("HEADS", HEADS).replace("ROWS", ROWS)
    bounds = {"from": np.array([0]), "to": np.array([1]), "axis": np.array([2])}
    fused, _ = graphs.fuse(graphs.model(text, **bounds), ExplicitAttention())
    assert graphs.ops(fused) == ["Slice", *GUARDED]


def test_heads_that_are_not_split_stay(graphs) -> None:
    text = """g (float[batch,sequence,8] x) => (float[batch,sequence,8] y) {
      y = Attention<q_num_heads=2, kv_num_heads=2>(x, x, x)
    }"""
    assert graphs.refusal(graphs.model(text), ExplicitAttention()) == "it has q_num_heads"


def test_the_products_are_one_attention_again(graphs) -> None:
    """A graph that was lowered is raised to what it was."""
    for mask in ("bool[batch,1,1,sequence]", "bool[batch,1,sequence,sequence]"):
        lowered, _ = graphs.fuse(block(graphs, mask), ExplicitAttention())
        raised, result = graphs.fuse(lowered, Attention())
        assert result.changed == 1
        assert "Softmax" not in graphs.ops(raised)


@pytest.mark.parametrize(
    "nodes",
    [
        "s = MatMul(x, w)\n  p = Softmax(s)\n  y = MatMul(p, x)",
        "s = MatMul(x, x)\n  p = Softmax(s)\n  y = MatMul(x, p)",
        "s = MatMul(x, x)\n  p = Softmax(s)\n  n = Neg(p)\n  z = MatMul(p, x)\n  y = Add(z, n)",
        "y = Softmax(x)",
    ],
    ids=["weights", "the other way around", "two readers", "no product"],
)
def test_other_softmaxes_are_no_attention(graphs, nodes: str) -> None:
    text = "g (float[2,2,8,8] x, float[8,8] w) => (float[2,2,8,8] y) {\n  %s\n}"
    assert all_attention_products(graphs.model(text % nodes, w=(8, 8))) == []
