"""What the axes of a graph's inputs are, whatever the exporter called them."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tfc.optimizers.axes import settle_axes

pytestmark = pytest.mark.ort


def shapes(model: ir.Model) -> list[str]:
    return [str(value.shape) for value in model.graph.inputs]


def test_names_that_run_stay(graphs) -> None:
    model = graphs.model(
        "g (float[b,s] x, float[b,t] y) => (float[b,n] z) { z = Concat<axis=1>(x, y) }"
    )
    assert settle_axes(model) == ()
    assert shapes(model) == ["[b,s]", "[b,t]"]


def test_one_axis_under_two_names(graphs) -> None:
    model = graphs.model(
        "g (float[unk1,unk2] x, float[unk3,unk4] y) => (float[n,m] z) { z = Add(x, y) }"
    )
    assert settle_axes(model) == ()
    assert shapes(model) == ["[unk1,unk2]", "[unk1,unk2]"]


def test_an_axis_without_a_name(graphs) -> None:
    model = graphs.model("g (float[n,m] x, float[n,m] y) => (float[n,m] z) { z = Add(x, y) }")
    for value in model.graph.inputs:
        value.shape = ir.Shape([None, 4])
    assert settle_axes(model) == ()
    assert shapes(model) == ["[x.0,4]", "[x.0,4]"]


def test_the_sum_of_two_axes(graphs) -> None:
    model = graphs.model(
        """g (float[b,new] x, float[b,old] past, float[b,total] mask) => (float[b,total] z) {
          k = Concat<axis=1>(past, x)
          z = Mul(k, mask)
        }"""
    )
    assert settle_axes(model) == ()
    assert shapes(model) == ["[b,new]", "[b,old]", "[b,new + old]"]


def test_an_axis_that_the_trace_fixed(graphs) -> None:
    model = graphs.model(
        """g (float[b,s] x) => (float[n,m] z) {
          shape = Constant<value_ints=[-1, 2, 3]>()
          seven = Constant<value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]>()
          z = Add(x, seven)
        }"""
    )
    (note,) = settle_axes(model)
    assert shapes(model) == ["[b,7]"]
    assert note.kind == "shapes"
    assert note.reason.startswith("the axis 's' is fixed to 7: the graph does not run at other")


def test_a_graph_that_runs_nowhere_is_left(graphs) -> None:
    model = graphs.model(
        """g (float[b,s] x) => (float[n,m] z) {
          wide = Constant<value_floats=[1.0, 2.0, 3.0, 4.0, 5.0]>()
          z = Add(x, wide)
        }"""
    )
    assert settle_axes(model) == ()
    assert shapes(model) == ["[b,s]"]
