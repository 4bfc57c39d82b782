"""GELU from primitives: it fires, it refuses, it is not fooled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tfc.optimizers.executor import outputs_of, relative_difference
from tfc.optimizers.passes import FusionPass
from tfc.optimizers.raising.gelu import Gelu

pytestmark = pytest.mark.ort

CONSTANTS = {
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "half": 0.5,
    "root": math.sqrt(2),
    "inv": 1 / math.sqrt(2),
    "beta": math.sqrt(2 / math.pi),
    "kappa": 0.044715,
    "beta_kappa": 0.044715 * math.sqrt(2 / math.pi),
    "slope": 1.702,
}
ERF = "a = Div(x, root)\n t = Erf(a)\n"
TANH = "c = Pow(x, three)\n k = Mul(c, kappa)\n s = Add(x, k)\n a = Mul(s, beta)\n t = Tanh(a)\n"
RESULT = "u = Add(t, one)\n p = Mul(x, u)\n y = Mul(p, half)\n"


def function(graphs: Any, body: str, *more: str, **constants: float) -> Any:
    names = ", ".join(f"float {name}" for name in CONSTANTS)
    outputs = ", ".join(f"float[batch,sequence,8] {name}" for name in ("y", *more))
    text = f"g (float[batch,sequence,8] x, {names}) => ({outputs}) {{ {body} }}"
    given = {name: np.float32(c) for name, c in {**CONSTANTS, **constants}.items()}
    return graphs.model(text, opset=18, **given)


ERF_WAYS = {
    "div": "a = Div(x, root)\n t = Erf(a)\n",
    "mul": "a = Mul(x, inv)\n t = Erf(a)\n",
    "mul, commuted": "a = Mul(inv, x)\n t = Erf(a)\n",
}
TANH_WAYS = {
    "pow": TANH,
    "mul chain": "q = Mul(x, x)\n c = Mul(q, x)\n k = Mul(kappa, c)\n s = Add(k, x)\n"
    "a = Mul(beta, s)\n t = Tanh(a)\n",
    "mul chain, commuted": "q = Mul(x, x)\n c = Mul(x, q)\n k = Mul(c, kappa)\n s = Add(x, k)\n"
    "a = Mul(s, beta)\n t = Tanh(a)\n",
    "fast": "b = Mul(x, beta)\n k = Mul(x, kappa)\n q = Mul(k, x)\n s = Add(q, one)\n"
    "a = Mul(b, s)\n t = Tanh(a)\n",
    "multiplied out": "b = Mul(x, beta)\n c = Pow(x, three)\n k = Mul(c, beta_kappa)\n"
    "a = Add(b, k)\n t = Tanh(a)\n",
}
RESULT_WAYS = {
    "half last": RESULT,
    "half last, commuted": "u = Add(one, t)\n p = Mul(u, x)\n y = Mul(half, p)\n",
    "half on x": "h = Mul(half, x)\n u = Add(t, one)\n y = Mul(h, u)\n",
    "half of the sum": "u = Add(t, one)\n h = Mul(u, half)\n y = Mul(x, h)\n",
    "divided by two": "u = Add(t, one)\n p = Mul(x, u)\n y = Div(p, two)\n",
    "multiplied out": "h = Mul(x, half)\n p = Mul(h, t)\n y = Add(p, h)\n",
    "shifted by half": "u = Mul(t, half)\n p = Add(u, half)\n y = Mul(p, x)\n",
}


@pytest.mark.parametrize("result", RESULT_WAYS)
@pytest.mark.parametrize("argument", ERF_WAYS)
def test_the_erf_form_fires(graphs, argument, result) -> None:
    model = function(graphs, ERF_WAYS[argument] + RESULT_WAYS[result])
    fused, done = graphs.fuse(model, Gelu())
    assert (done.changed, done.refusals) == (1, ())
    assert graphs.ops(fused) == ["Gelu"]
    assert graphs.attributes(fused, "Gelu", "approximate") == ["none"]
    assert fused.graph[0].inputs[0].name == "x"
    assert fused.opset_imports[""] == 20


@pytest.mark.parametrize("result", RESULT_WAYS)
@pytest.mark.parametrize("argument", TANH_WAYS)
def test_the_tanh_form_fires(graphs, argument, result) -> None:
    model = function(graphs, TANH_WAYS[argument] + RESULT_WAYS[result])
    fused, _ = graphs.fuse(model, Gelu())
    assert graphs.ops(fused) == ["Gelu"]
    assert graphs.attributes(fused, "Gelu", "approximate") == ["tanh"]


def test_what_stands_around_it_stays(graphs) -> None:
    body = (ERF + RESULT).replace("x", "w").replace("y =", "g =")
    body = f"w = Mul(x, slope)\n {body} z = Mul(g, half)\n y = Add(z, w)\n"
    fused, _ = graphs.fuse(function(graphs, body), Gelu())
    assert graphs.ops(fused) == ["Mul", "Gelu", "Mul", "Add"]


def test_casts_that_change_nothing_are_looked_through(graphs) -> None:
    body = ERF.replace("Div(x", "Div(xc") + RESULT.replace("Add(t", "Add(tc")
    body = "xc = Cast<to=1>(x)\n" + body.replace("u =", "tc = Cast<to=1>(t)\n u =")
    fused, _ = graphs.fuse(function(graphs, body), Gelu())
    assert graphs.ops(fused) == ["Gelu"]


@pytest.mark.parametrize("argument", [ERF, TANH])
def test_constants_rounded_to_fp16_are_meant(graphs, argument) -> None:
    rounded = {name: float(np.float16(c)) for name, c in CONSTANTS.items()}
    model = function(graphs, argument + RESULT, **rounded)
    feeds = [graphs.feed(model)]
    before = outputs_of(model, feeds)
    assert FusionPass(Gelu()).apply(model).changed == 1
    assert graphs.ops(model) == ["Gelu"]
    assert relative_difference(before, outputs_of(model, feeds)) < 0.3 * 2e-4


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        (ERF_WAYS["mul"] + RESULT, {"inv": 0.7}, "erf is taken of 0.7 x, not of 0.707107 x"),
        (ERF + RESULT, {"root": 1.5}, "erf is taken of 0.666667 x, not of 0.707107 x"),
        ("t = Erf(x)\n" + RESULT, {}, "erf is taken of 1 x, not of 0.707107 x"),
        (
            ERF + RESULT,
            {"half": 0.4},
            "the result is 0.4 x + 0.4 x erf, not 0.5 x (1 + erf)",
        ),
        (
            ERF + "u = Add(t, one)\n y = Mul(x, u)\n",
            {},
            "the result is 1 x + 1 x erf, not 0.5 x (1 + erf)",
        ),
        (
            ERF + RESULT,
            {"one": 1.1},
            "the result is 0.55 x + 0.5 x erf, not 0.5 x (1 + erf)",
        ),
        (TANH + RESULT, {"beta": 0.8}, "tanh is taken of 0.8 x, not of 0.797885 x"),
        (TANH + RESULT, {"kappa": 0.045}, "the factor of the cube is 0.045, not 0.044715"),
    ],
)
def test_it_refuses_another_constant(graphs, body, constants, reason) -> None:
    assert graphs.refusal(function(graphs, body, **constants), Gelu()) == reason


@pytest.mark.parametrize("name", ["a", "t", "u", "p"])
@pytest.mark.parametrize("argument", [ERF, TANH])
def test_it_refuses_when_its_middle_is_read(graphs, argument, name) -> None:
    model = function(graphs, f"{argument}{RESULT} z = Relu({name})\n", "z")
    assert graphs.refusal(model, Gelu()) == f"'{name}' in its middle is read elsewhere"
    model = function(graphs, argument + RESULT, name)
    assert graphs.refusal(model, Gelu()) == f"'{name}' in its middle is a graph output"


@pytest.mark.parametrize(
    "body",
    [
        "y = Tanh(x)\n",
        ERF + "y = Add(t, one)\n",
        ERF + "y = Mul(t, x)\n",
        "a = Mul(x, slope)\n t = Sigmoid(a)\n y = Mul(x, t)\n",
        "a = Softplus(x)\n t = Tanh(a)\n u = Add(t, one)\n y = Mul(x, u)\n",
        "a = Mul(x, beta)\n t = Tanh(a)\n" + RESULT,
        ERF + "w = Relu(x)\n u = Add(t, one)\n p = Mul(w, u)\n y = Mul(p, half)\n",
    ],
)
def test_other_functions_are_no_sites(graphs, body) -> None:
    assert graphs.is_no_site(function(graphs, body), Gelu())


@pytest.mark.parametrize("seed", range(16))
def test_any_way_to_write_it(graphs, seed) -> None:
    rng = np.random.default_rng(seed)

    def shuffled(text: str) -> str:
        """Every addition and multiplication with its operands in either order."""
        lines = []
        for line in text.splitlines():
            head, _, operands = line.strip().partition("(")
            if ("Add" in head or "Mul" in head) and rng.integers(2):
                operands = ", ".join(reversed(operands.rstrip(")").split(", "))) + ")"
            lines.append(f"{head}({operands}\n" if operands else line)
        return "".join(lines)

    arguments = [*ERF_WAYS.values(), *TANH_WAYS.values()]
    results = list(RESULT_WAYS.values())
    body = arguments[rng.integers(len(arguments))] + results[rng.integers(len(results))]
    fused, done = graphs.fuse(function(graphs, shuffled(body)), Gelu())
    assert (done.changed, done.refusals) == (1, ())
    assert graphs.ops(fused) == ["Gelu"]
