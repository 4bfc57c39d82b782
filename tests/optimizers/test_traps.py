"""Graphs that look like something else than they are, through the whole of `tfc optimize`.

Each is a block whose meaning differs in one place from the usual one. It may be fused or not; its
numbers stay, whatever the padding, and what is fused says what it means.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from text_blocks import model

from tfc.steps.optimize_file import optimize_file

pytestmark = pytest.mark.ort

BLOCK = """
trap (float[batch,sequence,16] x, int64[batch,sequence] attention_maskINPUT)
=> (float[batch,sequence,16] y OUTPUT) {
  qm = MatMul(x, wq)
  q2 = Reshape(qm, split)
  q = Transpose<perm=[0,2,1,3]>(q2)
  km = MatMul(x, wk)
  k2 = Reshape(km, split)
  kt = Transpose<perm=[0,2,3,1]>(k2)
  vm = MatMul(x, wv)
  v2 = Reshape(vm, split)
  v = Transpose<perm=[0,2,1,3]>(v2)
  shape = Shape(x)
  count = Gather(shape, one)
  places = Range(zero, count, one)
  row = Unsqueeze(places, last)
  column = Unsqueeze(places, first)
  keys = Unsqueeze(attention_mask, keys_axes)
  mf = Cast<to=1>(keys)
  hidden = Sub(unit, mf)
  lengths = ReduceSum<keepdims=1>(attention_mask, last)
  lengths4 = Unsqueeze(lengths, keys_axes)
  s0 = MatMul(q, kt)
  s1 = Mul(s0, SCALE)
  MASK
  p = Softmax<axis=AXIS>(s2)
  PROBABILITIES
  y1 = MatMul(p1, v)
  y2 = Transpose<perm=[0,2,1,3]>(y1)
  y3 = Reshape(y2, merge)
  y4 = MatMul(y3, wo)
  r = Add(x, y4)
  NORM
}
float[16,16] wq = random
float[16,16] wk = random
float[16,16] wv = random
float[16,16] wo = random
float[16] ln_w = random
float[16] ln_b = random
float[] root = 8 ** -0.5
float[] half = 0.5
float[] quarter = 0.25
float[] eighth = 0.125
float[] unit = 1.0
float[] none = 0.0
float[] low = -1e9
float[] ten = -10.0
float[] tiny = 1e-5
float[] two_f = 2.0
float[] more = 16 / 15
int64[] zero = 0
int64[] one = 1
int64[] two = 2
int64[1] first = [0]
int64[1] last = [1]
int64[1] minus = [-1]
int64[2] keys_axes = [1, 2]
int64[4] split = [0, 0, 2, 8]
int64[3] merge = [0, 0, 16]
"""
PADDING = "bias = Mul(hidden, low)\n  s2 = Add(s1, bias)"
FILL = "  b = Not(seen)\n  s2 = Where(b, low, s1)"
NORM = "y = LayerNormalization<axis=-1, epsilon=1e-5>(r, ln_w, ln_b)"
CENTRED = """mean = ReduceMean<keepdims=1>(r, minus)
  d = Sub(r, mean)
  square = Pow(d, two_f)
  variance = ReduceMean<keepdims=1>(square, minus)
