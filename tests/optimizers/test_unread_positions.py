"""The last layer for the positions that are read: it fires, it refuses, it is not fooled."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.optimizers.lowering.unread_positions import DropUnreadPositions
from tfc.optimizers.raising.add_layer_norm import AddLayerNorm

pytestmark = pytest.mark.ort

LAYER = """g (float[batch,sequence,8] x, bool[batch,1,1,sequence] keep,
  float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,8] wo, float[8,16] w1, float[16,8] w2,
  float[8] bo, float[8] scale, float[8] shift, int64[4] split, int64[3] merge, int64 first)
  => (%s) {
  xn = LayerNormalization(x, scale, shift)
  q0 = MatMul(xn, wq)
  q1 = Reshape(q0, split)
  q = Transpose<perm=[0,2,1,3]>(q1)
  k0 = MatMul(xn, wk)
  k1 = Reshape(k0, split)
  k = Transpose<perm=[0,2,1,3]>(k1)
  v0 = MatMul(xn, wv)
  v1 = Reshape(v0, split)
  v = Transpose<perm=[0,2,1,3]>(v1)
  a = Attention<scale=0.5>(q, k, v, keep)
  t = Transpose<perm=[0,2,1,3]>(a)
  m = Reshape(t, merge)
  o = MatMul(m, wo)
  ob = Add(o, bo)
  s1 = Add(xn, ob)
  h = LayerNormalization(s1, scale, shift)
  f1 = MatMul(h, w1)
  f2 = Gelu(f1)
  f3 = MatMul(f2, w2)
  s2 = Add(h, f3)
  y = LayerNormalization(s2, scale, shift)
  %s
}"""
LAST = "z = Gather<axis=1>(y, first)"


def layer(graphs, end=LAST, outputs="float[batch,8] z", body=LAYER, first=0):
    return graphs.model(
        body % (outputs, end),
        wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8), w1=(8, 16), w2=(16, 8), bo=(8,),
        scale=(8,), shift=(8,),
        split=np.array([0, 0, 2, 4], np.int64), merge=np.array([0, 0, 8], np.int64),
        first=np.array(first, np.int64),
    )  # fmt: skip


def rows(model, op_type):
    """The sequence axis of each such node's result."""
    return [str(n.outputs[0].shape[1]) for n in model.graph if n.op_type == op_type]


@pytest.mark.parametrize("first", [0, 2, -1])
def test_only_keys_and_values_are_computed_for_all(graphs, first: int) -> None:
    fused, result = graphs.fuse(layer(graphs, first=first), DropUnreadPositions())
    assert result.changed == 1
    assert rows(fused, "MatMul") == ["sequence", "sequence", "1", "1", "1", "1"]
    assert graphs.ops(fused)[-1] == "Squeeze"
    attention = next(n for n in fused.graph if n.op_type == "Attention")
    assert [str(v.shape[2]) for v in attention.inputs[:3]] == ["1", "sequence", "sequence"]


def test_the_canonical_norm_is_followed(graphs) -> None:
    raised, _ = graphs.fuse(layer(graphs), AddLayerNorm())
    fused, _ = graphs.fuse(raised, DropUnreadPositions())
    assert rows(fused, "MatMul") == ["sequence", "sequence", "1", "1", "1", "1"]
    assert rows(fused, "AddLayerNorm") == ["1", "1"]


def test_a_slice_keeps_its_axis(graphs) -> None:
    end = """from = Constant<value_ints=[0]>()
  to = Constant<value_ints=[1]>()
  axis = Constant<value_ints=[1]>()
  z = Slice(y, from, to, axis)"""
    model = layer(graphs, end, "float[batch,1,8] z")
    for node in list(model.graph):  # as the clean stage leaves it
        if node.op_type == "Constant":
            node.outputs[0].const_value = np_tensor(node)
    fused, result = graphs.fuse(model, DropUnreadPositions())
    assert result.changed == 1
    assert rows(fused, "MatMul").count("1") == 4
    assert "Squeeze" not in graphs.ops(fused)


def np_tensor(node):
    import onnx_ir as ir

    return ir.tensor(np.array(node.attributes["value_ints"].value, np.int64))


def test_a_mask_of_its_own_for_each_query_is_cut_too(graphs) -> None:
    """A causal or windowed mask: the row of the position that is read."""
    body = LAYER.replace("bool[batch,1,1,sequence] keep", "bool[batch,1,sequence,sequence] keep")
    model = layer(graphs, body=body, first=1)
    fused, _ = graphs.fuse(model, DropUnreadPositions())
    attention = next(n for n in fused.graph if n.op_type == "Attention")
    assert attention.inputs[3].producer().op_type == "Slice"
    assert [str(d) for d in attention.inputs[3].shape] == ["batch", "1", "1", "sequence"]


def test_a_causal_attention_is_computed_whole(graphs) -> None:
    """`is_causal` counts queries from the start: one query alone would see one key."""
    body = LAYER.replace("Attention<scale=0.5>", "Attention<scale=0.5, is_causal=1>")
    fused, _ = graphs.fuse(layer(graphs, body=body), DropUnreadPositions())
    assert rows(fused, "MatMul") == ["sequence"] * 3 + ["1"] * 3


@pytest.mark.parametrize("other", ["y", "h", "f2"])
def test_what_others_read_is_computed_whole(graphs, other: str) -> None:
    width = 16 if other == "f2" else 8
    outputs = f"float[batch,8] z, float[batch,sequence,{width}] {other}"
    model = layer(graphs, outputs=outputs)
    if other == "y":
        reason = graphs.refusal(model, DropUnreadPositions())
        assert reason == "no linear layer is computed for this position only"
        return
    fused, _ = graphs.fuse(model, DropUnreadPositions())
    assert rows(fused, "MatMul").count("1") == {"h": 2, "f2": 1}[other]


def test_mean_pooling_is_no_site(graphs) -> None:
    end = "z = ReduceMean<keepdims=0>(y, axes)"
    body = LAYER.replace("int64 first", "int64[1] axes")
    model = graphs.model(
        body % ("float[batch,8] z", end),
        wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8), w1=(8, 16), w2=(16, 8), bo=(8,),
        scale=(8,), shift=(8,), split=np.array([0, 0, 2, 4]), merge=np.array([0, 0, 8]),
        axes=np.array([1]),
    )  # fmt: skip
    assert graphs.is_no_site(model, DropUnreadPositions())


def test_one_row_of_the_batch_is_no_position(graphs) -> None:
    end = "z = Gather<axis=0>(y, first)"
    model = layer(graphs, end, "float[sequence,8] z")
    assert graphs.is_no_site(model, DropUnreadPositions())


@pytest.mark.ort
def test_a_classifier_loses_most_of_its_last_layer(graphs) -> None:
    """Both targets keep their fusions, and the last layer's mask is not expanded."""
    from tfc.optimizers import pipeline

    for target in ("onnxruntime", "tensorrt"):
        graph, report = pipeline.optimize(layer(graphs), target, [graphs.feed(layer(graphs))])
        assert report.reverted == []
        assert report.summary() == "attention 1/1, add+LayerNorm 2/2"
        assert "Expand" not in [n.op_type for n in graph.graph]
        assert rows(graph, "MatMul").count("1") == 4
