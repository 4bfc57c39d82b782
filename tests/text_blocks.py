"""Blocks of transformers as ONNX text, in the node patterns that onnxruntime's scripts work on.

Each is a whole model around one attention: a residual sum and its norm, the block, a second sum
and norm. Weights are random; `model` makes them of the declarations that end in `= random`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

_DECLARED = re.compile(r"^\s*(float|int64|uint8)\[([\d,]*)\] (\w+) = (.+)$")

# One batch of three words, as the generators fix it; the mask is an input of integers or floats.
BERT = """
attention (float[1,3,16] x1, float[1,3,16] x2, MASK[1,3] input_mask) => (float[1,3,16] y) {
  h = Add(x1, x2)
  n = LayerNormalization<axis=-1, epsilon=1e-5>(h, ln_w, ln_b)
  qm = MatMul(n, wq)
  qa = Add(QBIAS)
  q3 = Reshape(qa, qk_split)
  q = Transpose<perm=[0,2,1,3]>(q3)
  km = MatMul(n, wk)
  ka = Add(KBIAS)
  k3 = Reshape(ka, qk_split)
  kt = Transpose<perm=[0,2,3,1]>(k3)
  m1 = Unsqueeze(input_mask, one)
  m2 = Unsqueeze(m1, two)
  m3 = CAST
  m4 = Sub(unit, m3)
  mask = Mul(m4, low)
  s1 = MatMul(q, kt)
  s2 = Div(s1, root)
  s3 = Add(SUM)
  p = Softmax<axis=3>(s3)
  vm = MatMul(n, wv)
  va = Add(vm, bv)
  v3 = Reshape(va, v_split)
  v = Transpose<perm=[0,2,1,3]>(v3)
  y1 = MatMul(p, v)
  y2 = Transpose<perm=[0,2,1,3]>(y1)
  y3 = Reshape(y2, merge)
  y4 = MatMul(y3, wo)
  y5 = Add(OBIAS)
  r = Add(RESIDUAL)
  y = LayerNormalization<axis=-1, epsilon=1e-5>(r, ln_w, ln_b)
}
float[16] ln_w = random
float[16] ln_b = random
float[16,QK] wq = random
float[16,QK] wk = random
float[16,V] wv = random
float[V,16] wo = random
float[QK] bq = random
float[QK] bk = random
float[V] bv = random
float[16] bo = random
float[1] root = [2.0]
float[1] unit = [1.0]
float[1] low = [-10000.0]
int64[1] one = [1]
int64[1] two = [2]
int64[4] qk_split = [0, 0, 2, QK // 2]
int64[4] v_split = [0, 0, 2, V // 2]
int64[3] merge = [0, 0, V]
"""
# Keras, through tf2onnx: projections and products are Einsums, the key comes first.
KERAS = """
attention (float[1,3,16] x1, float[1,3,16] x2, int64[1,3] input_mask) => (float[1,3,16] y) {
  h = Add(x1, x2)
  n = LayerNormalization<axis=-1, epsilon=1e-5>(h, ln_w, ln_b)
  qm = Einsum<equation="abc,cde->abde">(n, wq)
  q = Add(qm, bq)
  km = Einsum<equation="abc,cde->abde">(n, wk)
  k = Add(km, bk)
  vm = Einsum<equation="abc,cde->abde">(n, wv)
  v = Add(vm, bv)
  m1 = Cast<to=1>(input_mask)
  m2 = Unsqueeze(m1, one)
  m3 = Unsqueeze(m2, one)
  m4 = Sub(unit, m3)
  mask = Mul(m4, low)
  qs = Mul(q, quarter)
  s = Einsum<equation="aecd,abcd->acbe">(k, qs)
  sm = Add(s, mask)
  p = Softmax<axis=3>(sm)
  c = Einsum<equation="acbe,aecd->abcd">(p, v)
  y4 = Einsum<equation="abcd,cde->abe">(c, wo)
  y5 = Add(y4, bo)
  r = Add(y5, n)
  y = LayerNormalization<axis=-1, epsilon=1e-5>(r, ln_w, ln_b)
}
float[16] ln_w = random
float[16] ln_b = random
float[16,4,4] wq = random
float[16,4,4] wk = random
float[16,4,4] wv = random
float[4,4,16] wo = random
float[4,4] bq = random
float[4,4] bk = random
float[4,4] bv = random
float[16] bo = random
float[] unit = 1.0
float[] low = -10000.0
float[] quarter = 0.25
int64[1] one = [1]
"""
# GPT-2: one projection split in three, a stacked cache, a triangle cut out of a constant.
GPT2 = """
attention (float[batch,sequence,16] x1, float[batch,sequence,16] x2, float[batch,total] input_mask,
  float[2,batch,2,past,8] past) => (float[batch,sequence,16] y, float[2,batch,2,total,8] present) {
  h = Add(x1, x2)
  n = LayerNormalization<epsilon=1e-5>(h, ln_w, ln_b)
  fm = MatMul(n, wqkv)
  f = Add(FC)
  q1, k1, v1 = Split<axis=2>(f, thirds)
  q2 = Reshape(q1, split)
  q = Transpose<perm=[0,2,1,3]>(q2)
  k2 = Reshape(k1, split)
  k3 = Transpose<perm=[0,2,1,3]>(k2)
  v2 = Reshape(v1, split)
  v3 = Transpose<perm=[0,2,1,3]>(v2)
  pk1, pv1 = Split<axis=0>(past, halves)
  pk = Squeeze(pk1, zero)
  pv = Squeeze(pv1, zero)
  k = Concat<axis=-2>(pk, k3)
  v = Concat<axis=-2>(pv, v3)
  ku = Unsqueeze(k, zero)
  vu = Unsqueeze(v, zero)
  present = Concat<axis=0>(ku, vu)
  qs = Shape(q)
  queries = Slice(qs, minus_two, minus_one, zero)
  ks = Shape(k)
  keys = Slice(ks, minus_two, minus_one, zero)
  first = Sub(keys, queries)
  t1 = Slice(triangle, first, keys, two, one)
  t2 = Slice(t1, zero, keys, three, one)
  seen = Cast<to=9>(t2)
  m1 = Unsqueeze(input_mask, one)
  m2 = Unsqueeze(m1, two)
  m3 = Sub(unit, m2)
  mask = Mul(m3, low)
  kt = Transpose<perm=[0,1,3,2]>(k)
  s1 = MatMul(q, kt)
  s2 = Div(s1, root)
  s3 = Where(seen, s2, hidden)
  s4 = Add(SUM)
  p = Softmax<axis=3>(s4)
  y1 = MatMul(p, v)
  y2 = Transpose<perm=[0,2,1,3]>(y1)
  y3 = Reshape(y2, merge)
  ys = Shape(y3)
  rows = Reshape(y3, flat)
  y4 = Gemm<alpha=1.0, beta=1.0>(rows, wo, bo)
  y5 = Reshape(y4, ys)
  r = Add(RESIDUAL)
  y = LayerNormalization<epsilon=1e-5>(r, ln_w, ln_b)
}
float[16] ln_w = random
float[16] ln_b = random
float[16,48] wqkv = random
float[48] bqkv = random
float[16,16] wo = random
float[16] bo = random
float[] root = math.sqrt(8)
float[] unit = 1.0
float[] low = -10000.0
float[] hidden = -10000.0
uint8[1,1,32,32] triangle = np.tril(np.ones((1, 1, 32, 32)))
int64[3] thirds = [16, 16, 16]
int64[2] halves = [1, 1]
int64[4] split = [0, 0, 2, 8]
int64[3] merge = [0, 0, 16]
int64[2] flat = [-1, 16]
int64[1] zero = [0]
int64[1] one = [1]
int64[1] two = [2]
int64[1] three = [3]
int64[1] minus_two = [-2]
int64[1] minus_one = [-1]
"""
# BART and its like: queries scaled before they are split, heads merged into the batch.
BART = """
attention (float[batch,sequence,16] x, bool[batch,1,1,sequence] keep)
=> (float[batch,sequence,16] y) {
  shape = Shape(x)
  rows = Slice(shape, zero, one, zero)
  words = Slice(shape, one, two, zero)
  merged = Concat<axis=0>(minus, words, eight)
  qm = MatMul(x, wq)
  qa = Add(bq, qm)
  q0 = Mul(qa, scale)
  q2 = Reshape(q0, split)
  q3 = Transpose<perm=[0,2,1,3]>(q2)
  q = Reshape(q3, merged)
  km = MatMul(x, wk)
  k2 = Reshape(km, split)
  k3 = Transpose<perm=[0,2,1,3]>(k2)
  k = Reshape(k3, merged)
  vm = MatMul(x, wv)
  va = Add(vm, bv)
  v2 = Reshape(va, split)
  v3 = Transpose<perm=[0,2,1,3]>(v2)
  v = Reshape(v3, merged)
  kt = Transpose<perm=[0,2,1]>(k)
  s1 = MatMul(q, kt)
  apart = Concat<axis=0>(rows, two, words, words)
  s2 = Reshape(s1, apart)
  bias = Where(keep, none, low)
  s3 = Add(s2, bias)
  together = Concat<axis=0>(minus, words, words)
  s4 = Reshape(s3, together)
  p = Softmax<axis=-1>(s4)
  y1 = MatMul(p, v)
  y_apart = Concat<axis=0>(rows, two, words, eight)
  y2 = Reshape(y1, y_apart)
  y3 = Transpose<perm=[0,2,1,3]>(y2)
  y4 = Reshape(y3, merge)
  y5 = MatMul(y4, wo)
  y6 = Add(y5, bo)
  r = Add(x, y6)
  y = LayerNormalization<epsilon=1e-5>(r, ln_w, ln_b)
}
float[16] ln_w = random
float[16] ln_b = random
float[16,16] wq = random
float[16,16] wk = random
float[16,16] wv = random
float[16,16] wo = random
float[16] bq = random
float[16] bv = random
float[16] bo = random
float[] scale = 8 ** -0.5
float[] none = 0.0
float[] low = np.finfo(np.float32).min
int64[4] split = [0, 0, 2, 8]
int64[3] merge = [0, 0, 16]
int64[1] minus = [-1]
int64[1] zero = [0]
int64[1] one = [1]
int64[1] two = [2]
int64[1] eight = [8]
"""
# T5: no scale, and a bias that is looked up by the distance of two words.
T5 = """
attention (float[batch,sequence,16] x, int64[batch,sequence] input_mask)
=> (float[batch,sequence,16] y) {
  square = Pow(x, two_f)
  mean = ReduceMean<keepdims=1>(square, minus)
  above = Add(mean, tiny)
  root = Sqrt(above)
  inverse = Div(unit, root)
  normal = Mul(x, inverse)
  n = Mul(ln_w, normal)
  qm = MatMul(n, wq)
  q2 = Reshape(qm, split)
  q = Transpose<perm=[0,2,1,3]>(q2)
  km = MatMul(n, wk)
  k2 = Reshape(km, split)
  kt = Transpose<perm=[0,2,3,1]>(k2)
  vm = MatMul(n, wv)
  v2 = Reshape(vm, split)
  v = Transpose<perm=[0,2,1,3]>(v2)
  shape = Shape(x)
  words = Gather(shape, one_s)
  places = Range(zero_s, words, one_s)
  column = Unsqueeze(places, zero)
  row = Unsqueeze(places, one)
  distance = Sub(column, row)
  low_d = Max(distance, least)
  near = Min(low_d, most)
  index = Sub(near, least)
  looked = Gather(table, index)
  b1 = Transpose<perm=[2,0,1]>(looked)
  b2 = Unsqueeze(b1, zero)
  mf = Cast<to=1>(input_mask)
  m1 = Unsqueeze(mf, axes)
  m2 = Sub(unit, m1)
  m3 = Mul(m2, low)
  bias = Add(b2, m3)
  s1 = MatMul(q, kt)
  s2 = Add(s1, bias)
  p = Softmax<axis=-1>(s2)
  y1 = MatMul(p, v)
  y2 = Transpose<perm=[0,2,1,3]>(y1)
  y3 = Reshape(y2, merge)
  y4 = MatMul(y3, wo)
  y = Add(x, y4)
}
float[16] ln_w = random
float[16,16] wq = random
float[16,16] wk = random
float[16,16] wv = random
float[16,16] wo = random
float[9,2] table = random
float[] two_f = 2.0
float[] tiny = 1e-6
float[] unit = 1.0
float[] low = np.finfo(np.float32).min
int64[] zero_s = 0
int64[] one_s = 1
int64[] least = -4
int64[] most = 4
int64[4] split = [0, 0, 2, 8]
int64[3] merge = [0, 0, 16]
int64[1] minus = [-1]
int64[1] zero = [0]
int64[1] one = [1]
int64[2] axes = [1, 2]
"""


def bert(
    *, qk: int = 16, v: int = 16, reverse: bool = False, float_mask: bool = False
) -> onnx.ModelProto:
    """BERT's block; with fewer heads than the hidden size has room for, where `qk`, `v` say so."""
    sums = {
        "QBIAS": "qm, bq",
        "KBIAS": "km, bk",
        "SUM": "s2, mask",
        "OBIAS": "y4, bo",
        "RESIDUAL": "y5, n",
    }
    text = _summed(BERT, sums, reverse)
    text = text.replace("CAST", "Identity(m2)" if float_mask else "Cast<to=1>(m2)")
    text = text.replace("MASK", "float" if float_mask else "int64")
    return model(re.sub(r"\bV\b", str(v), re.sub(r"\bQK\b", str(qk), text)))


def gpt2(*, reverse: bool = False) -> onnx.ModelProto:
    """GPT-2's block with a stacked cache."""
    sums = {"FC": "fm, bqkv", "SUM": "s3, mask", "RESIDUAL": "y5, h"}
    return model(_summed(GPT2, sums, reverse))


def _summed(text: str, sums: dict[str, str], reverse: bool) -> str:
    for name, operands in sums.items():
        pair = operands.split(", ")
        text = text.replace(f"({name})", f"({', '.join(reversed(pair) if reverse else pair)})")
    return text


def model(text: str, opset: int = 18) -> onnx.ModelProto:
    """The model of a text above: the graph, then its weights, one in a line."""
    graph, _, declared = text.partition("}\n")
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>{graph}}}')
    rng = np.random.default_rng(0)
    for line in declared.splitlines():
        match = _DECLARED.match(line)
        if match is None:
            continue
        kind, shape, name, value = match.groups()
        sizes = [int(size) for size in shape.split(",") if size]
        array = rng.normal(size=sizes) * 0.4 if value == "random" else _value(value)
        dtype = {"float": np.float32, "int64": np.int64, "uint8": np.uint8}[kind]
        made.graph.initializer.append(
            numpy_helper.from_array(np.asarray(array, dtype).reshape(sizes), name)
        )
    onnx.checker.check_model(made, full_check=True)
    return made


def _value(text: str) -> Any:
    import math

    return eval(text, {"np": np, "math": math})
