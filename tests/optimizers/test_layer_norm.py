"""LayerNorm from primitives: it fires, it refuses, it is not fooled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfc.optimizers.raising.layer_norm import LayerNorm
from tfc.optimizers.raising.rms_norm import RMSNorm
from tfc.optimizers.reduced_axes import KeepReducedAxes
from tfc.optimizers.shapes import InferShapes

pytestmark = pytest.mark.ort

EPSILON = np.float32(1e-5)
CENTRE = """
  m = ReduceMean(x, axes)
  d = Sub(x, m)
"""
VARIANCE = """
  sq = Pow(d, two)
  var = ReduceMean(sq, axes)
"""
ROOT = """
  ve = Add(var, eps)
  std = Sqrt(ve)
"""
DIVISION = """
  n = Div(d, std)
"""
AFFINE = """
  sc = Mul(n, scale)
  y = Add(sc, bias)
"""
INPUTS = "float[batch,sequence,8] x, float[8] scale, float[8] bias"
CONSTANTS = "int64[1] axes, float two, float eps, float one, float half, float minus_half"


def norm(
    graphs: Any,
    *,
    centre: str = CENTRE,
    variance: str = VARIANCE,
    root: str = ROOT,
    division: str = DIVISION,
    affine: str = AFFINE,
    inputs: str = INPUTS,
    extra: str = "",
    output: str = "float[batch,sequence,8] y",
    **constants: Any,
) -> Any:
    body = f"g ({inputs}, {CONSTANTS}{extra}) => ({output}) {{ {centre} {variance} {root} "
    given = {
        "axes": np.array([-1]),
        "two": np.float32(2),
        "eps": EPSILON,
        "one": np.float32(1),
        "half": np.float32(0.5),
        "minus_half": np.float32(-0.5),
        **{name: (8,) for name in ("scale", "bias") if f" {name}" in inputs},
        **constants,
    }
    return graphs.model(body + division + affine + "}", **given)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"variance": "sq = Mul(d, d)\n var = ReduceMean(sq, axes)"},
        {"root": "ve = Add(eps, var)\n std = Sqrt(ve)"},
        {"root": "ve = Add(var, eps)\n std = Pow(ve, half)"},
        {"division": "r = Reciprocal(std)\n n = Mul(d, r)"},
        {"division": "r = Div(one, std)\n n = Mul(r, d)"},
        {"root": "ve = Add(var, eps)", "division": "r = Pow(ve, minus_half)\n n = Mul(d, r)"},
        {"affine": "sc = Mul(scale, n)\n y = Add(bias, sc)"},
        {"division": "w = Mul(scale, d)\n n = Div(w, std)", "affine": "y = Add(n, bias)"},
        {"axes": np.array([2])},
        {
            "variance": "m2 = ReduceMean(x, third)\n d2 = Sub(x, m2)\n sq = Mul(d2, d2)\n"
            " var = ReduceMean(sq, third)",
            "third": np.array([2]),
            "extra": ", int64[1] third",
        },
        {"eps": np.array([1e-5], np.float32)},
    ],
)
def test_it_fires(graphs, parts) -> None:
    fused, result = graphs.fuse(norm(graphs, **parts), LayerNorm())
    assert (result.changed, result.refusals) == (1, ())
    assert graphs.ops(fused) == ["LayerNormalization"]
    assert graphs.attributes(fused, "LayerNormalization", "axis") == [-1]
    assert graphs.attributes(fused, "LayerNormalization", "epsilon") == [pytest.approx(1e-5)]
    assert [v.name for v in fused.graph[0].inputs] == ["x", "scale", "bias"]


@pytest.mark.parametrize(
    ("axis", "size", "changed"),
    [(-1, "batch, sequence, one_row", 1), (2, "batch, sequence, one_row", 1),
     (1, "batch, eight, one_row", 0), (-1, "batch, one_row, sequence", 0)],
)  # fmt: skip
def test_a_mean_that_gets_its_axis_back_keeps_it(graphs, axis, size, changed) -> None:
    text = f"""g (float[batch,sequence,8] x, int64[1] axes, int64[1] one_row, int64[1] eight)
    => (float[a,b,c] y) {{
      batch = Shape<start=0, end=1>(x)
      sequence = Shape<start=1, end=2>(x)
      m = ReduceMean<keepdims=0>(x, axes)
      size = Concat<axis=0>({size})
      y = Reshape(m, size)
    }}"""
    constants = {"axes": np.array([axis]), "one_row": np.array([1]), "eight": np.array([8])}
    model = graphs.model(text, **constants)
    InferShapes().apply(model)
    assert KeepReducedAxes().apply(model).changed == changed
    means = [node for node in model.graph if node.op_type == "ReduceMean"]
    assert [node.attributes["keepdims"].value for node in means] == [changed]


def test_the_axis_may_be_an_attribute(graphs) -> None:
    text = """g (float[batch,sequence,8] x, float two, float eps)
    => (float[batch,sequence,8] y) {
      m = ReduceMean<axes=[-1]>(x)
      d = Sub(x, m)
      sq = Pow(d, two)
      var = ReduceMean<axes=[2], keepdims=1>(sq)
      ve = Add(var, eps)
      std = Sqrt(ve)
      y = Div(d, std)
    }"""
    model = graphs.model(text, opset=17, two=np.float32(2), eps=EPSILON)
    fused, _ = graphs.fuse(model, LayerNorm())
    assert graphs.ops(fused) == ["LayerNormalization"]


@pytest.mark.parametrize(
    ("affine", "inputs"),
    [
        ("y = Mul(n, scale)", ["x", "scale"]),
        ("y = Add(n, bias)", ["x", "ones_8", "bias"]),
        ("y = Relu(n)", ["x", "ones_8"]),
    ],
)
def test_scale_and_bias_are_optional(graphs, affine, inputs) -> None:
    fused, _ = graphs.fuse(norm(graphs, affine=affine), LayerNorm())
    assert graphs.ops(fused)[0] == "LayerNormalization"
    assert "Div" not in graphs.ops(fused)
    assert [v.name for v in fused.graph[0].inputs] == inputs


def test_without_an_addition_epsilon_is_zero(graphs) -> None:
    fused, _ = graphs.fuse(norm(graphs, root="std = Sqrt(var)"), LayerNorm())
    assert graphs.ops(fused) == ["LayerNormalization"]
    assert graphs.attributes(fused, "LayerNormalization", "epsilon") == [0.0]


def test_constants_with_leading_axes_are_flattened(graphs) -> None:
    inputs = "float[batch,sequence,8] x, float[1,1,8] scale, float[1,8] bias"
    model = norm(graphs, inputs=inputs, scale=(1, 1, 8), bias=(1, 8))
    fused, _ = graphs.fuse(model, LayerNorm())
    assert graphs.ops(fused) == ["LayerNormalization"]
    assert [list(v.shape) for v in fused.graph[0].inputs[1:]] == [[8], [8]]


@pytest.mark.parametrize("shape", ["8", "batch,8", "batch,4,sequence,8"])
def test_any_rank(graphs, shape) -> None:
    inputs, output = INPUTS.replace("batch,sequence,8", shape), f"float[{shape}] y"
    fused, _ = graphs.fuse(norm(graphs, inputs=inputs, output=output), LayerNorm())
    assert graphs.ops(fused) == ["LayerNormalization"]


def test_what_is_computed_twice_counts_as_one(graphs) -> None:
    twice = CENTRE + "m2 = ReduceMean(x, axes)\n d2 = Sub(x, m2)"
    model = norm(graphs, centre=twice, division="n = Div(d2, std)")
    fused, _ = graphs.fuse(model, LayerNorm())
    assert graphs.ops(fused) == ["LayerNormalization"]


def test_casts_that_change_nothing_are_looked_through(graphs) -> None:
    model = norm(
        graphs,
        centre="c = Cast<to=1>(x)\n m = ReduceMean(c, axes)\n d = Sub(c, m)",
        variance="dc = Cast<to=1>(d)\n sq = Pow(dc, two)\n var = ReduceMean(sq, axes)",
        affine="nc = Cast<to=1>(n)\n sc = Mul(scale, nc)\n y = Add(sc, bias)",
    )
    fused, _ = graphs.fuse(model, LayerNorm())
    assert graphs.ops(fused) == ["LayerNormalization"]
    assert fused.graph[0].inputs[0].name == "x"


def test_parallel_branches_get_a_norm_each(graphs) -> None:
    affine = AFFINE + "z = Mul(n, scale2)"
    model = norm(
        graphs,
        affine=affine,
        extra=", float[8] scale2",
        output="float[batch,sequence,8] y, float[batch,sequence,8] z",
        scale2=(8,),
    )
    fused, result = graphs.fuse(model, LayerNorm())
    assert (result.changed, result.refusals) == (1, ())
    assert graphs.ops(fused) == ["LayerNormalization", "LayerNormalization"]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (
            {"root": "u = Mul(var, bessel)\n ve = Add(u, eps)\n std = Sqrt(ve)"},
            "the mean of the squares is scaled (an unbiased variance)",
        ),
        (
            {"root": "n8 = Mul(var, b8)\n u = Div(n8, b7)\n ve = Add(u, eps)\n std = Sqrt(ve)"},
            "the mean of the squares is scaled (an unbiased variance)",
        ),
        (
            {"root": "s = Sqrt(var)\n std = Add(s, eps)"},
            "epsilon is added outside the root",
        ),
        (
            {"root": "u = Mul(bessel, var)\n s = Sqrt(u)\n std = Add(eps, s)"},
            "epsilon is added outside the root",
        ),
        (
            {"root": "ve = Add(var, given)\n std = Sqrt(ve)"},
            "epsilon is not a constant",
        ),
        ({"axes": np.array([1])}, "the mean is over axes [1], not the last one"),
        ({"axes": np.array([-2, -1])}, "the mean is over axes [-2, -1], not the last one"),
        (
            {"centre": "m = ReduceMean(x)\n d = Sub(x, m)"},
            "the axis of the mean is not a constant, or it is every axis",
        ),
        (
            {"centre": "m = ReduceMean<keepdims=0>(x, axes)\n d = Sub(x, m)"},
            "the mean drops its axis (keepdims = 0)",
        ),
        (
            {
                "centre": "m0 = ReduceMean<keepdims=0>(x, axes)\n m = Unsqueeze(m0, axes)\n"
                "d = Sub(x, m)"
            },
            "the mean drops its axis (keepdims = 0)",
        ),
        (
            {"variance": "sq = Mul(d, d)\n var = ReduceMean<keepdims=0>(sq, axes)"},
            "the mean drops its axis (keepdims = 0)",
        ),
        (
            {"centre": "m = ReduceMean(other, axes)\n d = Sub(x, m)"},
            "the mean is of another value than that from which it is subtracted",
        ),
        (
            {"division": "n = Div(other, std)"},
            "the value that is divided is not the one whose variance divides it",
        ),
        (
            {"division": "w = Mul(given, d)\n n = Div(w, std)"},
            "the value that is divided is not the one whose variance divides it",
        ),
        ({"division": "n = Div(d, std)\n z = Relu(d)"}, "'d' in its middle is read elsewhere"),
        ({"division": "n = Div(d, std)\n z = Relu(std)"}, "'std' in its middle is read elsewhere"),
        ({"affine": AFFINE + "z = Relu(n)"}, "'n' is read before it is scaled"),
        ({"affine": AFFINE + "z = Relu(sc)"}, "'sc' is read before the bias is added"),
    ],
)
def test_it_refuses(graphs, parts, reason) -> None:
    extra = ", float bessel, float b8, float b7, float given, float[batch,sequence,8] other"
    bessel = {"bessel": np.float32(8 / 7), "b8": np.float32(8), "b7": np.float32(7)}
    if any(isinstance(part, str) and "z =" in part for part in parts.values()):
        parts = {**parts, "output": "float[batch,sequence,8] y, float[batch,sequence,s] z"}
    model = norm(graphs, extra=extra, **bessel, **parts)
    assert graphs.refusal(model, LayerNorm()) == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("d", "'d' in its middle is a graph output"),
        ("std", "'std' in its middle is a graph output"),
        ("n", "'n' is read before it is scaled"),
        ("sc", "'sc' is read before the bias is added"),
    ],
)
def test_a_graph_output_in_the_middle(graphs, name, reason) -> None:
    model = norm(graphs, output=f"float[batch,sequence,8] y, float[batch,sequence,h] {name}")
    assert graphs.refusal(model, LayerNorm()) == reason


def test_it_refuses_to_guess_the_hidden_size(graphs) -> None:
    inputs = "float[batch,sequence,h] x"
    model = norm(graphs, inputs=inputs, affine="y = Relu(n)", output="float[batch,sequence,h] y")
    reason = graphs.refusal(model, LayerNorm())
    assert reason == "there is no scale, and the hidden size is not known"


@pytest.mark.parametrize("operand", ["one", "table"])
def test_what_is_not_one_number_per_channel_is_no_scale(graphs, operand) -> None:
    extra = ", float[5,8] table"
    model = norm(graphs, affine=f"y = Mul(n, {operand})", extra=extra, table=(5, 8))
    fused, _ = graphs.fuse(model, LayerNorm())
    assert graphs.ops(fused) == ["LayerNormalization", "Mul"]


@pytest.mark.parametrize(
    "body",
    [
        "t = Sqrt(x)\n y = Div(x, t)",
        "sq = Mul(x, x)\n v = ReduceMean(sq, axes)\n t = Sqrt(v)\n y = Div(x, t)",
        "m = ReduceMean(x, axes)\n d = Sub(x, m)\n sq = Mul(d, d)\n v = ReduceMean(sq, axes)\n"
        "t = Sqrt(v)\n y = Mul(d, t)",
        "m = ReduceMean(x, axes)\n d = Sub(x, m)\n a = Abs(d)\n v = ReduceMean(a, axes)\n"
        "t = Sqrt(v)\n y = Div(d, t)",
    ],
)
def test_another_root_is_no_site(graphs, body) -> None:
    text = f"g (float[batch,sequence,8] x, int64[1] axes) => (float[batch,sequence,8] y) {{{body}}}"
    assert graphs.is_no_site(graphs.model(text, axes=np.array([-1])), LayerNorm())


@pytest.mark.parametrize("seed", range(12))
def test_any_way_to_write_it(graphs, seed) -> None:
    rng = np.random.default_rng(seed)

    def pick(*ways: str) -> str:
        return str(ways[rng.integers(len(ways))])

    def swap(first: str, second: str) -> str:
        return pick(f"{first}, {second}", f"{second}, {first}")

    before = f"w = Mul({swap('d', 'scale')})\n n = Div(w, std)"
    root, division = [
        (ROOT, DIVISION),
        (ROOT, before),
        (ROOT, f"r = Reciprocal(std)\n n = Mul({swap('d', 'r')})"),
        (ROOT, f"r = Div(one, std)\n n = Mul({swap('d', 'r')})"),
        (f"ve = Add({swap('eps', 'var')})", f"r = Pow(ve, minus_half)\n n = Mul({swap('d', 'r')})"),
    ][rng.integers(5)]
    square = pick("Pow(d, two)", "Mul(d, d)")
    scaled, shifted = f"Mul({swap('n', 'scale')})", f"Add({swap('sc', 'bias')})"
    affine = pick(f"sc = {scaled}\n y = {shifted}", f"y = {scaled}", "y = Identity(n)")
    model = norm(
        graphs,
        variance=f"sq = {square}\n var = ReduceMean(sq, axes)",
        root=root,
        division=division,
        affine="y = Identity(n)" if division == before else affine,
        axes=np.array([pick("-1", "2")], np.int64),
        eps=np.float32(10.0 ** rng.uniform(-12, -3)),
    )
    fused, result = graphs.fuse(model, LayerNorm())
    assert (result.changed, result.refusals) == (1, ())
    assert [op for op in graphs.ops(fused) if op != "Identity"] == ["LayerNormalization"]
    assert graphs.is_no_site(model, RMSNorm())
