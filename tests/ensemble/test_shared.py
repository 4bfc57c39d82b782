"""What branches of a graph have in common is computed once, and nothing else is merged."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tfc.exporter.ensemble.shared import Shared, share_identical
from tfc.optimizers.executor import outputs_of

pytestmark = pytest.mark.ort
FEED = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
# Two branches: MatMul, Relu, MatMul each.
BRANCHES = """
<ir_version: 10, opset_import: ["" : 23]>
branches (float[n, 3] x) => (float[n, 2] y, float[n, 2] z)
{
    a = MatMul (x, first_1)
    b = Relu (a)
    y = MatMul (b, second_1)
    c = MatMul (x, first_2)
    d = Relu (c)
    z = MatMul (d, second_2)
}
"""


def graph(*, first_2: np.ndarray, second_2: np.ndarray) -> ir.Model:
    """The branches, with the weights of the second one."""
    model = ir.from_onnx_text(BRANCHES)
    weights = {
        "first_1": FIRST,
        "second_1": SECOND,
        "first_2": first_2,
        "second_2": second_2,
    }
    named = {str(v.name): v for node in model.graph for v in node.inputs if v is not None}
    for name, array in weights.items():
        value = named[name]
        value.const_value = ir.tensor(array.copy(), name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    return model


RANDOM = np.random.default_rng(0)
FIRST = RANDOM.standard_normal((3, 4)).astype(np.float32)
SECOND = RANDOM.standard_normal((4, 2)).astype(np.float32)


def shared(model: ir.Model) -> tuple[Shared, list[str]]:
    """What was shared, and the ops that are left; the outputs must stay what they were."""
    (before,) = outputs_of(model, [FEED])
    found = share_identical(model)
    (after,) = outputs_of(model, [FEED])
    assert list(before) == list(after) == ["y", "z"]
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])
    return found, [node.op_type for node in model.graph]


def test_branches_are_one_as_far_as_they_agree() -> None:
    found, ops = shared(graph(first_2=FIRST, second_2=SECOND + 1))
    assert ops == ["MatMul", "Relu", "MatMul", "MatMul"]
    assert (found.nodes, found.weight_bytes) == (2, FIRST.nbytes)


def test_what_comes_after_a_difference_stays_apart() -> None:
    found, ops = shared(graph(first_2=FIRST + 1, second_2=SECOND))
    assert ops.count("MatMul") == 4
    assert (found.nodes, found.weight_bytes) == (0, SECOND.nbytes)


def test_branches_that_agree_to_the_end_keep_both_outputs() -> None:
    found, ops = shared(graph(first_2=FIRST, second_2=SECOND))
    assert ops == ["MatMul", "Relu", "MatMul", "Identity"]
    assert found.weight_bytes == FIRST.nbytes + SECOND.nbytes


def test_zeros_of_both_signs_are_not_the_same_weight() -> None:
    zeros = np.zeros_like(FIRST)
    model = graph(first_2=zeros, second_2=SECOND)
    model.graph.initializers["first_1"].const_value = ir.tensor(-zeros, name="first_1")
    found = share_identical(model)
    assert found.weight_bytes == SECOND.nbytes
    assert {"first_1", "first_2"} <= set(model.graph.initializers)
