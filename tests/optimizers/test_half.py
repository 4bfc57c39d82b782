"""fp16 and bf16 graphs: what runs in half, what stays in fp32, and no cast too many."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tfc.optimizers.executor import outputs_of, relative_difference
from tfc.optimizers.precision.half import half_from_fp32
from tfc.optimizers.precision.half_weights import half_weights_from_fp32
from tfc.optimizers.precision.types import BF16, FP16, HalfType

pytestmark = pytest.mark.ort

LAYER = """g (float[batch,sequence,8] x, float[8,8] w, float[8] b, float[8] scale, float[8] bias,
  float[8,3] head, float[3] head_bias, int64 first) => (float[batch,3] logits) {
  p = MatMul(x, w)
  h = Add(p, b)
  s = Add(h, x)
  n = LayerNormalization(s, scale, bias)
  c = Gather<axis=1>(n, first)
  logits = Gemm(c, head, head_bias)
}"""


def layer(graphs, **constants) -> ir.Model:
    values = {
        "w": (8, 8),
        "b": (8,),
        "scale": (8,),
        "bias": (8,),
        "head": (8, 3),
        "head_bias": (3,),
        "first": np.array(0, np.int64),
    } | constants
    return graphs.model(LAYER, **values)


def casts(model: ir.Model) -> list[tuple[str, str]]:
    """(operator that is cast, type that it is cast to) of every cast."""
    return [
        (
            "input" if n.inputs[0].producer() is None else n.inputs[0].producer().op_type,
            n.outputs[0].dtype.name,
        )
        for n in model.graph
        if n.op_type == "Cast"
    ]


def test_tokens_in_half_and_the_head_in_fp32(graphs) -> None:
    model = layer(graphs)
    half, report = half_from_fp32(model)
    assert report.half == {"MatMul": 1, "Add": 1, "LayerNormalization": 1, "Gather": 1}
    assert report.fp32 == {"Add": 1, "Gemm": 1} or report.fp32 == {"Gemm": 1}
    assert half.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert half.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert half.graph.outputs[0].name == "logits"
    feeds = [graphs.feed(model)]
    difference = relative_difference(outputs_of(model, feeds), outputs_of(half, feeds))
    assert 0 < difference < 5e-3


def test_bf16_converts_the_same_nodes_and_rounds_to_eight_bits(graphs) -> None:
    model = layer(graphs)
    half, report = half_from_fp32(model, BF16)
    assert (half_from_fp32(model)[1], report.kept) == (report, ())
    assert graphs.ops(half) == [
        "Cast", "MatMul", "Add", "Cast", "Add", "Cast", "LayerNormalization", "Gather", "Cast",
        "Gemm",
    ]  # fmt: skip
    types = {value.dtype for node in half.graph for value in node.outputs}
    assert types == {ir.DataType.BFLOAT16, ir.DataType.FLOAT}
    weights = [v for v in half.graph.initializers.values() if v.name in ("w.bf16", "bias.bf16")]
    assert [v.const_value.dtype for v in weights] == [ir.DataType.BFLOAT16] * 2
    assert [v.dtype for v in (*half.graph.inputs, *half.graph.outputs)] == [ir.DataType.FLOAT] * 2
    feeds = [graphs.feed(model)]
    difference = relative_difference(outputs_of(model, feeds), outputs_of(half, feeds))
    assert 5e-4 < difference < 4e-2


@pytest.mark.parametrize(("half", "finite"), [(FP16, False), (BF16, True)])
def test_bf16_holds_what_fp16_cannot(graphs, half: HalfType, finite: bool) -> None:
    model = layer(graphs, w=np.full((8, 8), 6e4, np.float32))
    converted, _ = half_from_fp32(model, half)
    (outputs,) = outputs_of(converted, [graphs.feed(model)])
    assert np.isfinite(outputs["logits"]).all() == finite


@pytest.mark.parametrize("half", [FP16, BF16])
def test_a_row_whose_keys_are_all_masked_stays_a_number(graphs, half: HalfType) -> None:
    text = """g (float[2,1,5,8] q, float[2,1,5,5] mask) => (float[2,1,5,8] y) {
      y = Attention(q, q, q, mask)
    }"""
    model = graphs.model(text)
    mask = np.full((2, 1, 5, 5), np.finfo(np.float32).min, np.float32)
    converted, _ = half_from_fp32(model, half)
    (outputs,) = outputs_of(converted, [{"q": graphs.normal(2, 1, 5, 8), "mask": mask}])
    assert np.isfinite(outputs["y"]).all()


def test_no_value_is_cast_twice_and_no_pair_cancels(graphs) -> None:
    half, _ = half_from_fp32(layer(graphs))
    found = casts(half)
    assert len(found) == len(set(found))
    for node in half.graph:
        if node.op_type == "Cast":
            below = node.inputs[0].producer()
            assert below is None or below.op_type != "Cast"


def test_a_weight_that_half_cannot_hold_stays(graphs) -> None:
    big = np.full((8, 8), 1e5, np.float32)
    half, report = half_from_fp32(layer(graphs, w=big))
    assert len(report.kept) == 1
    product = next(n for n in half.graph if n.op_type == "MatMul")
    assert all(v.dtype == ir.DataType.FLOAT for v in product.inputs)


def test_the_given_model_is_not_changed(graphs) -> None:
    model = layer(graphs)
    before = str(model)
    half_from_fp32(model)
    half_weights_from_fp32(model)
    assert str(model) == before


def test_weights_in_half_and_arithmetic_in_fp32(graphs) -> None:
    model = layer(graphs)
    stored, count = half_weights_from_fp32(model)
    assert count == 2
    assert {n.outputs[0].dtype.name for n in stored.graph if n.op_type == "Cast"} == {"FLOAT"}
    assert len([n for n in stored.graph if n.op_type == "Cast"]) == 2
    feeds = [graphs.feed(model)]
    difference = relative_difference(outputs_of(model, feeds), outputs_of(stored, feeds))
    assert 0 < difference < 2e-3
