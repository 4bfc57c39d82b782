"""The closed loop: half precision measured against fp32, and what loses kept in fp32."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from tfc.optimizers.executor import outputs_of
from tfc.optimizers.precision import repair
from tfc.optimizers.precision.half import half_from_fp32
from tfc.optimizers.precision.locate import losses
from tfc.optimizers.precision.noise import rounded_products
from tfc.optimizers.precision.repair import measured, repaired_half
from tfc.optimizers.precision.types import BF16, FP16, HalfType

pytestmark = pytest.mark.ort

BLOCK = """g (float[batch,sequence,16] x, float[16,16] w, float[16] b, float[16,16] w2,
  float[16] scale, float[16] bias, float[16,16] out) => (float[batch,sequence,16] y) {
  p = MatMul(x, w)
  h = Add(p, b)
  n = LayerNormalization(h, scale, bias)
  m = MatMul(n, w2)
  y = MatMul(m, out)
}"""


def block(graphs, **constants) -> ir.Model:
    model = graphs.model(
        BLOCK,
        **{"w": (16, 16), "b": (16,), "w2": (16, 16), "scale": (16,), "bias": (16,)}
        | {"out": (16, 16)}
        | constants,
    )
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{number}"
        node.metadata_props["tfc.module"] = f"layer.{number}"
    return model


def is_held(model: ir.Model, feeds: list, half: HalfType = FP16) -> bool:
    """Whether the plain conversion is within the gate."""
    converted, _ = half_from_fp32(model, half)
    return measured(model, converted, half, feeds, list).holds


@pytest.mark.parametrize("half", [FP16, BF16])
def test_rounding_as_numpy_rounds(graphs, half: HalfType) -> None:
    text = "g (float[2,5] x, float[5,5] one) => (float[2,5] y) { y = MatMul(x, one) }"
    model = graphs.model(text, one=np.eye(5, dtype=np.float32))
    x = graphs.normal(2, 5) * np.float32(40)
    (outputs,) = outputs_of(rounded_products(model, half), [{"x": x}])
    assert np.array_equal(outputs["y"], x.astype(half.dtype.numpy()).astype(np.float32))
    (beyond,) = outputs_of(rounded_products(model, half), [{"x": x * np.float32(1e6)}])
    assert np.abs(beyond["y"]).max() > 1e7


def test_a_graph_without_trouble_gets_no_pin(graphs) -> None:
    model = block(graphs)
    found = repaired_half(model, FP16, [graphs.feed(model)], {})
    assert (found.pins, found.rounds, found.gate.holds) == ((), 1, True)
    assert found.gate.floor > 0
    assert found.report.fp32 == {}


def test_what_a_norm_takes_away_is_lost_before_it(graphs) -> None:
    """h has a mean of 4000 and a spread of 4: fp16 has steps of 2 to 4 there."""
    model = block(graphs, b=np.full(16, 4000, np.float32))
    feeds = [graphs.feed(model)]
    assert not is_held(model, feeds)
    found = repaired_half(model, FP16, feeds, {})
    assert found.gate.holds
    (pin,) = found.pins
    assert (pin.value, pin.node, pin.module) == ("h", "LayerNormalization_2", "layer.2")
    assert re.fullmatch(r"lost: \d+ % of its value", pin.why)
    assert found.report.kept == ("Add_1", "LayerNormalization_2")


def test_weights_that_underflow(graphs) -> None:
    model = block(graphs, w=graphs.normal(16, 16) * np.float32(1e-9), b=np.zeros(16, np.float32))
    model.graph.node("LayerNormalization_2").attributes["epsilon"] = ir.AttrFloat32(
        "epsilon", 1e-12
    )
    feeds = [graphs.feed(model)]
    assert not is_held(model, feeds)
    found = repaired_half(model, FP16, feeds, {})
    assert found.gate.holds
    assert ("layer.0", "underflow") in {(pin.module, pin.why) for pin in found.pins}
    assert not {"MatMul_3", "MatMul_4"} & set(found.report.kept)
    assert is_held(model, feeds, BF16)


def test_what_overflows_beyond_the_range_analysis(graphs) -> None:
    model = block(graphs, w=graphs.normal(16, 16) * np.float32(6e3), b=np.zeros(16, np.float32))
    feeds = [{"x": graphs.normal(2, 5, 16) * np.float32(10)}]
    naive, _ = half_from_fp32(model)
    assert not np.isfinite(outputs_of(naive, feeds)[0]["y"]).all()
    found = repaired_half(model, FP16, feeds, {})
    assert found.gate.holds
    assert {pin.why for pin in found.pins} == {"overflow"}
    assert not {"MatMul_3", "MatMul_4"} & set(found.report.kept)
    assert is_held(model, feeds, BF16)


def test_the_cause_comes_before_its_consequences(graphs) -> None:
    model = block(graphs, b=np.full(16, 4000, np.float32))
    feeds = [graphs.feed(model)]
    found = losses(model, half_from_fp32(model)[0], feeds)
    assert found[0].value == "n"
    assert found[0].added > 100 * found[1].added
    assert {loss.value for loss in found} == {"p", "h", "n", "m", "y"}


def test_rounds_are_bounded_and_the_numbers_are_told(graphs, monkeypatch) -> None:
    monkeypatch.setattr(repair, "MAX_ROUNDS", 1)
    model = block(graphs, b=np.full(16, 4000, np.float32))
    found = repaired_half(model, FP16, [graphs.feed(model)], {})
    assert found.rounds == 1
    assert not found.gate.holds
    assert found.gate.error > found.gate.allowed >= 3 * found.gate.floor


@pytest.mark.parametrize("half", [FP16, BF16])
@pytest.mark.parametrize("fault", ["dropped bias", "wrong scale"])
def test_a_faulty_conversion_does_not_pass_for_rounding(graphs, half: HalfType, fault: str) -> None:
    model = block(graphs)
    feeds = [graphs.feed(model)]
    converted, _ = half_from_fp32(model, half)
    assert measured(model, converted, half, feeds, list).holds
    name, factor = (f"b.{half.name}", 0) if fault == "dropped bias" else (f"w2.{half.name}", 1.1)
    value = converted.graph.initializers[name]
    array = value.const_value.numpy()
    value.const_value = ir.tensor((array.astype(np.float32) * factor).astype(array.dtype))
    assert not measured(model, converted, half, feeds, list).holds
