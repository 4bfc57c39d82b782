"""int8's parts: sites, histograms, ranges, Q/DQ, smoothing and the search."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tfc.errors import UsageError
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.graph import constant
from tfc.optimizers.precision.int8.histogram import Histogram
from tfc.optimizers.precision.int8.narrow import FP8, INT8
from tfc.optimizers.precision.int8.observe import Observed, observe, values_model
from tfc.optimizers.precision.int8.qdq import has_quantized, quantize_dequantize
from tfc.optimizers.precision.int8.ranges import METHODS, Range, ranges_from
from tfc.optimizers.precision.int8.search import order_of, search
from tfc.optimizers.precision.int8.sites import Site, sites_of
from tfc.optimizers.precision.int8.smooth import scales_of, searched_alphas, smooth
from tfc.optimizers.precision.int8.weights import quantized_weight, scale_of

pytestmark = pytest.mark.ort

BLOCK = """g (int64[batch,sequence] ids, float[9,8] table, float[8] gamma, float[8] beta,
  float[8,12] w1, float[12] b1, float[12,8] w2, float[3,8] wc, float[3] bc)
  => (float[batch,3] y) {
  e = Gather(table, ids)
  x = LayerNormalization(e, gamma, beta)
  h = MatMul(x, w1)
  i = Add(h, b1)
  j = Gelu(i)
  o = MatMul(j, w2)
  r = Add(o, x)
  s = MatMul(r, e)
  p = ReduceMax<keepdims=0>(r, axes)
  y = Gemm<transB=1>(p, wc, bc)
}"""
WEIGHTS = {
    "table": (9, 8), "gamma": (8,), "beta": (8,), "w1": (8, 12), "b1": (12,), "w2": (12, 8),
    "wc": (3, 8), "bc": (3,),
}  # fmt: skip


def block(graphs, *, residual: bool = True) -> ir.Model:
    """An embedding, a norm, a feed-forward layer with a residual, and a classifier."""
    text = BLOCK.replace("  s = MatMul(r, e)\n", "").replace(
        "float[3] bc)", "float[3] bc, int64[1] axes)"
    )
    if not residual:
        text = text.replace("r = Add(o, x)", "r = Identity(o)")
    model = graphs.model(text, **WEIGHTS, axes=np.array([1]))
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model


def feed(rows: int = 4, length: int = 5) -> dict[str, np.ndarray]:
    return {"ids": np.random.default_rng(0).integers(0, 9, (rows, length))}


def tokens(model: ir.Model) -> list[Site]:
    return [site for site in sites_of(model) if site.tokens]


def seen_of(model: ir.Model) -> Observed:
    seen = Observed()
    observe(model, tokens(model), [feed()], seen, lambda seen: None)
    return seen


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_sites_are_products_with_a_constant_matrix(graphs) -> None:
    first, second, head = sites_of(block(graphs))
    assert (first.node, first.activation, first.weight) == ("make_h", "x", "w1")
    assert (first.kind, first.elements) == ("MatMul", 96)
    assert (first.transposed, first.tokens) == (False, True)
    assert (second.activation, second.weight) == ("j", "w2")
    assert (head.kind, head.transposed, head.tokens, head.label) == ("Gemm", True, False, "make_y")


def test_a_product_of_activations_is_no_site(graphs) -> None:
    text = """g (float[batch,4,8] a, float[batch,8,4] b, float[8,8] w) => (float[batch,4,4] y) {
      c = MatMul(a, b)
      t = Transpose(w)
      d = MatMul(a, t)
      y = Identity(c)
    }"""
    assert sites_of(graphs.model(text, w=(8, 8))) == ()


def test_a_histogram_does_not_depend_on_the_order_of_its_values() -> None:
    parts = [np.random.default_rng(0).normal(size=999) * scale for scale in (1.0, 100.0, 1e-3)]
    forward, backward = Histogram(), Histogram()
    for part in parts:
        forward.add(part)
    for part in reversed(parts):
        backward.add(part)
    together = Histogram()
    together.add(parts[1])
    rest = Histogram()
    rest.add(np.concatenate([parts[0], parts[2]]))
    for other in (backward, together.plus(rest), rest.plus(together)):
        assert other.limit == forward.limit
        assert np.array_equal(other.counts, forward.counts)
        assert (other.low, other.high) == (forward.low, forward.high)
    assert forward.counts.sum() == 3 * 999
    assert forward.amax == np.abs(np.concatenate(parts)).max()
    with pytest.raises(ValueError, match="not finite"):
        forward.add(np.array([np.nan]))


def test_where_each_method_stops() -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    values[0] = 40.0
    histogram = Histogram()
    histogram.add(values)
    found = {m: ranges_from({"x": histogram}, m)["x"] for m in METHODS if m != "entropy"}
    assert found["min-max"] == Range(values.min(), 40.0)
    kept = np.quantile(np.abs(values), 0.9999)
    assert found["percentile"].amax == pytest.approx(kept, rel=0.01)
    assert found["percentile"].low == -found["percentile"].high

    def error(limit: float) -> float:
        step = limit / 127
        return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).mean())

    best = min(np.linspace(0.4, 40, 100), key=error)
    assert found["mse"].amax == pytest.approx(best, abs=0.41)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_of_nothing_and_of_zeros(method: str) -> None:
    zeros = Histogram()
    zeros.add(np.zeros(5))
    found = ranges_from({"nothing": Histogram(), "zeros": zeros}, method)
    assert found == {"nothing": Range(0.0, 0.0), "zeros": Range(0.0, 0.0)}


def test_entropy_clips_what_hardly_happens() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    values[0] = 12.0
    histogram = Histogram()
    histogram.add(values)
    assert 2 < METHODS["entropy"](histogram, INT8) < 6


def test_a_weight_is_off_by_half_a_step_of_its_channel() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 5)) * 10.0 ** np.arange(-2, 3)
    found = quantized_weight(weight, 1, np.float16)
    assert found.scales.dtype == np.float16
    off = np.abs(found.dequantized() - weight) / found.scales.astype(np.float32)
    assert off.max() <= 0.5 + 0.07  # rounded scales clip the largest by 127 · 2^-11 steps
    turned = quantized_weight(weight.T, 0, np.float16)
    assert np.array_equal(turned.values.T, found.values)


def test_e4m3_rounds_to_three_bits_and_ends_at_448() -> None:
    values = np.array([17.0, 19.0, 25.0, 447.0, 1000.0, -1e9, 2.0**-9, 2.0**-11, -0.3])
    expected = [16, 20, 24, 448, 448, -448, 2.0**-9, 0, -0.3125]  # ties go to the even mantissa
    assert FP8.rounded(values).astype(float).tolist() == expected
    assert INT8.rounded(np.array([-128.0, 2.5, 3.5])).tolist() == [-127, 2, 4]


def test_a_weight_in_fp8_has_one_scale_and_is_off_by_a_sixteenth() -> None:
    weight = np.geomspace(20, 1e-3, 80).reshape(16, 5) * [1, -1, 1, -1, 1]
    found = quantized_weight(weight, 1, np.float16, FP8)
    assert found.scales.shape == ()
    off = np.abs(found.dequantized() - weight) / np.abs(weight)
    assert off.max() <= 2.0**-4
    assert np.array_equal(quantized_weight(weight.T, 0, np.float16, FP8).values.T, found.values)


def test_mse_looks_at_the_type_that_is_rounded_to() -> None:
    """One outlier: equal steps gain by clipping it, and a float keeps both ends."""
    values = np.random.default_rng(0).normal(size=100_000)
    values[0] = 40.0
    histogram = Histogram()
    histogram.add(values)
    assert METHODS["mse"](histogram, INT8) < 30
    assert METHODS["mse"](histogram, FP8) > 35


def test_the_graph_in_fp8_computes_what_its_rounded_factors_give(graphs) -> None:
    model = block(graphs)
    ranges = ranges_from(seen_of(model).histograms(), "min-max", FP8)
    site = tokens(model)[0]
    weight = constant(model.graph.initializers[site.weight])
    names = {use.node.outputs[0].name for use in model.graph.initializers[site.weight].uses()}
    read, given = (
        outputs_of(values_model(model, [name]), [feed()])[0][name]
        for name in (site.activation, *names)
    )
    quantize_dequantize(model, [site], ranges, FP8)
    step = scale_of(ranges[site.activation].amax, np.float32, FP8)
    rounded = FP8.rounded(read / step).astype(np.float32) * step
    expected = rounded @ quantized_weight(weight, 1, np.float32, FP8).dequantized()
    (name,) = names
    got = outputs_of(values_model(model, [name]), [feed()])[0][name]
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(got - given).max() > 1e-3 * np.abs(given).max()
    stored = model.graph.initializers[f"{site.weight}.fp8"]
    assert stored.dtype == ir.DataType.FLOAT8E4M3FN
    assert [
        dq.attributes.get("axis") for dq in model.graph if dq.op_type == "DequantizeLinear"
    ] == [
        None,
        None,
    ]


def test_q_and_dq_stand_around_the_products_alone(graphs) -> None:
    model = block(graphs)
    expected = outputs_of(model, [feed()])[0]["y"]
    ranges = ranges_from(seen_of(model).histograms(), "min-max")
    quantize_dequantize(model, tokens(model), ranges)
    pair = ["QuantizeLinear", "DequantizeLinear"]
    assert ops(model) == [
        "Gather", "LayerNormalization", *pair, "DequantizeLinear", "MatMul", "Add", "Gelu", *pair,
        "DequantizeLinear", "MatMul", "Add", "ReduceMax", "Gemm",
    ]  # fmt: skip
    names = [site.node for site in sites_of(model)]
    assert names == ["make_y"]
    residual = next(node for node in model.graph if node.name == "make_r")
    assert residual.inputs[1].producer().op_type == "LayerNormalization"
    scales = constant(model.graph.initializers["w1.int8_scales"])
    assert scales.shape == (12,)
    assert "w1" not in model.graph.initializers
    got = outputs_of(model, [feed()])[0]["y"]
    assert 0 < np.abs(got - expected).max() < 0.03 * np.abs(expected).max()
    assert has_quantized(model)


def test_products_that_read_the_same_share_a_pair(graphs) -> None:
    text = """g (float[batch,sequence,8] x, float[8,4] a, float[8,4] b)
      => (float[batch,sequence,4] y) {
      p = MatMul(x, a)
      q = MatMul(x, b)
      y = Add(p, q)
    }"""
    model = graphs.model(text, a=(8, 4), b=(8, 4))
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    quantize_dequantize(model, sites_of(model), {"x": Range(-3.0, 3.0)})
    assert ops(model).count("QuantizeLinear") == 1
    assert ops(model).count("DequantizeLinear") == 3


def test_a_product_without_a_range(graphs) -> None:
    model = block(graphs)
    with pytest.raises(UsageError) as caught:
        quantize_dequantize(model, tokens(model), {})
    assert caught.value.what == "there is no range for what 'make_h' reads"


def test_padding_is_not_seen(graphs) -> None:
    model = block(graphs)
    ids = feed()["ids"]
    mask = np.ones_like(ids)
    mask[1:, 2:] = 0
    seen, alone = Observed(), Observed()
    given = {"ids": ids, "attention_mask": mask}
    observe(model, tokens(model), [given], seen, lambda seen: None)
    real = [ids[:1], *(row[None, :2] for row in ids[1:])]
    observe(model, tokens(model), [{"ids": r} for r in real], alone, lambda seen: None)
    assert (seen.rows, seen.tokens) == (4, 11)
    for name, histogram in alone.histograms().items():
        assert np.array_equal(seen.histograms()[name].counts, histogram.counts)
        assert np.array_equal(seen.channels[name], alone.channels[name])


@pytest.mark.parametrize("residual", [True, False])
def test_smoothing_changes_no_product_and_is_folded_where_it_can_be(graphs, residual: bool) -> None:
    model = block(graphs, residual=residual)
    before, plain = outputs_of(model, [feed()])[0]["y"], ops(model)
    weight = model.graph.initializers["w1"]
    seen = seen_of(model)
    smooth(model, tokens(model), seen.channels, {"x": 0.5, "j": 0.7})
    after = outputs_of(model, [feed()])[0]["y"]
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    muls = ["make_h", "make_o"] if residual else ["make_o"]  # the norm takes it up
    nodes = list(model.graph)
    where = [nodes[place + 1].name for place, node in enumerate(nodes) if node.op_type == "Mul"]
    assert where == muls
    assert len(ops(model)) == len(plain) + len(muls)
    scales = constant(model.graph.initializers["w1.smooth"]) / constant(weight)
    assert np.ptp(scales, axis=1).max() < 1e-5  # a row has one scale
    assert np.ptp(scales[:, 0]) > 0.1


def test_alphas_are_taken_where_outliers_are(graphs) -> None:
    model = block(graphs)
    gamma = model.graph.initializers["gamma"]
    gamma.const_value = ir.tensor(np.array([60, *[1] * 7], np.float32), name="gamma")
    seen = seen_of(model)
    rng = np.random.default_rng(0)
    vectors = {
        "x": rng.normal(size=(64, 8)).astype(np.float32) * seen.channels["x"] / 3,
        "j": rng.uniform(-3, 3, size=(64, 12)).astype(np.float32),
    }
    even = np.where(rng.normal(size=(12, 8)) > 0, 1, -1).astype(np.float32)
    model.graph.initializers["w2"].const_value = ir.tensor(even, name="w2")
    flat = {**seen.channels, "j": np.full(12, 3.0, np.float32)}
    alphas = searched_alphas(model, tokens(model), flat, vectors)
    assert list(alphas) == ["x"]
    scales = scales_of(seen.channels["x"], np.ones(8), 1.0)
    assert scales.argmax() == 0
    assert np.log(scales).mean() == pytest.approx(0, abs=1e-6)


def sites(number: int) -> list[Site]:
    return [Site(f"n{i}", "", "MatMul", f"x{i}", f"w{i}", 10, False, True) for i in range(number)]


def test_the_search_leaves_the_sensitive_sites_and_no_others() -> None:
    every = sites(12)
    errors = {site.node: 0.01 * (1 + index % 5) for index, site in enumerate(every)}
    flops = {site.node: 10 for site in every}
    bad = {"n3", "n9"}
    errors |= dict.fromkeys(bad, 0.5) | {"n5": 0.9}

    def holds(quantized) -> bool:
        return not bad & {site.node for site in quantized}

    found = search(every, order_of(every, errors, flops), flops, holds)
    assert found is not None
    assert {site.node for site in found.left} == bad  # n5 is given back: it did no harm
    rest = [f"n{index}" for index in range(12) if index not in (3, 9)]
    assert [site.node for site in found.quantized] == rest
    assert found.trials < 10


def test_the_order_is_error_for_the_operations_that_it_costs() -> None:
    one, two = sites(2)
    order = order_of([one, two], {"n0": 0.1, "n1": 0.11}, {"n0": 10, "n1": 100})
    assert order == [one, two]


def test_a_budget_that_no_site_keeps() -> None:
    every = sites(5)
    flops = {site.node: 1 for site in every}
    assert search(every, every, flops, lambda quantized: not quantized) is None
