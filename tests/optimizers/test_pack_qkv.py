"""One GEMM for the projections around an attention, and what has to be done before it."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.optimizers.lowering.fold_scale import FoldScale
from tfc.optimizers.lowering.gemm import GemmToMatMul
from tfc.optimizers.lowering.pack_qkv import PackQKV

pytestmark = pytest.mark.ort

INPUTS = """g (float[batch,sequence,8] x, float[batch,sequence,8] x2,
  bool[batch,1,1,sequence] keep, float[1,1,sequence,4] cos, float[1,sequence,1,4] sin,
  float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8] bq, float[8] bk, float[8] bv,
  int64[4] split, int64[3] merge, float c)
  => (float[batch,sequence,8] y) {"""
PROJECTIONS = """
  mq = MatMul(x, wq)
  q0 = Add(mq, bq)
  q1 = Reshape(q0, split)
  q = Transpose<perm=[0,2,1,3]>(q1)
  mk = MatMul(x, wk)
  k0 = Add(bk, mk)
  k1 = Reshape(k0, split)
  k = Transpose<perm=[0,2,1,3]>(k1)
  mv = MatMul(x, wv)
  v0 = Add(mv, bv)
  v1 = Reshape(v0, split)
  v = Transpose<perm=[0,2,1,3]>(v1)
"""
ATTENTION = """
  a = Attention<scale=0.25>(q, k, v, keep)
  t = Transpose<perm=[0,2,1,3]>(a)
  y = Reshape(t, merge)
}"""
PACKED = ["MatMul", "Add", "Reshape", "Transpose", "Split"]
REST = ["Attention", "Transpose", "Reshape"]


def model(graphs, body, **constants):
    weights = {f"{kind}{name}": (8, 8) if kind == "w" else (8,) for name in "qkv" for kind in "wb"}
    given = {
        "split": np.array([0, 0, 2, 4], np.int64),
        "merge": np.array([0, 0, 8], np.int64),
        "c": np.float32(0.5),
        **weights,
        **constants,
    }
    return graphs.model(INPUTS + body, **given)


def test_three_projections_become_one_product(graphs) -> None:
    fused, result = graphs.fuse(model(graphs, PROJECTIONS + ATTENTION), PackQKV())
    assert result.changed == 1
    assert graphs.ops(fused) == PACKED + REST
    assert graphs.attributes(fused, "Split", "axis") == [1]


def test_a_missing_bias_is_zero(graphs) -> None:
    body = PROJECTIONS.replace("k0 = Add(bk, mk)", "").replace("Reshape(k0", "Reshape(mk")
    fused, _ = graphs.fuse(model(graphs, body + ATTENTION), PackQKV())
    assert graphs.ops(fused) == PACKED + REST


def test_no_bias_at_all_stays_without(graphs) -> None:
    body = PROJECTIONS
    for name in "qkv":
        body = body.replace(f"{name}0 = Add(m{name}, b{name})", "")
        body = body.replace(f"Reshape({name}0", f"Reshape(m{name}")
    body = body.replace("k0 = Add(bk, mk)", "")
    fused, _ = graphs.fuse(model(graphs, body + ATTENTION), PackQKV())
    assert graphs.ops(fused) == ["MatMul", "Reshape", "Transpose", "Split", *REST]


def test_what_follows_the_heads_stays(graphs) -> None:
    """A rotary embedding, here cut to one product, on transposed heads and on others."""
    late = PROJECTIONS + "r = Mul(q, cos)\n" + ATTENTION.replace("(q, k", "(r, k")
    fused, _ = graphs.fuse(model(graphs, late), PackQKV())
    assert graphs.ops(fused) == [*PACKED, "Mul", *REST]
    early = PROJECTIONS.replace("q = Transpose", "r = Mul(q1, sin)\nq = Transpose")
    early = early.replace("q = Transpose<perm=[0,2,1,3]>(q1)", "q = Transpose<perm=[0,2,1,3]>(r)")
    fused, _ = graphs.fuse(model(graphs, early + ATTENTION), PackQKV())
    assert graphs.attributes(fused, "Split", "axis") == [2]
    assert graphs.ops(fused) == [
        "MatMul", "Add", "Reshape", "Split", "Transpose", "Transpose", "Mul", "Transpose", *REST,
    ]  # fmt: skip


@pytest.mark.parametrize("way", ["slices of five axes", "split of the last axis", "per head"])
def test_a_product_that_is_packed_already_is_taken_apart_in_one_way(graphs, way: str) -> None:
    body = {
        "slices of five axes": """
          five = Constant<value_ints=[0,0,3,2,4]>()
          f = Reshape(m, five)
          q1 = Gather<axis=2>(f, zero)
          k1 = Gather<axis=2>(f, one)
          v1 = Gather<axis=2>(f, two)""",
        "split of the last axis": """
          qf, kf, vf = Split<axis=2, num_outputs=3>(m)
          q1 = Reshape(qf, split)
          k1 = Reshape(kf, split)
          v1 = Reshape(vf, split)""",
        "per head": """
          five = Constant<value_ints=[0,0,2,3,4]>()
          f = Reshape(m, five)
          q1 = Gather<axis=3>(f, zero)
          k1 = Gather<axis=3>(f, one)
          v1 = Gather<axis=3>(f, two)""",
    }[way]
    indices = "".join(
        f"{n} = Constant<value_int={i}>()\n" for i, n in enumerate(("zero", "one", "two"))
    )
    heads = "".join(f"{n} = Transpose<perm=[0,2,1,3]>({n}1)\n" for n in "qkv")
    whole = f"\nm = MatMul(x, wq)\n{indices}{body}\n{heads}{ATTENTION}"
    wide = graphs.model(
        INPUTS.replace("float[8,8] wq", "float[8,24] wq") + whole,
        split=np.array([0, 0, 2, 4], np.int64),
        merge=np.array([0, 0, 8], np.int64),
        wq=(8, 24),
    )
    fused, result = graphs.fuse(wide, PackQKV())
    assert result.changed == 1
    assert graphs.ops(fused) == ["MatMul", "Reshape", "Transpose", "Split", *REST]


def test_queries_and_keys_of_different_tensors_stay_apart(graphs) -> None:
    """Cross attention: keys and values of one tensor are packed, queries of another are not."""
    body = PROJECTIONS.replace("mq = MatMul(x, wq)", "mq = MatMul(x2, wq)")
    fused, result = graphs.fuse(model(graphs, body + ATTENTION), PackQKV())
    assert result.changed == 1
    assert graphs.ops(fused).count("MatMul") == 2
    (refused,) = result.refusals
    assert refused.reason == "no other projection of its input has heads of this size"


def test_a_result_that_is_also_used_whole_is_left_alone(graphs) -> None:
    body = PROJECTIONS + ATTENTION.replace(
        "y = Reshape(t, merge)", "u = Reshape(t, merge)\ny = Add(u, k0)"
    )
    fused, _ = graphs.fuse(model(graphs, body), PackQKV())
    assert graphs.ops(fused).count("MatMul") == 2


def test_projections_without_an_attention_are_no_site(graphs) -> None:
    body = (
        PROJECTIONS + "a = Sum(q, k, v)\nt = Transpose<perm=[0,2,1,3]>(a)\ny = Reshape(t, merge)\n}"
    )
    assert graphs.is_no_site(model(graphs, body), PackQKV())


def test_the_scale_goes_into_the_query(graphs) -> None:
    fused, result = graphs.fuse(model(graphs, PROJECTIONS + ATTENTION), FoldScale())
    assert result.changed == 1
    assert graphs.attributes(fused, "Attention", "scale") == [1.0]


def test_a_product_after_the_query_goes_too(graphs) -> None:
    body = PROJECTIONS.replace("q1 = Reshape(q0", "qs = Mul(q0, c)\nq1 = Reshape(qs")
    source = model(graphs, body + ATTENTION)
    fused, result = graphs.fuse(source, FoldScale())
    assert result.changed == 2
    assert "Mul" not in graphs.ops(fused)
    both, _ = graphs.fuse(fused, PackQKV())
    assert graphs.ops(both) == PACKED + REST


def test_a_query_that_others_read_is_not_scaled(graphs) -> None:
    body = PROJECTIONS + ATTENTION.replace(
        "y = Reshape(t, merge)", "u = Reshape(t, merge)\ny = Add(u, q0)"
    )
    assert graphs.refusal(model(graphs, body), FoldScale()) == "q has more than one reader"


ADDMM = """g (float[batch,sequence,8] x, float[8,6] w, float[6] b, int64[2] rows, int64[3] back)
  => (float[batch,sequence,6] y) {
  f = Reshape(x, rows)
  m = Gemm%s(f, w, b)
  y = Reshape(m, back)
}"""


def addmm(graphs, attributes="", **constants):
    given = {"w": (8, 6), "b": (6,), "rows": [-1, 8], "back": [2, -1, 6], **constants}
    return graphs.model(
        ADDMM.replace("[batch,", "[2,") % attributes,
        **{k: np.array(v, np.int64) if isinstance(v, list) else v for k, v in given.items()},
    )


def test_a_gemm_on_flattened_rows_becomes_a_product(graphs) -> None:
    fused, _ = graphs.fuse(addmm(graphs), GemmToMatMul())
    assert graphs.ops(fused) == ["MatMul", "Add"]
    model = graphs.model(
        ADDMM.replace("[batch,", "[2,").replace("[8,6] w", "[6,8] w") % "<transB=1>",
        w=(6, 8), b=(6,), rows=np.array([-1, 8]), back=np.array([2, -1, 6]),
    )  # fmt: skip
    fused, _ = graphs.fuse(model, GemmToMatMul())
    assert graphs.ops(fused) == ["MatMul", "Add"]


def test_a_gemm_that_scales_stays(graphs) -> None:
    reason = graphs.refusal(addmm(graphs, "<alpha=0.5>"), GemmToMatMul())
    assert reason == "it scales or transposes more than the weight"


def test_reshapes_that_move_rows_to_another_place_stay(graphs) -> None:
    body = ADDMM.replace("float[batch,sequence,6] y", "float[sequence,2,6] y")
    model = graphs.model(
        body.replace("[batch,", "[2,") % "", w=(8, 6), b=(6,), rows=np.array([-1, 8]),
        back=np.array([-1, 2, 6]),
    )  # fmt: skip
    reason = graphs.refusal(model, GemmToMatMul())
    assert reason == "the reshapes do more than merge rows and split them again"
