"""RMSNorm from primitives: it fires, it refuses, it is not fooled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfc.optimizers.raising.rms_norm import RMSNorm

pytestmark = pytest.mark.ort

SQUARE = "sq = Pow(x, two)\n"
MEAN = "ms = ReduceMean(sq, axes)\n"
ROOT = "e = Add(ms, eps)\n rms = Sqrt(e)\n"
DIVISION = "r = Reciprocal(rms)\n n = Mul(x, r)\n"
SCALED = "y = Mul(scale, n)\n"
INPUTS = "float[batch,sequence,8] x, float[8] scale"
CONSTANTS = "int64[1] axes, float two, float eps, float one, float half, float minus_half"


def norm(
    graphs: Any,
    *,
    square: str = SQUARE,
    mean: str = MEAN,
    root: str = ROOT,
    division: str = DIVISION,
    scaled: str = SCALED,
    inputs: str = INPUTS,
    extra: str = "",
    output: str = "float[batch,sequence,8] y",
    **constants: Any,
) -> Any:
    body = f"g ({inputs}, {CONSTANTS}{extra}) => ({output}) {{ {square}{mean}{root}{division}"
    given = {
        "axes": np.array([-1]),
        "two": np.float32(2),
        "eps": np.float32(1e-6),
        "one": np.float32(1),
        "half": np.float32(0.5),
        "minus_half": np.float32(-0.5),
        **({"scale": (8,)} if " scale" in inputs else {}),
        **constants,
    }
    return graphs.model(body + scaled + "}", opset=18, **given)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"square": "sq = Mul(x, x)\n"},
        {"root": "e = Add(eps, ms)\n rms = Sqrt(e)\n"},
        {"root": "e = Add(ms, eps)\n rms = Pow(e, half)\n"},
        {"division": "n = Div(x, rms)\n"},
        {"division": "r = Div(one, rms)\n n = Mul(r, x)\n"},
        {"root": "e = Add(ms, eps)\n", "division": "r = Pow(e, minus_half)\n n = Mul(x, r)\n"},
        {"division": "c = Cast<to=1>(x)\n r = Reciprocal(rms)\n n = Mul(c, r)\n"},
        {"scaled": "c = Cast<to=1>(n)\n y = Mul(c, scale)\n"},
        {"division": "w = Mul(x, scale)\n n = Div(w, rms)\n", "scaled": "y = Identity(n)\n"},
        {"axes": np.array([2])},
    ],
)
def test_it_fires(graphs, parts) -> None:
    fused, result = graphs.fuse(norm(graphs, **parts), RMSNorm())
    assert (result.changed, result.refusals) == (1, ())
    assert [op for op in graphs.ops(fused) if op != "Identity"] == ["RMSNormalization"]
    assert graphs.attributes(fused, "RMSNormalization", "axis") == [-1]
    assert graphs.attributes(fused, "RMSNormalization", "epsilon") == [pytest.approx(1e-6)]
    assert [v.name for v in fused.graph[0].inputs] == ["x", "scale"]
    assert fused.opset_imports[""] == 23


def test_a_scale_with_leading_axes_is_flattened(graphs) -> None:
    inputs = INPUTS.replace("float[8] scale", "float[1,1,8] scale")
    fused, _ = graphs.fuse(norm(graphs, inputs=inputs, scale=(1, 1, 8)), RMSNorm())
    assert graphs.ops(fused) == ["RMSNormalization"]
    assert list(fused.graph[0].inputs[1].shape) == [8]


def test_without_a_scale_it_is_one(graphs) -> None:
    fused, _ = graphs.fuse(norm(graphs, scaled="y = Relu(n)"), RMSNorm())
    assert graphs.ops(fused) == ["RMSNormalization", "Relu"]
    assert fused.graph[0].inputs[1].name == "ones_8"


def test_parallel_branches_get_a_norm_each(graphs) -> None:
    output = "float[batch,sequence,8] y, float[batch,sequence,8] z"
    model = norm(
        graphs,
        scaled=SCALED + "z = Mul(n, scale2)\n",
        extra=", float[8] scale2",
        output=output,
        scale2=(8,),
    )
    fused, _ = graphs.fuse(model, RMSNorm())
    assert graphs.ops(fused) == ["RMSNormalization", "RMSNormalization"]


def test_a_bias_stays(graphs) -> None:
    scaled = "sc = Mul(scale, n)\n y = Add(sc, bias)\n"
    fused, _ = graphs.fuse(
        norm(graphs, scaled=scaled, extra=", float[8] bias", bias=(8,)), RMSNorm()
    )
    assert graphs.ops(fused) == ["RMSNormalization", "Add"]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (
            {"root": "u = Mul(ms, bessel)\n e = Add(u, eps)\n rms = Sqrt(e)\n"},
            "the mean of the squares is scaled (an unbiased variance)",
        ),
        ({"root": "s = Sqrt(ms)\n rms = Add(s, eps)\n"}, "epsilon is added outside the root"),
        ({"root": "e = Add(ms, given)\n rms = Sqrt(e)\n"}, "epsilon is not a constant"),
        ({"axes": np.array([1])}, "the mean is over axes [1], not the last one"),
        (
            {"mean": "ms = ReduceMean<keepdims=0>(sq, axes)\n"},
            "the mean drops its axis (keepdims = 0)",
        ),
        (
            {"division": "r = Reciprocal(rms)\n n = Mul(other, r)\n"},
            "the value that is divided is not the one whose squares divide it",
        ),
        ({"division": DIVISION + "z = Relu(rms)\n"}, "'rms' in its middle is read elsewhere"),
        ({"scaled": SCALED + "z = Relu(n)\n"}, "'n' is read before it is scaled"),
    ],
)
def test_it_refuses(graphs, parts, reason) -> None:
    extra = ", float bessel, float given, float[batch,sequence,8] other"
    if any(isinstance(part, str) and "z =" in part for part in parts.values()):
        parts = {**parts, "output": "float[batch,sequence,8] y, float[batch,sequence,s] z"}
    model = norm(graphs, extra=extra, bessel=np.float32(8 / 7), **parts)
    assert graphs.refusal(model, RMSNorm()) == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ms", "'ms' in its middle is a graph output"),
        ("r", "'r' in its middle is a graph output"),
        ("n", "'n' is read before it is scaled"),
    ],
)
def test_a_graph_output_in_the_middle(graphs, name, reason) -> None:
    model = norm(graphs, output=f"float[batch,sequence,8] y, float[batch,sequence,h] {name}")
    assert graphs.refusal(model, RMSNorm()) == reason


def test_it_refuses_to_guess_the_hidden_size(graphs) -> None:
    output = "float[batch,sequence,h] y"
    model = norm(graphs, inputs="float[batch,sequence,h] x", scaled="y = Relu(n)", output=output)
    reason = graphs.refusal(model, RMSNorm())
    assert reason == "there is no scale, and the hidden size is not known"


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean(x, axes)\n d = Sub(x, m)\n sq = Mul(d, d)\n v = ReduceMean(sq, axes)\n"
        "t = Sqrt(v)\n y = Div(d, t)",
        "sq = Mul(x, x)\n v = ReduceSum(sq, axes)\n t = Sqrt(v)\n y = Div(x, t)",
        "sq = Mul(x, x)\n v = ReduceMean(sq, axes)\n t = Sqrt(v)\n y = Mul(x, t)",
        "v = ReduceMean(x, axes)\n y = Div(x, v)",
    ],
)
def test_a_layer_norm_and_other_roots_are_no_sites(graphs, body) -> None:
    text = f"g (float[batch,sequence,8] x, int64[1] axes) => (float[batch,sequence,8] y) {{{body}}}"
    assert graphs.is_no_site(graphs.model(text, axes=np.array([-1])), RMSNorm())


@pytest.mark.parametrize("seed", range(12))
def test_any_way_to_write_it(graphs, seed) -> None:
    rng = np.random.default_rng(seed)

    def pick(*ways: str) -> str:
        return str(ways[rng.integers(len(ways))])

    def swap(first: str, second: str) -> str:
        return pick(f"{first}, {second}", f"{second}, {first}")

    added = f"e = Add({swap('ms', 'eps')})\n"
    root, division = [
        (added + "rms = Sqrt(e)\n", "n = Div(x, rms)\n"),
        (added + "rms = Sqrt(e)\n", f"r = Reciprocal(rms)\n n = Mul({swap('x', 'r')})\n"),
        (added + "rms = Sqrt(e)\n", f"r = Div(one, rms)\n n = Mul({swap('x', 'r')})\n"),
        (added, f"r = Pow(e, minus_half)\n n = Mul({swap('x', 'r')})\n"),
    ][rng.integers(4)]
    model = norm(
        graphs,
        square=pick(SQUARE, "sq = Mul(x, x)\n"),
        root=root,
        division=division,
        scaled=pick(f"y = Mul({swap('n', 'scale')})\n", "y = Identity(n)\n"),
        axes=np.array([pick("-1", "2")], np.int64),
        eps=np.float32(10.0 ** rng.uniform(-8, -3)),
    )
    fused, result = graphs.fuse(model, RMSNorm())
    assert (result.changed, result.refusals) == (1, ())
    assert [op for op in graphs.ops(fused) if op != "Identity"] == ["RMSNormalization"]
