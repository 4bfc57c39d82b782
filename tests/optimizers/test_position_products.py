"""Products of heads with relative positions, and slices of constants, as one of each."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tfc.optimizers.lowering.position_products import PositionProducts
from tfc.optimizers.lowering.shared_slice import SharedSlice

pytestmark = pytest.mark.ort

# Two heads of four numbers, eight positions, three of them in use at most on each side.
INPUTS = """g (float[batch,2,sequence,4] q, float[batch,2,sequence,4] k,
  float[batch,2,sequence,4] v, float[batch,1,1,sequence] mask,
  float[8,8] table, float[8,8] wq, float[8,8] wk, int64[4] split, int64[3] merge, int64[1] first,
  int64[1] heads, int64[1] minus, int64[2] leading, int64 zero, int64 one, int64 half, int64 most,
  int64[1] start, int64[1] axis, float root, int64[1] four) => (float[batch,2,sequence,4] y) {"""
CONSTANTS = {
    "table": (8, 8),
    "wq": (8, 8),
    "wk": (8, 8),
    "split": np.array([1, -1, 2, 4]),
    "merge": np.array([-1, 8, 4]),
    "first": np.array([1]),
    "heads": np.array([2]),
    "minus": np.array([-1]),
    "leading": np.array([0, 1]),
    "zero": np.array(0),
    "one": np.array(1),
    "half": np.array(4),
    "most": np.array(7),
    "start": np.array([0]),
    "axis": np.array([0]),
    "root": np.float32(2),
    "four": np.array([4]),
}
SIZES = """
  batch = Shape<start=0, end=1>(q)
  length = Shape<start=2, end=3>(q)
  count = Squeeze(length)
  steps = Range(zero, count, one)
  down = Unsqueeze(steps, first)
  along = Unsqueeze(steps, axis)
  away = Sub(down, along)
"""
# As DeBERTa-v2: the positions are repeated for each text, and the heads merged into the batch.
REPEATED = """
  moved = Add(away, half)
  index0 = Clip(moved, zero, most)
  index1 = Unsqueeze(index0, axis)
  rows = Mul(batch, heads)
  wide = Concat<axis=0>(rows, length, length)
  index = Expand(index1, wide)
  flat = Concat<axis=0>(minus, length, four)
  times = Concat<axis=0>(batch, first, first)
"""
ONE_REPEATED = """
  p{x}0 = MatMul(table, w{x})
  p{x}1 = Reshape(p{x}0, split)
  p{x}2 = Transpose<perm=[0,2,1,3]>(p{x}1)
  p{x}3 = Reshape(p{x}2, merge)
  p{x}4 = Tile(p{x}3, times)
  p{x} = Transpose<perm=[0,2,1]>(p{x}4)
  m{x} = Reshape({x}, flat)
  s{x} = MatMul(m{x}, p{x})
  g{x} = GatherElements<axis=-1>(s{x}, index)
"""
SUMMED = """
  tk = Transpose<perm=[0,2,1]>(gk)
  sum = Add(gq, tk)
  scaled = Div(sum, root)
  shape = Concat<axis=0>(batch, heads, length, length)
  bias = Reshape(scaled, shape)
"""
ATTENTION = """
  masked = Add(bias, mask)
  y = Attention<scale=0.5>(q, k, v, masked)
}"""
# As DeBERTa: the rows that the length needs, and one product for all texts.
SLICED = """
  near = Min(count, half)
  low0 = Sub(half, near)
  high0 = Add(half, near)
  low = Reshape(low0, minus)
  high = Reshape(high0, minus)
  taken = Slice(table, low, high, axis)
  moved = Add(away, near)
  twice = Add(near, near)
  last = Sub(twice, one)
  index0 = Clip(moved, zero, last)
  index1 = Unsqueeze(index0, leading)
  wide = Concat<axis=0>(batch, heads, length, length)
  index = Expand(index1, wide)
"""
ONE_SLICED = """
  p{x}0 = MatMul(taken, w{x})
  p{x}1 = Reshape(p{x}0, split)
  p{x} = Transpose<perm=[0,2,3,1]>(p{x}1)
  s{x} = MatMul({x}, p{x})
  g{x} = GatherElements<axis=-1>(s{x}, index)
"""
ADDED = """
  tk = Transpose<perm=[0,1,3,2]>(gk)
  bias = Add(gq, tk)
