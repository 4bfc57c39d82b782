"""Packed tokens: it fires whatever the padding, it refuses, it is not fooled."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tfc.errors import ContractNotReached, UsageError
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.lowering.remove_padding import RemovePadding
from tfc.optimizers.passes import FusionPass
from tfc.optimizers.stages import Selection, stages_of

pytestmark = pytest.mark.ort

LAYER = """g (float[batch,sequence,8] x, int64[batch,sequence] attention_mask,
  float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,8] wo, float[8,16] w1, float[16,8] w2,
  float[8] bo, float[8] scale, float[8] shift, int64[2] axes, int64[1] last, int64[1] along,
  int64 first) => (%s) {
  seen = Cast<to=9>(attention_mask)
  keys = Unsqueeze(seen, axes)
  length = Shape<start=1>(attention_mask)
  one = Constant<value_ints=[1]>()
  size = Concat<axis=0>(one, one, length, one)
  keep = Expand(keys, size)
  xn = LayerNormalization(x, scale, shift)
  q = MatMul(xn, wq)
  k = MatMul(xn, wk)
  v = MatMul(xn, wv)
  a = Attention<scale=0.5, q_num_heads=2, kv_num_heads=2>(q, k, v, keep)
  o = MatMul(a, wo)
  s1 = Sum(o, bo, xn)
  h = LayerNormalization<axis=2>(s1, scale, shift)
  f1 = MatMul(h, w1)
  f2 = Gelu(f1)
  f3 = MatMul(f2, w2)
  s2 = Add(h, f3)
  y = LayerNormalization(s2, scale, shift)
  %s
}"""
MEAN = """m3 = Unsqueeze(attention_mask, last)
  m = Cast<to=1>(m3)
  ym = Mul(y, m)
  total = ReduceSum<keepdims=0>(ym, along)
  count = ReduceSum<keepdims=0>(m, along)
  z = Div(total, count)"""
FIRST = "z = Gather<axis=1>(y, first)"
POOLED = "float[batch,8] z"
PADDINGS = {
    "full": [[1, 1, 1, 1], [1, 1, 1, 1]],
    "right": [[1, 1, 0, 0], [1, 1, 1, 1]],
    "left": [[0, 0, 0, 1], [0, 1, 1, 1]],
    "holes": [[1, 0, 1, 0], [0, 1, 0, 1]],
}


def layer(graphs, end=MEAN, outputs=POOLED, body=LAYER):
    return graphs.model(
        body % (outputs, end),
        wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8), w1=(8, 16), w2=(16, 8), bo=(8,),
        scale=(8,), shift=(8,), axes=np.array([1, 2]), last=np.array([2]), along=np.array([1]),
        first=np.array(0),
    )  # fmt: skip


def packed(model) -> ir.Model:
    copy = model.clone()
    assert FusionPass(RemovePadding()).apply(copy).changed == 1
    return copy


def on_tokens(model) -> list[str]:
    """The operators whose result is [tokens, n]."""
    return [n.op_type for n in model.graph if str(n.outputs[0].shape).startswith("[tokens,")]


@pytest.mark.parametrize("end", [MEAN, FIRST])
@pytest.mark.parametrize("padding", PADDINGS)
def test_the_numbers_stay_whatever_the_padding(graphs, padding: str, end: str) -> None:
    model = layer(graphs, end)
    feed = {
        "x": graphs.normal(2, 4, 8),
        "attention_mask": np.array(PADDINGS[padding], np.int64),
    }
    (before,), (after,) = outputs_of(model, [feed]), outputs_of(packed(model), [feed])
    np.testing.assert_allclose(after["z"], before["z"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("empty", [[1], [0, 1]])
def test_rows_without_tokens_break_nothing(graphs, empty: list[int]) -> None:
    model = layer(graphs, FIRST)
    mask = np.ones((2, 4), np.int64)
    mask[empty] = 0
    feed = {"x": graphs.normal(2, 4, 8), "attention_mask": mask}
    (before,), (after,) = outputs_of(model, [feed]), outputs_of(packed(model), [feed])
    assert np.isfinite(after["z"]).all()
    np.testing.assert_allclose(after["z"], before["z"], rtol=0, atol=1e-5)


def test_all_between_the_first_linear_layer_and_the_pooling_is_on_tokens(graphs) -> None:
    done = packed(layer(graphs))
    assert on_tokens(done) == (
        ["MatMul"] * 3 + ["MatMul", "Sum", "LayerNormalization", "MatMul", "Gelu", "MatMul",
                          "Add", "LayerNormalization"]
    )  # fmt: skip
    assert graphs.ops(done).count("Gather") == 2 + 4  # packed: xn, a; unpacked: q, k, v, y
    pooled = next(node for node in done.graph if node.op_type == "Mul")
    assert str(pooled.inputs[0].shape) == "[batch,sequence,8]"


def test_a_mask_of_booleans_is_taken_too(graphs) -> None:
    body = LAYER.replace("int64[batch,sequence] att", "bool[batch,sequence] att")
    body = body.replace("seen = Cast<to=9>", "seen = Identity")
    model = layer(graphs, FIRST, body=body)
    feed = {"x": graphs.normal(2, 4, 8), "attention_mask": np.array(PADDINGS["holes"], bool)}
    (before,), (after,) = outputs_of(model, [feed]), outputs_of(packed(model), [feed])
    np.testing.assert_allclose(after["z"], before["z"], rtol=0, atol=1e-5)


def test_a_result_for_every_token_is_left_alone(graphs) -> None:
    model = layer(graphs, outputs=f"{POOLED}, float[batch,sequence,8] y")
    assert graphs.refusal(model, RemovePadding()) == "the output 'y' has a result for every token"


def test_a_mean_over_padding_is_left_alone(graphs) -> None:
    model = layer(graphs, "z = ReduceMean<keepdims=0>(y, along)")
    reason = graphs.refusal(model, RemovePadding())
    assert reason.startswith("ReduceMean '")
    assert reason.endswith("may read 'y' at padding")


@pytest.mark.parametrize("position", [1, -1])
def test_a_position_that_may_be_padding_is_left_alone(graphs, position: int) -> None:
    end = f"at = Constant<value_int={position}>()\n  z = Gather<axis=1>(y, at)"
    assert "may read 'y' at padding" in graphs.refusal(layer(graphs, end), RemovePadding())


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(q, k, v, keep)", "(q, k, v)", "attention has no mask: it reads every position"),
        ("scale=0.5", "scale=0.5, is_causal=1", "attention is causal"),
        ("(q, k, v, keep)", "(q, k, v, keep, past, past)", "attention keeps keys and values"),
        (
            "seen = Cast<to=9>(attention_mask)",
            "sums = ReduceSum<keepdims=0>(x, last)\n  seen = Cast<to=9>(sums)",
            "the mask is not made from one input [batch, sequence]",
        ),
    ],
)
def test_it_says_why_attention_cannot_do_without_padding(
    graphs, old: str, new: str, reason: str
) -> None:
    body = LAYER.replace(old, new)
    if "past" in new:
        cache = "float[batch,2,cached,4] past"
        body = body.replace("float[8,8] wq", f"{cache}, float[8,8] wq", 1)
    model = layer(graphs, body=body)
    assert graphs.refusal(model, RemovePadding()) == reason


def test_it_runs_last_and_only_where_it_is_asked_for(graphs) -> None:
    from tfc.optimizers import pipeline

    model = layer(graphs)
    feeds = [
        {"x": graphs.normal(2, 4, 8), "attention_mask": np.array(mask, np.int64)}
        for mask in PADDINGS.values()
    ]
    graph, report = pipeline.optimize(
        model, "onnxruntime", feeds, selection=Selection(remove_padding=True)
    )
    assert (report.entries[-1].name, report.entries[-1].changed) == ("remove padding", 1)
    assert report.reverted == []
    assert on_tokens(graph).count("MatMul") == 6
    without, report = pipeline.optimize(model, "onnxruntime", feeds)
    assert on_tokens(without) == []
    with pytest.raises(UsageError) as caught:
        stages_of("tensorrt", Selection(remove_padding=True))
    assert caught.value.what == (
        "padding is removed for the target onnxruntime only, and this is tensorrt"
    )


def test_where_it_cannot_the_contract_does_not_hold(graphs) -> None:
    from tfc.optimizers import pipeline

    model = layer(graphs, outputs=f"{POOLED}, float[batch,sequence,8] y")
    feeds = [{"x": graphs.normal(2, 4, 8), "attention_mask": np.ones((2, 4), np.int64)}]
    chosen = Selection(remove_padding=True)
    with pytest.raises(ContractNotReached) as caught:
        pipeline.optimize(model, "onnxruntime", feeds, selection=chosen)
    assert caught.value.what.startswith("padding stays in the graph: ")
    assert caught.value.what.endswith("the output 'y' has a result for every token")
    graph, report = pipeline.optimize(
        model, "onnxruntime", feeds, selection=chosen, allow_missed=True
    )
    assert on_tokens(graph) == []
    assert [refused.kind for refused in report.missed] == ["remove_padding"]


def test_what_reads_padding_all_the_same_is_undone(graphs) -> None:
    """The mask turned round: by its form a masked mean, by its numbers one over the padding."""
    from tfc.optimizers import pipeline

    turned = MEAN.replace("m = Cast<to=1>(m3)", "m0 = Cast<to=1>(m3)\n  m = Cos(m0)")
    feeds = [
        {"x": graphs.normal(2, 4, 8), "attention_mask": np.array(mask, np.int64)}
        for mask in PADDINGS.values()
    ]
    with pytest.raises(ContractNotReached) as caught:
        pipeline.optimize(
            layer(graphs, turned), "onnxruntime", feeds, selection=Selection(remove_padding=True)
        )
    assert caught.value.what == (
        "padding stays in the graph: the ledger undid it, for it changed the numbers"
    )
