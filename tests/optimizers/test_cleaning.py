"""Cleaning keeps what looks like nothing and is not."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.optimizers.cleaning import Fold
from tfc.optimizers.executor import outputs_of

pytestmark = pytest.mark.ort


def test_a_small_epsilon_is_not_zero(graphs) -> None:
    """A row of equal values: without the epsilon its norm is 0/0."""
    body = """g (float[batch,sequence,8] x, float[1] axis, float eps, float two)
      => (float[batch,sequence,8] y) {
      m = ReduceMean<keepdims=1>(x, a)
      d = Sub(x, m)
      q = Pow(d, two)
      v = ReduceMean<keepdims=1>(q, a)
      e = Add(v, eps)
      s = Sqrt(e)
      y = Div(d, s)
    }""".replace("float[1] axis", "int64[1] a")
    model = graphs.model(
        body, a=np.array([-1]), eps=np.float32(1e-12), two=np.float32(2) * np.ones((), np.float32)
    )
    feed = {"x": np.ones((2, 5, 8), np.float32)}
    Fold().apply(model)
    assert (outputs_of(model, [feed])[0]["y"] == 0).all()


def test_constants_fold_and_duplicates_go(graphs) -> None:
    body = """g (float[batch,8] x, float[8] b, float[8] c) => (float[batch,8] y) {
      k = Add(b, c)
      p = Tanh(x)
      q = Tanh(x)
      i = Identity(q)
      s = Add(p, i)
      y = Add(s, k)
    }"""
    model = graphs.model(body, b=(8,), c=(8,))
    Fold().apply(model)
    assert graphs.ops(model) == ["Tanh", "Add", "Add"]
