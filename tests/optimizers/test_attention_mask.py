"""The mask's sub-graph is judged by what it computes, not by how it is written."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.optimizers.raising.attention_mask import ReduceAttentionMask

pytestmark = pytest.mark.ort

GRAPH = """g (int64[batch,sequence] attention_mask, int64[batch,sequence] input_ids,
  float[batch,2,sequence,4] q, %s) => (float[batch,2,sequence,4] y) {
  %s
  y = Attention(q, q, q, m)
}"""
CONSTANTS = {
    "axes": np.array([1, 2], np.int64),
    "one": np.float32(1) * np.ones((), np.float32),
    "low": np.array(np.finfo(np.float32).min),
    "mild": np.array(-5.0, np.float32),
    "zero": np.array(0, np.int64),
    "step": np.array(1, np.int64),
    "last": np.array([1], np.int64),
    "window": np.array(16, np.int64),
    "column": np.array([0], np.int64),
    "row": np.array([1], np.int64),
    "scalar": np.array([], np.int64),
}
TYPES = {"one": "float", "low": "float", "mild": "float", "axes": "int64[2]", "zero": "int64",
         "step": "int64", "last": "int64[1]", "window": "int64", "column": "int64[1]",
         "row": "int64[1]", "scalar": "int64[0]"}  # fmt: skip
ADDITIVE = """f = Cast<to=1>(attention_mask)
  u = Unsqueeze(f, axes)
  i = Sub(one, u)
  m = Mul(i, low)"""
BOOLEAN = """b = Cast<to=9>(attention_mask)
  m = Unsqueeze(b, axes)"""
RANGES = """shape = Shape<start=1>(attention_mask)
  length = Reshape(shape, scalar)
  places = Range(zero, length, step)
  rows = Unsqueeze(places, row)
  columns = Unsqueeze(places, column)
"""
PADDING = "b = Cast<to=9>(attention_mask)\nu = Unsqueeze(b, axes)\n"
CAUSAL = RANGES + PADDING + "c = GreaterOrEqual(rows, columns)\nm = And(u, c)"
WINDOW = (
    RANGES + PADDING + "d = Sub(rows, columns)\na = Abs(d)\nw = LessOrEqual(a, window)\n"
    "m = And(u, w)"
)
LENGTHS = (
    RANGES
    + """n = ReduceSum<keepdims=1>(attention_mask, last)
  b = Less(columns, n)
  m = Unsqueeze(b, axes)"""
)


def masked_model(graphs, mask):
    used = [name for name in CONSTANTS if name in mask.replace(",", " ").replace("(", " ")
            .replace(")", " ").split()]  # fmt: skip
    declared = ", ".join(f"{TYPES[name]} {name}" for name in used)
    body = GRAPH % (declared, mask)
    return graphs.model(body, **{name: CONSTANTS[name] for name in used})


@pytest.mark.parametrize("mask", [ADDITIVE, BOOLEAN], ids=["additive", "boolean"])
def test_a_padding_mask_becomes_two_nodes(graphs, mask) -> None:
    model = masked_model(graphs, mask)
    assert ReduceAttentionMask().apply(model).changed == 1
    assert graphs.ops(model) == ["Cast", "Unsqueeze", "Attention"]
    kept = model.graph[2].inputs[3]
    assert str(kept.shape) == "[batch,1,1,sequence]"


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (CAUSAL, "the mask is not the padding mask"),
        (WINDOW, "the mask is not the padding mask"),
        (LENGTHS, "the mask is not the padding mask"),
        (ADDITIVE.replace("low", "mild"),
         "the mask's values for hidden keys do not vanish in the softmax"),
    ],
    ids=["causal", "sliding window", "lengths, which assume right padding", "mild"],
)  # fmt: skip
def test_another_mask_stays(graphs, mask, reason) -> None:
    model = masked_model(graphs, mask)
    before = graphs.ops(model)
    result = ReduceAttentionMask().apply(model)
    assert result.changed == 0
    assert graphs.ops(model) == before
    (refused,) = result.refusals
    assert refused.reason.startswith(reason + " (probe ")


def test_a_mask_that_depends_on_the_text_stays(graphs) -> None:
    mask = "b = Equal(attention_mask, input_ids)\nm = Unsqueeze(b, axes)"
    result = ReduceAttentionMask().apply(masked_model(graphs, mask))
    assert result.changed == 0
    assert len(result.refusals) == 1
