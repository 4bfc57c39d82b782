"""Residual add + LayerNormalization: it fires, it refuses, it is not fooled."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.optimizers.lowering.skip_layer_norm import SkipLayerNorm
from tfc.optimizers.lowering.standard_ops import InlineCanonicalOps
from tfc.optimizers.lowering.sum_layer_norm import SumLayerNorm
from tfc.optimizers.raising.add_layer_norm import AddLayerNorm

pytestmark = pytest.mark.ort

BLOCK = """g (float[batch,sequence,8] x, float[batch,sequence,8] r, float[8] scale, float[8] bias)
=> (float[batch,sequence,8] y) {
  s = Add(%s)
  y = LayerNormalization<axis=-1, epsilon=1e-12>(s, scale, bias)
}"""
PRE_LN = """g (float[batch,sequence,8] x, float[batch,sequence,8] r, float[8] scale, float[8] bias)
=> (float[batch,sequence,8] y, float[batch,sequence,8] s) {
  s = Add(x, r)
  n = LayerNormalization<axis=2>(s, scale, bias)
  t = Relu(n)
  y = Add(t, s)
}"""
WITH_BIAS = """g (float[batch,sequence,4] x, float[batch,sequence,8] r, float[4,8] w, float[8] b,
  float[8] scale, float[8] bias) => (float[batch,sequence,8] y) {
  p = MatMul(x, w)
  h = Add(%s)
  s = Add(r, h)
  y = LayerNormalization<axis=-1>(s, scale, bias)
}"""


@pytest.mark.parametrize("operands", ["x, r", "r, x"])
def test_it_fires(graphs, operands) -> None:
    model = graphs.model(BLOCK % operands, scale=(8,), bias=(8,))
    fused, result = graphs.fuse(model, AddLayerNorm())
    assert result.changed == 1
    assert graphs.ops(fused) == ["tfc.AddLayerNorm"]
    assert [n.op_type for n in fused.functions["tfc", "AddLayerNorm", ""]] == [
        "Add",
        "LayerNormalization",
    ]


def test_a_second_reader_and_a_graph_output_read_the_sum(graphs) -> None:
    model = graphs.model(PRE_LN, scale=(8,), bias=(8,))
    fused, result = graphs.fuse(model, AddLayerNorm())
    assert result.changed == 1
    assert graphs.ops(fused) == ["tfc.AddLayerNorm", "Relu", "Add"]


def test_epsilon_survives_inlining(graphs) -> None:
    fused, _ = graphs.fuse(graphs.model(BLOCK % "x, r", scale=(8,), bias=(8,)), AddLayerNorm())
    InlineCanonicalOps().apply(fused)
    assert graphs.ops(fused) == ["Add", "LayerNormalization"]
    norm = fused.graph[1]
    assert norm.attributes["epsilon"].value == pytest.approx(1e-12)
    assert not fused.functions


def test_it_refuses_an_operand_that_broadcasts(graphs) -> None:
    body = (BLOCK % "x, r").replace("float[batch,sequence,8] r", "float[batch,1,8] r")
    reason = graphs.refusal(graphs.model(body, scale=(8,), bias=(8,)), AddLayerNorm())
    assert reason == "the operands of the addition have shapes [batch,sequence,8] and [batch,1,8]"


@pytest.mark.parametrize("operands", ["x, r", "r, x"])
@pytest.mark.parametrize("shape", ["1,sequence,8", "sequence,8"])
def test_positions_that_all_rows_share_are_no_residual(graphs, operands: str, shape: str) -> None:
    body = (BLOCK % operands).replace("float[batch,sequence,8] r", f"float[{shape}] r")
    assert graphs.is_no_site(graphs.model(body, scale=(8,), bias=(8,)), AddLayerNorm())


def test_it_refuses_a_norm_over_two_axes(graphs) -> None:
    body = (BLOCK % "x, r").replace("axis=-1", "axis=1")
    body = body.replace("float[8] scale, float[8] bias", "float[5,8] scale, float[5,8] bias")
    reason = graphs.refusal(graphs.model(body, scale=(5, 8), bias=(5, 8)), AddLayerNorm())
    assert reason == "the norm is over axis 1, not the last one"


def test_a_bias_is_no_residual(graphs) -> None:
    body = (BLOCK % "x, r").replace("float[batch,sequence,8] r", "float[8] r")
    assert graphs.is_no_site(graphs.model(body, r=(8,), scale=(8,), bias=(8,)), AddLayerNorm())


def test_a_sum_of_embeddings_is_no_residual(graphs) -> None:
    body = """g (int64[batch,sequence] ids, float[4,8] words, float[2,8] types, float[8] scale,
      float[8] bias) => (float[batch,sequence,8] y) {
      a = Gather(words, ids)
      b = Gather(types, ids)
      s = Add(a, b)
      y = LayerNormalization(s, scale, bias)
    }"""
    model = graphs.model(body, words=(4, 8), types=(2, 8), scale=(8,), bias=(8,))
    assert graphs.is_no_site(model, AddLayerNorm())


@pytest.mark.parametrize("operands", ["p, b", "b, p"])
def test_onnxruntime_gets_one_kernel_with_the_bias_in_it(graphs, operands) -> None:
    model = graphs.model(WITH_BIAS % operands, w=(4, 8), b=(8,), scale=(8,), bias=(8,))
    raised, _ = graphs.fuse(model, AddLayerNorm())
    lowered, result = graphs.fuse(raised, SkipLayerNorm())
    assert result.changed == 1
    assert graphs.ops(lowered) == ["MatMul", "com.microsoft.SkipLayerNormalization"]
    assert len(lowered.graph[1].inputs) == 5


@pytest.mark.parametrize("operands", ["p, b", "b, p"])
def test_the_cpu_gets_a_sum_that_onnxruntime_does_not_fuse(graphs, operands) -> None:
    model = graphs.model(WITH_BIAS % operands, w=(4, 8), b=(8,), scale=(8,), bias=(8,))
    raised, _ = graphs.fuse(model, AddLayerNorm())
    lowered, result = graphs.fuse(raised, SumLayerNorm())
    assert result.changed == 1
    assert graphs.ops(lowered) == ["MatMul", "Sum", "LayerNormalization"]
    assert len(lowered.graph[1].inputs) == 3
    assert graphs.attributes(lowered, "LayerNormalization", "epsilon") == [
        graphs.attributes(raised, "AddLayerNorm", "epsilon")[0]
    ]


def test_the_cpu_gets_the_sum_where_it_is_read(graphs) -> None:
    raised, _ = graphs.fuse(graphs.model(PRE_LN, scale=(8,), bias=(8,)), AddLayerNorm())
    lowered, _ = graphs.fuse(raised, SumLayerNorm())
    assert graphs.ops(lowered) == ["Sum", "LayerNormalization", "Relu", "Add"]


def test_onnxruntime_gets_the_sum_where_it_is_read(graphs) -> None:
    raised, _ = graphs.fuse(graphs.model(PRE_LN, scale=(8,), bias=(8,)), AddLayerNorm())
    lowered, _ = graphs.fuse(raised, SkipLayerNorm())
    assert graphs.ops(lowered) == ["com.microsoft.SkipLayerNormalization", "Relu", "Add"]


def test_a_bias_with_another_reader_stays(graphs) -> None:
    body = (WITH_BIAS % "p, b").replace(
        "=> (float[batch,sequence,8] y)",
        "=> (float[batch,sequence,8] y, float[batch,sequence,8] h)",
    )
    model = graphs.model(body, w=(4, 8), b=(8,), scale=(8,), bias=(8,))
    raised, _ = graphs.fuse(model, AddLayerNorm())
    lowered, _ = graphs.fuse(raised, SkipLayerNorm())
    assert graphs.ops(lowered) == ["MatMul", "Add", "com.microsoft.SkipLayerNormalization"]


def test_a_norm_without_shift(graphs) -> None:
    body = (BLOCK % "x, r").replace("(s, scale, bias)", "(s, scale)")
    body = body.replace(", float[8] bias", "")
    model = graphs.model(body, scale=np.ones(8, np.float32))
    raised, _ = graphs.fuse(model, AddLayerNorm())
    lowered, _ = graphs.fuse(raised, SkipLayerNorm())
    assert graphs.ops(lowered) == ["com.microsoft.SkipLayerNormalization"]
    assert len(lowered.graph[0].inputs) == 3
    InlineCanonicalOps().apply(raised)
    assert graphs.ops(raised) == ["Add", "LayerNormalization"]
    assert len(raised.graph[1].inputs) == 2  # an absent third one crashes ONNX Runtime 1.31


def test_a_bias_that_is_added_last_goes_to_the_product(graphs) -> None:
    body = WITH_BIAS.replace("h = Add(%s)", "h = Add(p, r)").replace(
        "s = Add(r, h)", "s = Add(b, h)"
    )
    model = graphs.model(body, w=(4, 8), b=(8,), scale=(8,), bias=(8,))
    raised, result = graphs.fuse(model, AddLayerNorm())
    assert result.changed == 1
    assert graphs.ops(raised) == ["MatMul", "Add", "tfc.AddLayerNorm"]
    lowered, _ = graphs.fuse(raised, SkipLayerNorm())
    assert graphs.ops(lowered) == ["MatMul", "com.microsoft.SkipLayerNormalization"]


def test_a_sum_whose_rows_are_flattened_before_the_norm(graphs) -> None:
    body = (BLOCK % "x, r").replace("(s, scale, bias)", "(f, scale, bias)")
    body = body.replace("float[batch,sequence,8] y", "float[rows,8] y")
    body = body.replace(
        "  y =", "  rows = Constant<value_ints=[-1, 8]>()\n  f = Reshape(s, rows)\n  y ="
    )
    fused, result = graphs.fuse(graphs.model(body, scale=(8,), bias=(8,)), AddLayerNorm())
    assert result.changed == 1
    assert graphs.ops(fused) == ["Constant", "tfc.AddLayerNorm", "Reshape"]


def test_scaled_and_moved_rows_of_tables_are_embeddings(graphs) -> None:
    body = """g (int64[batch,sequence] ids, float[4,8] words, float[9,8] places, float root,
      float[8] scale, float[8] bias) => (float[batch,sequence,8] y) {
      a = Gather(words, ids)
      b = Mul(a, root)
      c = Gather(places, ids)
      s = Add(b, c)
      y = LayerNormalization(s, scale, bias)
    }"""
    root = np.array(4.0, np.float32)
    model = graphs.model(body, words=(4, 8), places=(9, 8), root=root, scale=(8,), bias=(8,))
    assert graphs.is_no_site(model, AddLayerNorm())


def test_a_reader_of_the_sum_that_stands_before_the_norm(graphs) -> None:
    body = PRE_LN.replace("  n = Layer", "  u = Relu(s)\n  n = Layer").replace(
        "Add(t, s)", "Add(t, u)"
    )
    fused, _ = graphs.fuse(graphs.model(body, scale=(8,), bias=(8,)), AddLayerNorm())
    assert graphs.ops(fused)[0] == "tfc.AddLayerNorm"


def test_onnxruntime_gets_a_sum_that_only_the_graph_gives(graphs) -> None:
    body = PRE_LN.replace("  y = Add(t, s)", "  y = Neg(t)")
    raised, _ = graphs.fuse(graphs.model(body, scale=(8,), bias=(8,)), AddLayerNorm())
    lowered, _ = graphs.fuse(raised, SkipLayerNorm())
    assert graphs.ops(lowered) == ["com.microsoft.SkipLayerNormalization", "Relu", "Neg"]
