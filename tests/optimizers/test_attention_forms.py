"""Attention between two products of tensors, whatever stands between them; and what is none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tfc.optimizers.contract import expected_sites, fused_sites
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.passes import FusionPass
from tfc.optimizers.raising.attention import Attention

pytestmark = pytest.mark.ort

HEAD = """g (float[batch,2,sequence,4] q, float[batch,2,sequence,4] k, float[batch,2,sequence,4] v,
  float[batch,1,1,sequence] mask, bool[batch,1,1,sequence] keep, float[2,1,1] heads, float c,
  float low, float lowest) => (float[batch,2,sequence,4] y) {
  kt = Transpose<perm=[0,1,3,2]>(k)
"""
TAIL = "p = Softmax<axis=-1>(z)\ny = MatMul(p, v)\n}"
CONSTANTS = {
    "heads": np.array([0.5, 2.0], np.float32).reshape(2, 1, 1),
    "c": np.array(2.0, np.float32),
    "low": np.array(-1e4, np.float32),
    "lowest": np.array(np.finfo(np.float32).min),
}
# name → (scores, scale, operators after the fusion)
FORMS = {
    "a temperature for each head": (
        "s = MatMul(q, kt)\nz = Mul(heads, s)", 1.0, "Mul Attention"),
    "divided by a temperature": (
        "s = MatMul(q, kt)\nt = Div(s, heads)\nz = Mul(t, c)", 2.0, "Div Attention"),
    "the mask scaled with the scores": (
        "s = MatMul(q, kt)\nt = Add(s, mask)\nz = Mul(t, c)", 2.0, "Mul Attention"),
    "a bias taken off": ("s = MatMul(q, kt)\nz = Sub(s, mask)", 1.0, "Mul Attention"),
    "a floor": (
        "s = MatMul(q, kt)\nt = Add(s, mask)\nz = Max(t, lowest)", 1.0, "Attention"),
    "a floor by Clip": ("s = MatMul(q, kt)\nz = Clip(s, low)", 1.0, "Attention"),
    "keys times queries": (
        "qt = Transpose<perm=[0,1,3,2]>(q)\ns = MatMul(k, qt)\n"
        "t = Div(s, c)\nu = Transpose<perm=[0,1,3,2]>(t)\nz = Add(u, mask)", 0.5, "Attention"),
    "a second product as bias": (
        "s = MatMul(q, kt)\nt = MatMul(v, kt)\nz = Add(s, t)", 1.0,
        "Transpose MatMul Attention"),
}  # fmt: skip
WEIGHTS_GIVEN = (
    "its attention weights are the output '{}' of the graph, and a fused attention does not give "
    "them; to fuse it, export a module that does not return them (need_weights=False, "
    "output_attentions=False)"
)
REFUSED = {
    "the probabilities are an output": (
        "z = MatMul(q, kt)", WEIGHTS_GIVEN.format("p"),
        "float[batch,2,sequence,sequence] p"),
    "their mean over the heads is an output": (
        "z = MatMul(q, kt)\naxis = Constant<value_ints=[1]>()\n"
        "mean = ReduceMean<keepdims=0>(p, axis)",
        WEIGHTS_GIVEN.format("mean"), "float[batch,sequence,sequence] mean"),
    "the probabilities are used twice": (
        "z = MatMul(q, kt)\ntwice = MatMul(p, p)",
        "the probabilities have more than one reader: MatMul",
        "float[batch,2,sequence,sequence] twice"),
    "a soft cap": (
        "s = MatMul(q, kt)\nz = Tanh(s)", "Tanh stands between the scores and the softmax", ""),
    "a mask after the softmax": (
        "z = MatMul(q, kt)",
        "the probabilities are read by Mul, not by the product with the values", ""),
    "a fill that leaks": (
        "s = MatMul(q, kt)\nz = Where(keep, s, c)",
        "the fill value 2 does not vanish in the softmax", ""),
    "transposed after the mask": (
        "s = MatMul(q, kt)\nt = Transpose<perm=[0,1,3,2]>(s)\nu = Add(s, mask)\n"
        "w = Add(t, mask)\nz = Transpose<perm=[0,1,3,2]>(w)",
        "the scores are transposed after the mask is added", ""),
}  # fmt: skip


def built(graphs, scores: str, head: str = HEAD, tail: str = TAIL, **more: object) -> ir.Model:
    return graphs.model(head + scores + "\n" + tail, **CONSTANTS, **more)


@pytest.mark.parametrize("form", FORMS)
def test_it_fires(graphs, form: str) -> None:
    scores, scale, ops = FORMS[form]
    model = built(graphs, scores)
    assert expected_sites(model, {})["attention"] == 1
    fused, _ = graphs.fuse(model, Attention())
    assert graphs.ops(fused) == ops.split()
    assert graphs.attributes(fused, "Attention", "scale") == [pytest.approx(scale)]


@pytest.mark.parametrize("form", REFUSED)
def test_a_site_that_is_refused_is_expected_nevertheless(graphs, form: str) -> None:
    scores, reason, output = REFUSED[form]
    head = HEAD.replace("4] y)", f"4] y, {output})") if output else HEAD
    tail = TAIL.replace("MatMul(p, v)", "MatMul(pm, v)").replace("y =", "pm = Mul(p, mask)\ny =")
    model = built(graphs, scores, head, tail if "after the softmax" in form else TAIL)
    assert expected_sites(model, {})["attention"] == 1
    assert graphs.refusal(model, Attention()) == reason
    assert fused_sites(model)["attention"] == 0


def test_a_query_for_the_whole_batch_is_expanded(graphs) -> None:
    head = HEAD.replace("float[batch,2,sequence,4] q", "float[1,2,3,4] q")
    head = head.replace("=> (float[batch,2,sequence,4] y)", "=> (float[batch,2,3,4] y)")
    fused, _ = graphs.fuse(built(graphs, "z = MatMul(q, kt)", head), Attention())
    assert graphs.ops(fused) == ["Shape", "Concat", "Expand", "Attention"]


def test_values_before_probabilities(graphs) -> None:
    tail = """p = Softmax<axis=-1>(z)
      pt = Transpose<perm=[0,1,3,2]>(p)
      vt = Transpose<perm=[0,1,3,2]>(v)
      yt = MatMul(vt, pt)
      y = Transpose<perm=[0,1,3,2]>(yt)
    }"""
    fused, _ = graphs.fuse(built(graphs, "z = MatMul(q, kt)", tail=tail), Attention())
    assert graphs.ops(fused) == ["Attention", "Transpose", "Transpose"]


@pytest.mark.parametrize("fill", ["low", "lowest"])
@pytest.mark.parametrize("form", ["fill", "added"])
def test_a_row_without_keys_keeps_the_mean_of_the_values(graphs, form: str, fill: str) -> None:
    """Padding on the left of a causal model leaves such rows."""
    masked = {
        "fill": f"s = MatMul(q, kt)\nz = Where(keep, s, {fill})",
        "added": f"s = MatMul(q, kt)\no = Sub(c, c)\nb = Where(keep, o, {fill})\nz = Add(s, b)",
    }[form]
    model = built(graphs, masked)
    fused = model.clone()
    assert FusionPass(Attention()).apply(fused).changed == 1
    feed = graphs.feed(model)
    feed["keep"] = np.zeros_like(feed["keep"])
    (before,), (after,) = outputs_of(model, [feed]), outputs_of(fused, [feed])
    np.testing.assert_allclose(after["y"], before["y"], atol=1e-6)
    if fill == "lowest" or form == "fill":
        mean = feed["v"].mean(axis=2, keepdims=True)
        np.testing.assert_allclose(after["y"], np.broadcast_to(mean, after["y"].shape), atol=1e-6)


def test_fills_on_top_of_one_another_keep_their_order(graphs) -> None:
    """Large scores, a row whose keys are padding or in the future, the one filled lower."""
    masked = """s = MatMul(q, kt)
      t = Where(keep, s, lowest)
      z = Where(seen, t, low)"""
    head = HEAD.replace("float c,", "bool[sequence,sequence] seen, float c,")
    model = built(graphs, masked, head)
    fused = model.clone()
    assert FusionPass(Attention()).apply(fused).changed == 1
    feed = graphs.feed(model)
    feed["q"] *= 100
    feed["seen"] = np.tri(5, dtype=bool)
    feed["keep"] = np.broadcast_to(np.arange(5) > 2, (2, 1, 1, 5)).copy()
    (before,), (after,) = outputs_of(model, [feed]), outputs_of(fused, [feed])
    np.testing.assert_allclose(after["y"], before["y"], atol=1e-6)


NO_SITES = {
    "a classifier": """g (float[batch,sequence,8] x, float[8,3] w)
      => (float[batch,sequence,3] y) { s = MatMul(x, w)  y = Softmax<axis=-1>(s) }""",
    "classes of pixels": """g (float[batch,2,sequence,8] x, float[8,3] w)
      => (float[batch,2,sequence,3] y) { s = MatMul(x, w)  y = Softmax<axis=-1>(s) }""",
    "experts": """g (float[batch,sequence,8] x, float[8,3] w, float[batch,sequence,3,8] e)
      => (float[batch,sequence,1,8] y) { s = MatMul(x, w)  p = Softmax<axis=-1>(s)
      axis = Constant<value_ints=[2]>()  u = Unsqueeze(p, axis)  y = MatMul(u, e) }""",
    "pooling by a learned vector": """g (float[batch,sequence,8] x, float[8,1] w)
      => (float[batch,1,8] y) { s = MatMul(x, w)  t = Transpose<perm=[0,2,1]>(s)
      p = Softmax<axis=-1>(t)  y = MatMul(p, x) }""",
    "scores that nothing is taken with": """g (float[batch,sequence,8] a, float[batch,8,sequence] b)
      => (float[batch,sequence,sequence] y) { s = MatMul(a, b)  y = Softmax<axis=-1>(s) }""",
    "a softmax over the queries": """g (float[batch,2,sequence,4] q, float[batch,2,4,sequence] k,
      float[batch,2,sequence,4] v) => (float[batch,2,sequence,4] y) {
      s = MatMul(q, k)  p = Softmax<axis=2>(s)  y = MatMul(p, v) }""",
}  # fmt: skip


@pytest.mark.parametrize("name", NO_SITES)
def test_no_attention_is_expected(graphs, name: str) -> None:
    constants = {"w": (8, 1 if "vector" in name else 3)} if " w" in NO_SITES[name] else {}
    model = graphs.model(NO_SITES[name], **constants)
    assert expected_sites(model, {}) == {"attention": 0, "add_layernorm": 0}
    assert graphs.is_no_site(model, Attention())


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("others,2,sequence,4", "q, k and v have batches of others, batch and batch"),
        ("batch,1,sequence,4", "q, k and v have 1, 2 and 2 heads"),
        ("2,sequence,4", "q has 3 axes, the scores have 4"),
    ],
)
def test_operands_that_only_broadcast_are_refused(graphs, shape: str, reason: str) -> None:
    head = HEAD.replace("float[batch,2,sequence,4] q", f"float[{shape}] q")
    assert graphs.refusal(built(graphs, "z = MatMul(q, kt)", head), Attention()) == reason