"""
PRODUCT = ["Concat", "Transpose", "Reshape", "MatMul", "Shape", "Concat", "Reshape", "Transpose",
           "Split"]  # fmt: skip


REPEATED_FORM = REPEATED + "".join(ONE_REPEATED.format(x=x) for x in "qk") + SUMMED
SLICED_FORM = SLICED + "".join(ONE_SLICED.format(x=x) for x in "qk") + ADDED


def model(graphs, form: str):
    return graphs.model(INPUTS + SIZES + form + ATTENTION, **CONSTANTS)


def changed(form: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in form
        form = form.replace(old, new)
    return form


def test_positions_repeated_for_each_text_become_one_constant(graphs) -> None:
    fused, result = graphs.fuse(model(graphs, REPEATED_FORM), PositionProducts())
    assert result.changed == 1
    sizes = ["Shape", "Shape", "Squeeze", "Range", "Unsqueeze", "Unsqueeze", "Sub"]
    index = ["Add", "Clip", "Unsqueeze", "Mul", "Concat", "Expand"]
    merges = ["Shape", "Concat", "Reshape"] * 2
    scores = ["Transpose", "Add", "Div", "Concat", "Reshape", "Add", "Attention"]
    assert Counter(graphs.ops(fused)) == Counter(
        [*sizes, *index, *PRODUCT, *merges, "GatherElements", "GatherElements", *scores]
    )
    (product,) = (node for node in fused.graph if node.op_type == "MatMul")
    assert list(product.inputs[1].shape) == [4, 4, 8]


def test_positions_sliced_by_the_length_are_projected_whole(graphs) -> None:
    fused, result = graphs.fuse(model(graphs, SLICED_FORM), PositionProducts())
    assert result.changed == 1
    sizes = ["Shape", "Shape", "Squeeze", "Range", "Unsqueeze", "Unsqueeze", "Sub"]
    bounds = ["Min", "Sub", "Add", "Reshape", "Reshape"]
    index = ["Add", "Add", "Sub", "Clip", "Unsqueeze", "Concat", "Expand"]
    scores = ["GatherElements", "GatherElements", "Transpose", "Add", "Add", "Attention"]
    assert Counter(graphs.ops(fused)) == Counter(
        [*sizes, *bounds, *index, "Slice", *PRODUCT, *scores]
    )
    (rows,) = (node for node in fused.graph if node.op_type == "Slice")
    assert list(rows.inputs[0].shape) == [4, 4, 8]


def test_queries_alone_and_commuted_sums(graphs) -> None:
    only = changed(
        SLICED + ONE_SLICED.format(x="q") + "bias = Identity(gq)\n",
        ("moved = Add(away, near)", "moved = Add(near, away)"),
    )
    fused, result = graphs.fuse(model(graphs, only), PositionProducts())
    assert result.changed == 1
    (rows,) = (node for node in fused.graph if node.op_type == "Slice")
    assert list(rows.inputs[0].shape) == [2, 4, 8]


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        pytest.param(
            changed(SLICED_FORM, ("pq0 = MatMul(taken, wq)", "pq0 = MatMul(taken, other)")),
            "its positions depend on 'other'",
            id="positions from an input",
        ),
        pytest.param(
            changed(SLICED_FORM, ("bias = Add(gq, tk)", "n = ReduceMax(sk)\nb = Add(gq, tk)\n"
                    "bias = Add(b, n)")),
            "its result is read by more than gathers of positions",
            id="a product that is read elsewhere",
        ),
        pytest.param(
            changed(SLICED_FORM, ("pk0 = MatMul(taken, wk)", "pk0 = MatMul(table, wk)")),
            "its products with positions are of several sizes",
            id="one table sliced, the other whole",
        ),
        pytest.param(
            changed(
                SLICED_FORM,
                ("pk = T", "turned = T"),
                ("sk = ", "sizes = Shape(turned)\nnumber = Cast<to=1>(count)\n"
                    "pk = Mul(turned, number)\nsk = "),
            ),
            "its positions are not rows of one table, the same for each text",
            id="positions scaled by the length",
        ),
    ],
)  # fmt: skip
def test_it_refuses(graphs, form: str, reason: str) -> None:
    asked = graphs.model(
        INPUTS.replace(" v, float", " v, float[8,8] other, float") + SIZES + form + ATTENTION,
        **CONSTANTS,
    )
    assert reason in graphs.refusal(asked, PositionProducts())


def test_an_attention_without_positions_is_no_site(graphs) -> None:
    assert graphs.is_no_site(model(graphs, "bias = Identity(mask)\n"), PositionProducts())


SLICES = """g (float[batch,sequence,2] x, float[3,2,8] a, float[3,2,8] b, int64[1] low,
  int64[1] axis, int64[1] first) => (float[3,2,some] y, float[3,2,some] z) {
  high = Shape<start=1, end=2>(x)
  start = Sub(high, low)
  y = Slice(a, start, high, axis)
  z = Slice(b, start, high, axis)
}"""
BOUNDS = {"a": (3, 2, 8), "b": (3, 2, 8), "low": np.array([2]), "first": np.array([0])}


def test_slices_by_the_same_bounds_are_one(graphs) -> None:
    fused, result = graphs.fuse(graphs.model(SLICES, axis=np.array([2]), **BOUNDS), SharedSlice())
    assert result.changed == 1
    assert graphs.ops(fused) == ["Shape", "Sub", "Slice", "Split"]


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        pytest.param(SLICES, 0, id="on the axis of the split"),
        pytest.param(SLICES.replace("(b, start, high", "(b, start, start"), 2, id="other bounds"),
        pytest.param(SLICES.replace("(a, start, high", "(a, low, low"), 2, id="one is constant"),
    ],
)
def test_other_slices_stay(graphs, text: str, axis: int) -> None:
    given = graphs.model(text, axis=np.array([axis]), **BOUNDS)
    assert graphs.is_no_site(given, SharedSlice())
