"""Attention written out in the ways that exporters and people write it."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.optimizers.lowering.flat_attention import FlatAttention
from tfc.optimizers.raising.attention import Attention

pytestmark = pytest.mark.ort

HEAD = """g (float[batch,2,sequence,4] q, float[batch,2,sequence,4] k, float[batch,2,sequence,4] v,
  float[batch,1,1,sequence] mask, bool[batch,1,1,sequence] keep, float c, float low)
  => (float[batch,2,sequence,4] y) {"""
KT = "kt = Transpose<perm=[0,1,3,2]>(k)\n"
TAIL = "p = Softmax<axis=-1>(z)\ny = MatMul(p, v)\n}"
# name → (scores, expected scale, operators after the fusion)
FORMS = {
    "plain": ("z = MatMul(q, kt)", 1.0, ["Attention"]),
    "divided": ("s = MatMul(q, kt)\nz = Div(s, c)", 0.5, ["Attention"]),
    "multiplied": ("s = MatMul(q, kt)\nz = Mul(c, s)", 2.0, ["Attention"]),
    "scaled on q": ("a = Div(q, c)\nz = MatMul(a, kt)", 0.5, ["Attention"]),
    "scaled on k": ("a = Mul(kt, c)\nz = MatMul(q, a)", 2.0, ["Attention"]),
    "scaled on both": ("a = Mul(q, c)\nb = Mul(kt, c)\nz = MatMul(a, b)", 4.0, ["Attention"]),
    "additive mask": ("s = MatMul(q, kt)\nt = Div(s, c)\nz = Add(t, mask)", 0.5, ["Attention"]),
    "mask first": ("s = MatMul(q, kt)\nz = Add(mask, s)", 1.0, ["Attention"]),
    "two masks": (
        "s = MatMul(q, kt)\nt = Add(s, mask)\nz = Add(t, mask)", 1.0, ["Add", "Attention"],
    ),
    "filled": ("s = MatMul(q, kt)\nz = Where(keep, s, low)", 1.0, ["Where", "Attention"]),
    "filled, inverted": (
        "n = Not(keep)\ns = MatMul(q, kt)\nz = Where(n, low, s)",
        1.0,
        ["Not", "Where", "Attention"],
    ),
    "filled and added": (
        "s = MatMul(q, kt)\nt = Where(keep, s, low)\nz = Add(t, mask)",
        1.0,
        ["Where", "Add", "Attention"],
    ),
}  # fmt: skip


def attention_model(graphs, scores, head=HEAD, tail=TAIL, transpose=KT, **constants):
    values = {"c": np.float32(2.0), "low": np.float32(-1e9)} | constants
    return graphs.model(
        head + transpose + scores + "\n" + tail,
        **{name: np.asarray(value, np.float32) for name, value in values.items()},
    )


@pytest.mark.parametrize("form", FORMS)
def test_it_fires(graphs, form) -> None:
    scores, scale, expected = FORMS[form]
    fused, result = graphs.fuse(attention_model(graphs, scores), Attention())
    assert result.changed == 1
    assert graphs.ops(fused) == expected
    assert graphs.attributes(fused, "Attention", "scale") == [pytest.approx(scale)]


def test_the_guard_against_nan_goes(graphs) -> None:
    tail = """p = Softmax<axis=3>(z)
      n = IsNaN(p)
      g = Where(n, zero, p)
      y = MatMul(g, v)
    }"""
    head = HEAD.replace("float low)", "float low, float zero)")
    model = attention_model(graphs, "z = MatMul(q, kt)", head=head, tail=tail, zero=0.0)
    fused, _ = graphs.fuse(model, Attention())
    assert graphs.ops(fused) == ["Attention"]


def test_a_key_that_was_never_split_into_heads_first(graphs) -> None:
    head = HEAD.replace("float[batch,2,sequence,4] k", "float[batch,sequence,2,4] k")
    transpose = "kt = Transpose<perm=[0,2,3,1]>(k)\n"
    model = attention_model(graphs, "z = MatMul(q, kt)", head=head, transpose=transpose)
    fused, _ = graphs.fuse(model, Attention())
    assert graphs.ops(fused) == ["Transpose", "Attention"]


def test_a_key_transposed_through_three_dimensions(graphs) -> None:
    """How the dynamo exporter writes SDPA below opset 23; the shapes are computed."""
    transpose = """ks = Shape(k)
      lead = Slice(ks, i0, i2)
      rows = Slice(ks, i2, i3)
      width = Slice(ks, i3, i4)
      flat = Concat<axis=0>(minus, rows, width)
      k3 = Reshape(k, flat)
      kt3 = Transpose<perm=[0,2,1]>(k3)
      full = Concat<axis=0>(lead, width, rows)
      kt = Reshape(kt3, full)
    """
    names = {"i0": [0], "i2": [2], "i3": [3], "i4": [4], "minus": [-1]}
    head = HEAD.replace("float low)", "float low, " + ", ".join(f"int64[1] {n}" for n in names)
                        + ")")  # fmt: skip
    body = head + transpose + "z = MatMul(q, kt)\n" + TAIL
    model = graphs.model(
        body,
        c=np.float32(1) * np.ones(()),
        low=np.float32(1) * np.ones(()),
        **{name: np.array(value, np.int64) for name, value in names.items()},
    )
    fused, _ = graphs.fuse(model, Attention())
    assert graphs.ops(fused) == ["Attention"]


def test_a_key_that_is_rearranged_otherwise_is_transposed(graphs) -> None:
    head = HEAD.replace("float[batch,2,sequence,4] k", "float[2,batch,sequence,4] k")
    transpose = "kt = Transpose<perm=[1,0,3,2]>(k)\n"
    model = attention_model(graphs, "z = MatMul(q, kt)", head=head, transpose=transpose)
    fused, _ = graphs.fuse(model, Attention())
    assert graphs.ops(fused) == ["Transpose", "Attention"]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (
            "s = MatMul(q, kt)\nz = Where(keep, s, c)",
            "the fill value 2 does not vanish in the softmax",
        ),
        ("s = MatMul(q, kt)\nz = Tanh(s)", "Tanh stands between the scores and the softmax"),
        (
            "s = MatMul(q, kt)\nz = Mul(s, mask)",
            "the scores are scaled by something that is not a constant",
        ),
        (
            "s = MatMul(q, kt)\nz = Add(s, s)",
            "it cannot be told which operand of the addition is the mask",
        ),
        (
            "s = MatMul(q, kt)\nt = Where(keep, s, low)\nz = Mul(t, tiny)",
            "the fill value -10 does not vanish in the softmax",
        ),
        (
            "s = MatMul(q, kt)\nt = Where(keep, s, low)\nz = Mul(t, heads)",
            "the scores are scaled by a tensor after the mask is added",
        ),
    ],
)
def test_it_refuses(graphs, scores, reason) -> None:
    head = HEAD.replace("float low)", "float low, float tiny, float[2,1,1] heads)")
    model = attention_model(graphs, scores, head=head, tiny=1e-8, heads=[[[0.5]], [[2.0]]])
    assert graphs.refusal(model, Attention()) == reason


def test_a_softmax_over_labels_is_no_site(graphs) -> None:
    body = "g (float[batch,8] x) => (float[batch,8] y) { y = Softmax(x) }"
    assert graphs.is_no_site(graphs.model(body), Attention())


PROJECTED = """g (float[batch,sequence,8] x, float[batch,sequence,8] x2,
  bool[batch,1,1,sequence] keep,
  float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8] bq, float[8] bk, float[8] bv,
  int64[4] split, int64[3] merge) => (float[batch,sequence,8] y) {
  mq = MatMul(x, wq)
  q0 = Add(mq, bq)
  q1 = Reshape(q0, split)
  q = Transpose<perm=[0,2,1,3]>(q1)
  mk = MatMul(%s, wk)
  k0 = Add(bk, mk)
  k1 = Reshape(k0, split)
  k = Transpose<perm=[0,2,1,3]>(k1)
  mv = MatMul(x, wv)
  v0 = Add(mv, bv)
  v1 = Reshape(v0, split)
  v = Transpose<perm=[0,2,1,3]>(v1)
  a = Attention<scale=0.25>(q, k, v, keep)
  t = Transpose<perm=[0,2,1,3]>(a)
  y = Reshape(t, merge)
}"""


def projected(graphs, key_source="x", body=PROJECTED):
    weights = {f"{kind}{name}": (8, 8) if kind == "w" else (8,) for name in "qkv" for kind in "wb"}
    return graphs.model(
        body % key_source,
        split=np.array([0, 0, 2, 4], np.int64),
        merge=np.array([0, 0, 8], np.int64),
        **weights,
    )


def test_attention_becomes_flat(graphs) -> None:
    fused, result = graphs.fuse(projected(graphs), FlatAttention())
    assert result.changed == 1
    assert graphs.ops(fused) == ["MatMul", "Add"] * 3 + ["Attention"]
    assert graphs.attributes(fused, "Attention", "q_num_heads") == [2]


def test_attention_whose_heads_are_read_elsewhere_stays(graphs) -> None:
    body = PROJECTED.replace(
        "=> (float[batch,sequence,8] y)",
        "=> (float[batch,sequence,8] y, float[batch,2,sequence,4] a)",
    )
    reason = graphs.refusal(projected(graphs, body=body), FlatAttention())
    assert reason == "the heads are not merged by one Transpose and one Reshape"
