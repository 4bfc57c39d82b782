"""Places where two graphs part ways: rounding that grows accuses nobody, a fault is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tfc.optimizers.bisection.cutting import SUFFIX, computed, cut, executed
from tfc.optimizers.bisection.fused import wrong_segment
from tfc.optimizers.bisection.gap import Gap, gap_of, rounded
from tfc.optimizers.bisection.places import Place, compared, first_beyond, shared_values
from tfc.optimizers.precision.half import half_from_fp32
from tfc.optimizers.precision.types import FP16

pytestmark = pytest.mark.ort
RANDOM = np.random.default_rng(0)
FEED = {"x": RANDOM.standard_normal((2, 5, 16)).astype(np.float32)}
STEPS = 30


def chain(factor: float) -> ir.Model:
    """The input multiplied by a factor 30 times."""
    nodes = "\n".join(f"[n{i}] v{i + 1} = Mul(v{i}, factor)" for i in range(STEPS))
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        chain (float[batch,sequence,16] x) => (float[batch,sequence,16] v{STEPS})
        <float factor = {{{factor!r}}}> {{
            v0 = Identity(x)
            {nodes}
        }}"""
    )


def dense(change: float = 0.0) -> ir.Model:
    """Two products with a Gelu between; `change` is added to one weight of the second."""
    weights = {
        name: np.random.default_rng(i).standard_normal((16, 16)).astype(np.float32)
        for i, name in enumerate(("w", "u"))
    }
    weights["u"][3, 3] += change
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        dense (float[batch,sequence,16] x, float[16,16] w, float[16,16] u)
            => (float[batch,sequence,16] y) {
            [first] a = MatMul(x, w)
            [gelu] b = Gelu(a)
            [second] c = MatMul(b, u)
            [last] y = Tanh(c)
        }"""
    )
    for name, array in weights.items():
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    for node in model.graph:
        for value in node.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            value.shape = ir.Shape(["batch", "sequence", 16])
    return model


def places(before: ir.Model, after: ir.Model) -> list[Place]:
    names = shared_values(before, after)
    known = computed(before, FEED, names)
    return compared(after, FEED, known, computed(after, FEED, names), reference=before)


def test_rounding_that_grows_through_many_nodes_accuses_none_of_them() -> None:
    before, after = chain(1.0), chain(1.0 + 8e-6)
    for model in (before, after):
        for node in model.graph:
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    found = places(before, after)
    assert first_beyond(found) is None
    beyond = [place.value for place in found if place.accumulated.beyond]
    assert beyond[0] == "v13"  # 13 x 8e-6 is above 1e-4
    assert beyond[-1] == f"v{STEPS}"


def test_half_precision_is_allowed_its_rounding_and_no_more() -> None:
    half, _ = half_from_fp32(dense(), FP16)
    assert first_beyond(places(dense(), half)) is None
    wrong, _ = half_from_fp32(dense(0.1), FP16)
    found = first_beyond(places(dense(), wrong))
    assert found is not None
    assert (found.node, found.changed) == ("second", "the weight u.fp16 has other values")
    assert found.nodes == ("second",)


def test_a_name_that_was_taken_again_is_another_value() -> None:
    after = dense()
    gelu = next(node for node in after.graph if node.name == "gelu")
    gelu.name = "other"
    assert shared_values(dense(), after) == ["a", "c", "y"]


def test_a_cut_graph_reads_what_is_given_and_what_it_needs() -> None:
    part = cut(dense(), {"b"}, ["c"])
    assert [value.name for value in part.graph.inputs] == ["b"]
    assert [value.name for value in part.graph.outputs] == [f"c{SUFFIX}"]
    assert [node.op_type for node in part.graph] == ["MatMul"]
    assert list(part.graph.initializers) == ["u"]
    everything = computed(dense(), FEED, ["a", "b", "c", "y"])
    again = computed(dense(), FEED, ["b", "c", "y"], {"b": everything["b"]})
    assert np.array_equal(again["b"], everything["b"])
    assert np.array_equal(again["y"], everything["y"])


def test_the_shortest_sub_graph_that_is_wrong() -> None:
    """What runs it is wrong where Gelu is followed by a product that nothing else reads."""
    known = computed(dense(), FEED, ["a", "b", "c", "y"])

    def fuses_wrongly(model: ir.Model, feed: Any) -> dict[str, np.ndarray]:
        model = model.clone()
        for node in model.graph:
            value = node.inputs[0]
            made = value.producer() if value is not None else None
            hidden = made is not None and made.op_type == "Gelu" and not value.is_graph_output()
            if node.op_type == "MatMul" and hidden:
                node.replace_input_with(0, made.inputs[0])
        return executed(model, feed)

    def compare(name: str, got: np.ndarray) -> Gap:
        return gap_of(known[name], got, None, 1e-5)

    segment = wrong_segment(dense(), FEED, known, fuses_wrongly, compare)
    assert segment is not None
    assert (segment.at, segment.value) == (("a",), "c")
    assert [node.name for node in segment.nodes] == ["gelu", "second"]
    assert wrong_segment(dense(), FEED, known, executed, compare) is None


def test_gaps() -> None:
    one = np.array([1.0, -2.0, np.inf], np.float32)
    assert gap_of(one, one).max_abs == 0
    assert gap_of(one, np.array([1.0, -2.0, 5.0], np.float32)).max_abs == np.inf
    assert gap_of(one, one[:2]).beyond
    assert not gap_of(one, one + np.float32(1e-6), None, 1e-5).beyond
    assert gap_of(one, one + np.float32(1e-4), None, 1e-5).excess == pytest.approx(5.0, rel=1e-2)
    assert rounded(np.float32([1 + 2**-11, 1e30, 3.0]), 11).tolist() == pytest.approx(
        [1.0, 1e30, 3.0], rel=2**-11
    )
    assert rounded(np.float32([1 + 2**-9]), 11)[0] == 1 + 2**-9
