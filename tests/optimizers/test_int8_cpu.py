"""int8 products for ONNX Runtime's CPU provider: the ops, the numbers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from tfc.errors import BadInput, UsageError
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.precision.int8.cpu_dynamic import cpu_dynamic
from tfc.optimizers.precision.int8.cpu_static import cpu_static, uint8_scale
from tfc.optimizers.precision.int8.exact_products import use_exact_products
from tfc.optimizers.precision.int8.ranges import Range
from tfc.optimizers.precision.int8.sites import sites_of
from tfc.optimizers.precision.int8.weights import quantized_weight

pytestmark = pytest.mark.ort

PRODUCT = "com.microsoft.MatMulIntegerToFloat"
ATTENTION = """g (float[batch,sequence,8] x, float[8,6] wq, float[8,6] wk, float[8,6] wv,
  float[6] bq, float[6] bv, float[6,8] wo, float[8] bo) => (float[batch,sequence,8] y) {
  p = MatMul(x, wq)
  q = Add(p, bq)
  k = MatMul(x, wk)
  r = MatMul(x, wv)
  v = Add(bv, r)
  a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)
  o = MatMul(a, wo)
  y = Sum(o, bo, x)
}"""
ATTENTION_WEIGHTS = {
    "wq": (8, 6), "wk": (8, 6), "wv": (8, 6), "bq": (6,), "bv": (6,), "wo": (6, 8), "bo": (8,),
}  # fmt: skip
ONE = """g (float[batch,8] x, float[{w}] w, float[{c}] c) => (float[batch,3] y) {{
  {body}
}}"""
# What a product may add, and its factor: body, shape of w, shape of c.
LAYERS = {
    "no bias": ("y = MatMul(x, w)", (8, 3), (3,)),
    "bias": ("p = MatMul(x, w)\n y = Add(p, c)", (8, 3), (3,)),
    "bias first": ("p = MatMul(x, w)\n y = Add(c, p)", (8, 3), (3,)),
    "sum of two": ("p = MatMul(x, w)\n y = Sum(p, c)", (8, 3), (3,)),
    "gemm": ("y = Gemm(x, w, c)", (8, 3), (3,)),
    "gemm without bias": ("y = Gemm(x, w)", (8, 3), (3,)),
    "transposed": ("y = Gemm<transB=1>(x, w, c)", (3, 8), (3,)),
    "factors": ("y = Gemm<alpha=-0.5, beta=2.0>(x, w, c)", (8, 3), (1, 3)),
    "scalar": ("y = Gemm(x, w, c)", (8, 3), ()),
}


def layer(graphs, body: str, w: tuple[int, ...], c: tuple[int, ...]) -> ir.Model:
    text = ONE.format(body=body, w=",".join(map(str, w)), c=",".join(map(str, c)))
    text = text.replace("float[] c", "float c")
    model = graphs.model(text, w=w, c=c)
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    return model


def attention(graphs) -> ir.Model:
    model = graphs.model(ATTENTION, **ATTENTION_WEIGHTS)
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model


def sites(model: ir.Model) -> list[str]:
    return [site.node for site in sites_of(model)]


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    return outputs_of(model, [feed])[0]["y"]


def bound(x: np.ndarray, w: np.ndarray, ends: Range) -> np.ndarray:
    """How far an integer product may be off: each factor by half a step, and fp32 rounding."""
    step = float(uint8_scale(ends)[0])
    columns = quantized_weight(w, axis=1).scales.astype(np.float64)
    inner = x.shape[-1]
    off = np.abs(x).sum(-1, keepdims=True) * columns / 2 + np.abs(w).sum(0) * step / 2
    return off + inner * step * columns / 4 + 1e-5


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dynamic", [True, False])
def test_every_form_of_a_linear_layer(graphs, kind: str, dynamic: bool) -> None:
    model = layer(graphs, *LAYERS[kind])
    feed = graphs.feed(model)
    x, w = feed["x"], model.graph.initializers["w"].const_value.numpy()
    ends = Range(float(x.min()), float(x.max()))
    expected = run(model, feed)
    if dynamic:
        cpu_dynamic(model, sites(model))
        assert graphs.ops(model) == ["DynamicQuantizeLinear", PRODUCT]
    else:
        cpu_static(model, sites(model), {"x": ends})
        assert graphs.ops(model) == ["QuantizeLinear", PRODUCT]
    assert "w" not in model.graph.initializers
    off = np.abs(run(model, feed) - expected)
    matrix = w.T if kind == "transposed" else w
    assert (off <= bound(x, matrix, ends)).all()
    assert off.max() > 0


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_activation_is_quantised_once_for_all_that_read_it(graphs, dynamic: bool) -> None:
    model = attention(graphs)
    feed = graphs.feed(model)
    expected = run(model, feed)
    if dynamic:
        cpu_dynamic(model, sites(model))
    else:
        cpu_static(model, sites(model), {"x": Range(-4, 4), "a": Range(-12, 12)})
    quantize = "DynamicQuantizeLinear" if dynamic else "QuantizeLinear"
    assert graphs.ops(model) == [
        quantize, PRODUCT, PRODUCT, PRODUCT, "Attention", quantize, PRODUCT, "Sum",
    ]  # fmt: skip
    products = [n for n in model.graph if n.op_type == "MatMulIntegerToFloat"]
    assert [n.name for n in products] == ["make_p", "make_k", "make_r", "make_o"]
    assert len({n.inputs[0] for n in products[:3]}) == 1
    assert [n.inputs[6].name if len(n.inputs) > 6 else "" for n in products] == [
        "bq", "", "bv", "bo",
    ]  # fmt: skip
    off = np.abs(run(model, feed) - expected).max() / np.abs(expected).max()
    assert 1e-4 < off < 0.05


def test_what_is_no_site_stays_as_it_is(graphs) -> None:
    model = attention(graphs)
    cpu_static(model, ["make_o"], {"a": Range(-1, 1)})
    assert graphs.ops(model) == [
        "MatMul", "Add", "MatMul", "MatMul", "Add", "Attention", "QuantizeLinear", PRODUCT, "Sum",
    ]  # fmt: skip
    assert set(model.graph.initializers) >= {"wq", "wk", "wv", "bq", "bv"}
    same = attention(graphs)
    before = graphs.ops(same)
    cpu_dynamic(same, [])
    assert graphs.ops(same) == before


@pytest.mark.parametrize(
    "body",
    [
        "p = MatMul(x, w)\n z = Relu(p)\n s = Add(p, c)\n y = Add(s, z)",  # a second reader
        "p = MatMul(x, w)\n z = Identity(x)\n d = MatMul(z, w)\n y = Add(p, d)",  # no constant
    ],
)
def test_what_is_no_bias_is_not_taken_for_one(graphs, body: str) -> None:
    model = layer(graphs, body, (8, 3), (3,))
    feed = graphs.feed(model)
    expected, before = run(model, feed), graphs.ops(model)
    cpu_dynamic(model, ["n0"])
    assert graphs.ops(model) == ["DynamicQuantizeLinear", PRODUCT, *before[1:]]
    assert len(model.graph[1].inputs) == 5
    assert np.abs(run(model, feed) - expected).max() < 0.1


def test_a_product_that_the_graph_gives_keeps_its_name(graphs) -> None:
    text = """g (float[batch,8] x, float[8,3] w, float[3] c) => (float[batch,3] p, float[batch,3] y)
      { p = MatMul(x, w)  y = Add(p, c) }"""
    model = graphs.model(text, w=(8, 3), c=(3,))
    model.graph[0].name = "product"
    cpu_dynamic(model, ["product"])
    assert graphs.ops(model) == ["DynamicQuantizeLinear", PRODUCT, "Add"]
    assert [v.name for v in model.graph.outputs] == ["p", "y"]


def test_one_matrix_of_two_layers_is_kept_once(graphs) -> None:
    text = """g (float[batch,8] x, float[8,8] w, float[8] a, float[8] b) => (float[batch,8] y) {
      p = MatMul(x, w)  q = Add(p, a)  r = MatMul(q, w)  y = Add(r, b) }"""
    model = graphs.model(text, w=(8, 8), a=(8,), b=(8,))
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    cpu_dynamic(model, sites(model))
    assert sorted(model.graph.initializers) == ["a", "b", "w.int8", "w.scale"]


def test_what_is_outside_the_range_is_clipped(graphs) -> None:
    model = layer(graphs, *LAYERS["bias"])
    feed, ends = graphs.feed(model), Range(-0.25, 0.5)
    clipped = {"x": np.clip(feed["x"], ends.low, ends.high)}
    expected = run(model, clipped)
    w = model.graph.initializers["w"].const_value.numpy()
    cpu_static(model, sites(model), {"x": ends})
    assert (np.abs(run(model, feed) - expected) <= bound(clipped["x"], w, ends)).all()


@pytest.mark.parametrize(
    ("ends", "scale", "zero"),
    [
        (Range(-1.0, 1.55), 0.01, 100),
        (Range(0.5, 2.55), 0.01, 0),  # widened to hold 0
        (Range(-2.55, -1.0), 0.01, 255),
        (Range(0.0, 0.0), 1.0, 0),
    ],
)
def test_zero_is_exact(ends: Range, scale: float, zero: int) -> None:
    got, at = uint8_scale(ends)
    assert (float(got), int(at)) == (pytest.approx(scale), zero)


def _no_range(model: ir.Model) -> None:
    cpu_static(model, ["n0"], {"y": Range(0, 1)})


def _no_interval(model: ir.Model) -> None:
    cpu_static(model, ["n0"], {"x": Range(0.0, float("inf"))})


def _no_site(model: ir.Model) -> None:
    cpu_dynamic(model, ["n0", "n1"])


def _dynamic(model: ir.Model) -> None:
    cpu_dynamic(model, ["n0"])


@pytest.mark.parametrize(
    ("kind", "convert", "text"),
    [
        ("bias", _no_range, "n0: there is no range of 'x'"),
        ("bias", _no_interval, "n0: the range of 'x' is no interval: 0 to inf"),
        ("bias", _no_site, "there is no product of a constant matrix called 'n1'"),
        ("a matrix", _dynamic, "n0: this Gemm adds a matrix"),
        ("not constant", _dynamic, "n0: this Gemm adds a matrix"),
    ],
)
def test_refusals(graphs, kind: str, convert: Callable[[ir.Model], None], text: str) -> None:
    added = {
        "a matrix": ("y = Gemm(x, w, c)", (8, 3), (2, 3)),
        "not constant": ("y = Gemm(x, w, z)\n z = Add(c, c)", (8, 3), (3,)),
    }
    if kind == "not constant":
        model = layer(graphs, "z = Add(c, c)\n y = Gemm(x, w, z)", (8, 3), (3,))
        model.graph[0].name, model.graph[1].name = "n1", "n0"
    else:
        model = layer(graphs, *(added | LAYERS)[kind])
    before = graphs.ops(model)
    with pytest.raises(UsageError) as refusal:
        convert(model)
    assert text in str(refusal.value)
    assert graphs.ops(model) == before


@pytest.mark.parametrize("kind", ["no bias", "bias"])
def test_the_judge_computes_the_same_without_vnni(graphs, monkeypatch, kind: str) -> None:
    model = layer(graphs, *LAYERS[kind])
    cpu_dynamic(model, sites(model))
    feed = graphs.feed(model)
    expected = run(model, feed)
    monkeypatch.setattr("tfc.optimizers.executor.integer_products_saturate", lambda: True)
    assert np.array_equal(run(model, feed), expected)
    exact = model.clone()
    use_exact_products(exact)
    assert exact.graph[1].inputs[1].const_value.dtype == ir.DataType.UINT8
    assert model.graph[1].inputs[1].const_value.dtype == ir.DataType.INT8


def test_a_weight_that_is_not_finite_is_refused(graphs) -> None:
    model = layer(graphs, *LAYERS["bias"])
    broken = model.graph.initializers["w"].const_value.numpy().copy()
    broken[0, 0] = np.nan
    model.graph.initializers["w"].const_value = ir.tensor(broken, name="w")
    with pytest.raises(BadInput, match="n0: the weight 'w' holds numbers that are not finite"):
        cpu_dynamic(model, ["n0"])
    assert graphs.ops(model) == ["MatMul", "Add"]