"""
DIVIDED = "  n = Div(d, root_of)\n  nw = Mul(n, ln_w)\n  y = Add(nw, ln_b)"


@dataclass(frozen=True)
class Trap:
    """What differs, and what is to be found: attention, and add+LayerNorm, of one expected."""

    mask: str = PADDING
    scale: str = "root"
    axis: int = 3
    probabilities: str = "p1 = Identity(p)"
    norm: str = NORM
    output: str = ""
    more: str = ""
    attention: tuple[int, int] = (1, 1)
    norms: tuple[int, int] = (1, 1)

    def text(self) -> str:
        """The graph."""
        return (
            BLOCK.replace("MASK", self.mask)
            .replace("SCALE", self.scale)
            .replace("AXIS", str(self.axis))
            .replace("PROBABILITIES", self.probabilities)
            .replace("NORM", self.norm)
            .replace("OUTPUT", self.output)
            .replace("INPUT", self.more)
        )


TRAPS = {
    "lengths for a mask": Trap(f"seen = Less(places, lengths4)\n{FILL}"),
    "scores divided by two": Trap(scale="half"),
    "scores times a quarter": Trap(scale="quarter"),
    "scores divided by the head size": Trap(scale="eighth"),
    "a causal mask": Trap(f"seen = GreaterOrEqual(row, column)\n{FILL}"),
    "a causal mask, one off": Trap(
        f"later = Add(row, one)\n  seen = GreaterOrEqual(later, column)\n{FILL}"),
    "a sliding window": Trap(
        f"gap = Sub(row, column)\n  away = Abs(gap)\n  seen = LessOrEqual(away, two)\n{FILL}"),
    "a mask of -10": Trap("bias = Mul(hidden, ten)\n  s2 = Add(s1, bias)"),
    "no mask": Trap("s2 = Identity(s1)"),
    "the mask after the softmax": Trap(
        "s2 = Identity(s1)", probabilities="p1 = Mul(p, mf)", attention=(0, 1)),
    "the probabilities are an output": Trap(
        output=", float[batch,2,sequence,sequence] p", attention=(0, 1)),
    "a softmax over the queries": Trap(axis=2, attention=(0, 0)),
    "dropout that does nothing": Trap(probabilities="p1 = Dropout(p, quarter)"),
    "a mask of all scores as input": Trap(
        "s2 = Add(s1, given)", more=", float[batch,1,sequence,sequence] given"),
    "a bias of heads and keys as input": Trap(
        "s2 = Add(s1, given)", more=", float[2,1,sequence] given"),
    "a bias of keys as input": Trap("s2 = Add(s1, given)", more=", float[sequence] given"),
    "a bias of queries as input": Trap(
        "s2 = Add(s1, given)", more=", float[batch,1,sequence,1] given"),
    "a number added to all scores": Trap("s2 = Add(s1, low)"),
    "padding, then a causal fill": Trap(
        f"bias = Mul(hidden, low)\n  t = Add(s1, bias)\n"
        f"  seen = GreaterOrEqual(row, column)\n{FILL.replace('s1', 't')}"),
    "an unbiased variance": Trap(
        norm=CENTRED + "  wide = Mul(variance, more)\n  above = Add(wide, tiny)\n"
        "  root_of = Sqrt(above)\n" + DIVIDED, norms=(0, 0)),
    "epsilon outside the root": Trap(
        norm=CENTRED + "  deviation = Sqrt(variance)\n  root_of = Add(deviation, tiny)\n" + DIVIDED,
        norms=(0, 0)),
    "a norm in primitives": Trap(
        norm=CENTRED + "  above = Add(variance, tiny)\n  root_of = Sqrt(above)\n" + DIVIDED),
}  # fmt: skip


def results(path: Path) -> list[Any]:
    """Outputs for masks padded right, left and in holes; each row keeps a key."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(2).normal(size=(3, 7, 16)).astype(np.float32)
    sizes = {"batch": 3, "sequence": 7}
    places = np.arange(7)
    found = []
    for kept in (places < 3, places > 3, places % 3 != 1):
        mask = np.ones((3, 7), np.int64)
        mask[1:] = kept
        feed = {"x": x, "attention_mask": mask, "given": None}
        for value in session.get_inputs():
            if value.name == "given":
                shape = [sizes.get(size, size) for size in value.shape]
                feed["given"] = np.linspace(0, 2, np.prod(shape), dtype=np.float32).reshape(shape)
        names = [value.name for value in session.get_inputs()]
        found.append(session.run(None, {name: feed[name] for name in names}))
    return found


@pytest.mark.parametrize("name", TRAPS)
def test_the_numbers_stay(name: str, tmp_path: Path) -> None:
    trap = TRAPS[name]
    source, fused = tmp_path / "trap.onnx", tmp_path / "fused.onnx"
    onnx.save(model(trap.text()), source)
    report = optimize_file(source, fused, "onnxruntime")
    found = {kind: (count.found, count.expected) for kind, count in report.counts.items()}
    assert found == {"attention": trap.attention, "add_layernorm": trap.norms}
    assert report.reverted == []
    for before, after in zip(results(source), results(fused), strict=True):
        for one, other in zip(before, after, strict=True):
            assert np.abs(one - other).max() < 1e-5


def test_dropout_that_drops_is_no_attention(tmp_path: Path) -> None:
    """In training mode the probabilities are random; no fused kernel does that."""
    trap = Trap(probabilities="train = Cast<to=9>(unit)\n  p1 = Dropout(p, quarter, train)")
    source = tmp_path / "trap.onnx"
    onnx.save(model(trap.text()), source)
    report = optimize_file(source, tmp_path / "fused.onnx", "onnxruntime")
    count = report.counts["attention"]
    assert (count.found, count.expected) == (0, 1)
    (miss,) = [m for m in report.missed if m.kind == "attention"]
    assert (
        miss.reason == "the probabilities are read by Dropout, not by the product with the values"
    )
