"""Cutting the vocabulary of a graph: tables, heads, comparisons with token ids, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.errors import UsageError
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.vocabulary import compared_ids, trim_vocabulary

pytestmark = pytest.mark.ort

KEPT = np.array([0, 3, 4, 7, 9], np.int64)
# A tied head, padding told by the id 3, and a bias; -100 is no token.
TIED = """g (int64[batch,sequence] input_ids, float[10,4] table, float[10] bias, int64 pad,
           int64 ignored, float scale)
  => (float[batch,sequence,10] logits, float[batch,sequence,4] hidden) {
  ids = Identity(input_ids)
  rows = Gather(table, ids)
  is_pad = Equal(input_ids, pad)
  is_ignored = Equal(input_ids, ignored)
  none = Or(is_pad, is_ignored)
  numbers = Cast<to=1>(none)
  axis = Constant<value_ints=[2]>()
  wide = Unsqueeze(numbers, axis)
  hidden = Sub(rows, wide)
  turned = Transpose<perm=[1,0]>(table)
  product = MatMul(hidden, turned)
  scaled = Mul(product, scale)
  logits = Add(scaled, bias)
}"""
CONSTANTS = {
    "table": (10, 4),
    "bias": (10,),
    "pad": np.int64(3) * np.ones((), np.int64),
    "ignored": np.int64(-100) * np.ones((), np.int64),
    "scale": np.float32(2) * np.ones((), np.float32),
}


def test_tables_heads_and_comparisons(graphs) -> None:
    model, whole = (graphs.model(TIED, **CONSTANTS) for _ in range(2))
    for name, value in whole.graph.initializers.items():
        model.graph.initializers[name].const_value = value.const_value
    ids = np.array([[3, 9, 0, 4], [7, 7, 3, 3]])
    (expected,) = outputs_of(whole, [{"input_ids": ids}])
    assert compared_ids(model, ["input_ids"]) == [-100, 3]
    done = trim_vocabulary(model, KEPT, ["input_ids"], ["logits"])
    assert (done.weights, done.bytes_before, done.bytes_after) == (2, 200, 100)
    (found,) = outputs_of(model, [{"input_ids": np.searchsorted(KEPT, ids)}])
    assert (found["hidden"] == expected["hidden"]).all()
    assert (found["logits"] == expected["logits"][..., KEPT]).all()
    assert [int(d) for d in model.graph.outputs[0].shape[2:]] == [5]
    assert model.graph.initializers["table"].const_value.shape.numpy() == (5, 4)


def test_a_table_of_another_input_is_left_alone(graphs) -> None:
    body = """g (int64[batch,sequence] input_ids, int64[batch,sequence] kinds, float[10,4] table,
               float[10,4] others) => (float[batch,sequence,4] y) {
      a = Gather(table, input_ids)
      b = Gather(others, kinds)
      y = Add(a, b)
    }"""
    model = graphs.model(body, table=(10, 4), others=(10, 4))
    trim_vocabulary(model, KEPT, ["input_ids"], [])
    sizes = {n: v.const_value.shape.numpy() for n, v in model.graph.initializers.items()}
    assert sizes == {"table": (5, 4), "others": (10, 4)}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("z = ArgMax<axis=1>(input_ids)", "what it makes of token ids depends on their numbers"),
        ("z = Gather(table, kinds)", "it reads 'table', which would be cut"),
        ("z = Identity(input_ids)", "the output 'z' holds token ids"),
        ("z = Mul(table, table)", "it reads 'table', which would be cut"),
    ],
)
def test_what_depends_on_ids_is_refused(graphs, line: str, reason: str) -> None:
    body = f"""g (int64[batch,sequence] input_ids, int64[batch,sequence] kinds, float[10,4] table)
      => (float[batch,sequence,4] y, float[batch,sequence] z) {{
      y = Gather(table, input_ids)
      {line}
    }}"""
    model = graphs.model(body, table=(10, 4))
    with pytest.raises(UsageError) as error:
        trim_vocabulary(model, KEPT, ["input_ids"], [])
    assert error.value.what == f"the vocabulary cannot be cut: {reason}"


def test_a_head_that_looks_at_all_tokens_is_refused(graphs) -> None:
    body = """g (int64[batch,sequence] input_ids, float[10,4] table, float[4,10] head)
      => (float[batch,sequence,10] logits) {
      x = Gather(table, input_ids)
      scores = MatMul(x, head)
      logits = Softmax<axis=-1>(scores)
    }"""
    model = graphs.model(body, table=(10, 4), head=(4, 10))
    with pytest.raises(UsageError) as error:
        trim_vocabulary(model, KEPT, ["input_ids"], ["logits"])
    assert error.value.what.endswith("it is not known to work on each token by itself")
    assert "(Softmax)" in error.value.where
