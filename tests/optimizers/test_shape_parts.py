"""Parts of a shape that was written out are taken from their own places."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.optimizers.cleaning import Fold
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.shape_parts import TakePartsOfShapes

pytestmark = pytest.mark.ort

BODY = """g (int64[1] a, int64[1] b, int64[1] i, int64[1] j, int64[1] axis, int64[1] step,
  int64 one) => (int64[n] y) {
  width = Constant<value_ints=[8]>()
  shape = Concat<axis=0>(a, width, b)
  %s
}"""
# what is taken → what is left of it once constants are folded
TAKEN = {
    "y = Slice(shape, i, j)": ([0], [2], None),
    "y = Slice(shape, i, j, axis, step)": ([2], [-4], [-1]),
    "y = Gather<axis=0>(shape, i)": ([-1], [0], None),
    "y = Gather<axis=0>(shape, one)": ([0], [0], None),
}


@pytest.mark.parametrize("taken", TAKEN)
def test_the_part_is_taken(graphs, taken: str) -> None:
    start, end, step = TAKEN[taken]
    model = graphs.model(
        (BODY % taken).replace("int64[n] y", "int64 y" if "one" in taken else "int64[n] y"),
        i=np.array(start, np.int64),
        j=np.array(end, np.int64),
        axis=np.array([0], np.int64),
        step=np.array(step or [1], np.int64),
        one=np.array(1, np.int64),
    )
    feed = {"a": np.array([5], np.int64), "b": np.array([7], np.int64)}
    before = outputs_of(model, [feed])
    assert TakePartsOfShapes().apply(model).changed == 1
    assert not {"Slice", "Gather"} & set(graphs.ops(model))
    assert (outputs_of(model, [feed])[0]["y"] == before[0]["y"]).all()


def test_a_scale_that_is_computed_from_a_size_is_a_constant(graphs) -> None:
    """How TorchScript writes the scale of scaled_dot_product_attention."""
    last = """w = Slice(shape, i, j)
      f = Cast<to=1>(w)
      r = Sqrt(f)
      s = Div(one, r)
      y = Mul(x, s)"""
    body = (BODY % last).replace("int64 one)", "float[1] one, float[n] x)")
    body = body.replace("int64[n] y", "float[n] y").replace("(a, width, b)", "(a, b, width)")
    constants = {"i": [-1], "j": [9], "axis": [0], "step": [1]}
    model = graphs.model(
        body,
        one=np.ones(1, np.float32),
        **{name: np.array(value, np.int64) for name, value in constants.items()},
    )
    TakePartsOfShapes().apply(model)
    Fold().apply(model)
    assert graphs.ops(model) == ["Mul"]


def test_an_index_that_is_not_known_stays(graphs) -> None:
    body = BODY.replace("int64 one)", "int64 one, int64[1] k)") % "y = Gather<axis=0>(shape, k)"
    names = {"i": [0], "j": [0], "axis": [0], "step": [1]}
    constants = {name: np.array(value, np.int64) for name, value in names.items()}
    model = graphs.model(body, one=np.array(1, np.int64), **constants)
    assert TakePartsOfShapes().apply(model).changed == 0


def test_operands_of_several_elements_stay(graphs) -> None:
    body = BODY.replace("int64[1] a", "int64[2] a") % "y = Slice(shape, i, j)"
    names = {"i": [0], "j": [1], "axis": [0], "step": [1]}
    constants = {name: np.array(value, np.int64) for name, value in names.items()}
    model = graphs.model(body, one=np.array(1, np.int64), **constants)
    assert TakePartsOfShapes().apply(model).changed == 0
