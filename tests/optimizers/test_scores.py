"""The scores inside an attention, in each form in which it takes queries and keys."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.optimizers.precision.scores import largest_scores, overflowing_scores

pytestmark = pytest.mark.ort

HEADS = """g (float[batch,4,sequence,8] q, float[batch,2,sequence,8] k,
  float[batch,2,sequence,8] v) => (float[batch,4,sequence,8] y) {
  y = Attention<scale=0.5>(q, k, v)
}"""
FLAT = """g (float[batch,sequence,32] x) => (float[batch,sequence,32] y) {
  q = Neg(x)
  y = Attention<q_num_heads=4, kv_num_heads=4>(q, x, x)
}"""
PAST = """g (float[batch,2,sequence,8] q, float[batch,2,sequence,8] past) =>
  (float[batch,2,sequence,8] y) {
  y, pk, pv = Attention(q, q, q, , past, past)
}"""


def test_grouped_queries(graphs) -> None:
    model = graphs.model(HEADS)
    feed = graphs.feed(model)
    keys = np.repeat(feed["k"], 2, axis=1)
    expected = 0.5 * np.abs(feed["q"] @ keys.swapaxes(2, 3)).max()
    assert largest_scores(model, [feed])["y"] == pytest.approx(expected, rel=1e-5)


def test_heads_side_by_side(graphs) -> None:
    model = graphs.model(FLAT)
    feeds = [graphs.feed(model), {"x": graphs.normal(1, 3, 32) * np.float32(1000)}]
    heads = feeds[1]["x"].reshape(1, 3, 4, 8).swapaxes(1, 2)
    expected = 8**-0.5 * np.abs(heads @ heads.swapaxes(2, 3)).max()
    assert largest_scores(model, feeds)["y"] == pytest.approx(expected, rel=1e-5)
    model.graph.node(1).name = "attend"
    assert overflowing_scores(model, feeds) == {"y": "attend"}
    assert overflowing_scores(model, feeds[:1]) == {}


def test_earlier_keys_count(graphs) -> None:
    model = graphs.model(PAST)
    feed = graphs.feed(model)
    feed["past"] = feed["past"] * np.float32(100)
    expected = 8**-0.5 * np.abs(feed["q"] @ feed["past"].swapaxes(2, 3)).max()
    assert largest_scores(model, [feed])["y"] == pytest.approx(expected, rel=1e-5)
    empty = {**feed, "past": feed["past"][:, :, :0]}
    own = 8**-0.5 * np.abs(feed["q"] @ feed["q"].swapaxes(2, 3)).max()
    assert largest_scores(model, [empty])["y"] == pytest.approx(own, rel=1e-5)


def test_a_graph_without_attention(graphs) -> None:
    model = graphs.model("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }")
    assert largest_scores(model, [graphs.feed(model)]) == {}
