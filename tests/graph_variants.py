"""Random transformer graphs: the same blocks, written in all the ways that exporters write them.

`variant(seed)` draws the style of each part (opset, how heads are split, where the scale and the
mask stand, norms and activations as operators or in primitives, the order of operands and of
nodes, constants as initializers or nodes, operations that change nothing in between) and tells
how many sites the graph has, and how many of them can be fused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, HEADS, ROWS = 16, 2, 97
OPSETS = (11, 12, 13, 14, 16, 17, 18, 20, 21, 23)
_INT = np.int64
# Values that are, or may be, something else than floats: Dropout takes floats only.
_NOT_FLOAT = (
    "shape", "slice", "gather", "concat", "cast", "unsqueeze", "not", "isnan", "range", "less",
)  # fmt: skip
_LOWEST = float(np.finfo(np.float32).min)


@dataclass
class Style:
    """What was drawn for a graph."""

    opset: int
    pre_norm: bool
    causal: bool
    bias: bool
    split: str
    mask: str
    scale: str
    gelu: str
    noise: float
    output: str
    head_dim: int
    layers: int


@dataclass
class Builder:
    """Appends nodes; every choice comes from one generator."""

    rng: np.random.Generator
    style: Style
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    count: int = 0

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}_{self.count}"

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        given = list(inputs)
        if op_type in ("Add", "Mul") and self.chance(0.5):
            given.reverse()
        names = [self.name(op_type.lower()) for _ in range(outputs)]
        label = "" if self.chance(0.3) else self.name("n")
        self.nodes.append(helper.make_node(op_type, given, names, name=label, **attributes))
        return self.noisy(names[0]) if outputs == 1 else names

    def noisy(self, value: str) -> str:
        """The value behind an operation that changes nothing, now and then."""
        kind = self.pick("Identity", "Dropout")
        if not self.chance(self.style.noise) or value.startswith(_NOT_FLOAT):
            return value
        name = self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, [value], [name]))
        return name

    def const(self, array: Any, dtype: Any = np.float32) -> str:
        tensor = numpy_helper.from_array(np.asarray(array, dtype), self.name("c"))
        if self.chance(0.5):
            self.tensors.append(tensor)
            return str(tensor.name)
        name = self.name("constant")
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def weight(self, *shape: int) -> str:
        return self.const(self.rng.normal(size=shape) * 0.25)

    def with_axes(self, op_type: str, value: str, axes: list[int], since: int, **more: Any) -> str:
        """Squeeze, Unsqueeze and ReduceMean: axes are an attribute before opset `since`."""
        if self.style.opset < since:
            return str(self.op(op_type, value, axes=axes, **more))
        return str(self.op(op_type, value, self.const(axes, _INT), **more))

    def linear(self, x: str, width: int, out: int) -> str:
        product = self.op("MatMul", x, self.weight(width, out))
        return str(self.op("Add", product, self.weight(out)))

    def shape_of(self, x: str, *sizes: int) -> str:
        """Sizes for a Reshape of x: constants, or the leading two computed from x."""
        if self.chance(0.5):
            return self.const([0, 0, *sizes], _INT)
        shape = self.op("Shape", x)
        parts = []
        for place in (0, 1):
            one = self.op("Gather", shape, self.const(place, _INT), axis=0)
            parts.append(self.with_axes("Unsqueeze", one, [0], 13))
        return str(self.op("Concat", *parts, self.const(sizes, _INT), axis=0))

    def norm(self, x: str) -> str:
        scale, bias = (self.const(self.rng.normal(size=HIDDEN) + 1) for _ in range(2))
        if self.style.opset >= 17 and self.chance(0.5):
            return str(self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6))
        mean = self.with_axes("ReduceMean", x, [-1], 18)
        centred = self.op("Sub", x, mean)
        square = (
            self.op("Pow", centred, self.const(2.0))
            if self.chance(0.5)
            else self.op("Mul", centred, centred)
        )
        variance = self.with_axes("ReduceMean", square, [-1], 18)
        root = self.op("Sqrt", self.op("Add", variance, self.const(1e-6)))
        if self.chance(0.5):
            normal = self.op("Div", centred, root)
        else:
            normal = self.op("Mul", centred, self.op("Reciprocal", root))
        return str(self.op("Add", self.op("Mul", normal, scale), bias))

    def gelu(self, x: str) -> str:
        half, one = self.const(0.5), self.const(1.0)
        if self.style.gelu == "erf":
            inner = self.op("Erf", self.op("Div", x, self.const(math.sqrt(2))))
        else:
            cube = self.op("Pow", x, self.const(3.0))
            cubic = self.op("Mul", cube, self.const(0.044715))
            inner = self.op("Mul", self.op("Add", x, cubic), self.const(math.sqrt(2 / math.pi)))
            inner = self.op("Tanh", inner)
        if self.chance(0.5):
            return str(self.op("Mul", self.op("Mul", x, half), self.op("Add", inner, one)))
        return str(self.op("Mul", self.op("Mul", x, self.op("Add", inner, one)), half))


def attention(b: Builder, x: str, mask: str) -> str:
    """A block of self-attention, without its residual connection."""
    q, k, v = _heads(b, x)
    scale = 1 / math.sqrt(b.style.head_dim)
    if b.style.scale == "query":
        q = b.op("Mul", q, b.const(scale))
    if b.style.scale == "both":
        q, k = (b.op("Mul", t, b.const(math.sqrt(scale))) for t in (q, k))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    if b.style.scale == "scores":
        scores = (
            b.op("Div", scores, b.const(1 / scale))
            if b.chance(0.5)
            else b.op("Mul", scores, b.const(scale))
        )
    if b.style.output == "scores":
        b.outputs.append(scores)
    p = b.op("Softmax", _masked(b, scores, mask), axis=3)
    if b.style.mask == "where -inf":
        p = b.op("Where", b.op("IsNaN", p), b.const(0.0), p)
    if b.style.output == "probabilities":
        b.outputs.append(p)
    y = b.op("Transpose", b.op("MatMul", p, v), perm=[0, 2, 1, 3])
    merged = b.op("Reshape", y, b.shape_of(x, HEADS * b.style.head_dim))
    return b.linear(merged, HEADS * b.style.head_dim, HIDDEN)


def _heads(b: Builder, x: str) -> list[str]:
    width = HEADS * b.style.head_dim
    if b.style.split == "packed":
        packed = b.linear(x, HIDDEN, 3 * width)
        sizes = [width] * 3
        if b.style.opset < 13:
            flat = b.op("Split", packed, outputs=3, axis=2, split=sizes)
        else:
            flat = b.op("Split", packed, b.const(sizes, _INT), outputs=3, axis=2)
    elif b.style.split == "gemm":
        rows = b.op("Reshape", x, b.const([-1, HIDDEN], _INT))
        flat = []
        for _ in range(3):
            product = b.op("Gemm", rows, b.weight(HIDDEN, width), b.weight(width))
            flat.append(b.op("Reshape", product, _like(b, x, width)))
    else:
        flat = [b.linear(x, HIDDEN, width) for _ in range(3)]
    split = [b.op("Reshape", t, b.shape_of(x, HEADS, b.style.head_dim)) for t in flat]
    return [b.op("Transpose", t, perm=[0, 2, 1, 3]) for t in split]


def _like(b: Builder, x: str, width: int) -> str:
    start = b.op("Slice", b.op("Shape", x), b.const([0], _INT), b.const([2], _INT))
    return str(b.op("Concat", start, b.const([width], _INT), axis=0))


def _masked(b: Builder, scores: str, mask: str) -> str:
    """The masks in either order, and a bias of its own for each head."""
    if b.style.bias:
        scores = str(b.op("Add", scores, b.const(b.rng.normal(size=(HEADS, 1, 1)))))
    if b.style.causal and b.chance(0.5):
        return _padded(b, _causal(b, scores, mask), mask)
    scores = _padded(b, scores, mask)
    return _causal(b, scores, mask) if b.style.causal else scores


def _causal(b: Builder, scores: str, ids: str) -> str:
    """Keys behind a query filled, by a triangle that is cut out of a constant, or by a range."""
    size = b.op("Gather", b.op("Shape", ids), b.const(1, _INT), axis=0)
    if b.chance(0.5):
        end = b.with_axes("Unsqueeze", size, [0], 13)
        triangle = b.const(np.tril(np.ones((1, 1, 64, 64))), np.uint8)
        start, step = b.const([0], _INT), b.const([1], _INT)
        for axis in (2, 3):
            triangle = b.op("Slice", triangle, start, end, b.const([axis], _INT), step)
        seen = b.op("Cast", triangle, to=TensorProto.BOOL)
    else:
        places = b.op("Range", b.const(0, _INT), size, b.const(1, _INT))
        row, column = (b.with_axes("Unsqueeze", places, [axis], 13) for axis in (1, 0))
        seen = b.op("Not", b.op("Less", row, column))
    return str(b.op("Where", seen, scores, b.const(b.pick(-1e9, _LOWEST))))


def _padded(b: Builder, scores: str, mask: str) -> str:
    if b.style.mask == "none":
        return scores
    keys = b.with_axes("Unsqueeze", b.with_axes("Unsqueeze", mask, [1], 13), [2], 13)
    if b.style.mask.startswith("where"):
        fill = {"where -1e9": -1e9, "where -inf": -np.inf, "where lowest": _LOWEST}[b.style.mask]
        keep = b.op("Cast", keys, to=TensorProto.BOOL)
        if b.chance(0.5):
            return str(b.op("Where", keep, scores, b.const(fill)))
        return str(b.op("Where", b.op("Not", keep), b.const(fill), scores))
    low = -1e4 if b.style.mask == "additive -1e4" else _LOWEST
    hidden = b.op("Sub", b.const(1.0), b.op("Cast", keys, to=TensorProto.FLOAT))
    return str(b.op("Add", scores, b.op("Mul", hidden, b.const(low))))


def _style(rng: np.random.Generator) -> Style:
    def pick(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    return Style(
        opset=pick(*OPSETS),
        pre_norm=bool(rng.random() < 0.4),
        causal=bool(rng.random() < 0.3),
        bias=bool(rng.random() < 0.2),
        split=pick("three", "three", "packed", "gemm"),
        mask=pick("none", "where -1e9", "where -inf", "where lowest", "additive -1e4",
                  "additive lowest"),
        scale=pick("query", "scores", "both", "none"),
        gelu=pick("erf", "tanh"),
        noise=pick(0.0, 0.0, 0.1),
        output=pick("", "", "", "scores", "probabilities", "sum"),
        head_dim=pick(8, 8, 4),
        layers=pick(1, 2),
    )  # fmt: skip


def _residual(b: Builder, x: str, branch: str) -> str:
    total = str(b.op("Add", x, branch))
    if b.style.output == "sum":
        b.outputs.append(total)
    return total


def _layer(b: Builder, x: str, mask: str) -> str:
    def feed_forward(h: str) -> str:
        return b.linear(b.gelu(b.linear(h, HIDDEN, 2 * HIDDEN)), 2 * HIDDEN, HIDDEN)

    if b.style.pre_norm:
        x = _residual(b, x, attention(b, b.norm(x), mask))
        return _residual(b, x, feed_forward(b.norm(x)))
    x = b.norm(_residual(b, x, attention(b, x, mask)))
    return b.norm(_residual(b, x, feed_forward(x)))


def variant(seed: int) -> tuple[onnx.ModelProto, Style, dict[str, tuple[int, int]]]:
    """The model of a seed, its style, and (found, expected) for attention and add+LayerNorm."""
    rng = np.random.default_rng(seed)
    b = Builder(rng, _style(rng))
    x = b.norm(b.op("Gather", b.weight(ROWS, HIDDEN), "input_ids", axis=0))
    for _ in range(b.style.layers):
        x = _layer(b, x, "input_ids" if b.style.mask == "none" else "attention_mask")
    if b.style.pre_norm:
        x = b.norm(x)
    b.nodes.append(helper.make_node("Identity", [x], ["y"]))
    axes = ["batch", "sequence"]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, axes)]
    if b.style.mask != "none":
        inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, axes))
    inner = [*axes, HIDDEN] if b.style.output == "sum" else ["batch", HEADS, *axes[1:] * 2]
    shapes = {"y": [*axes, HIDDEN], **dict.fromkeys(b.outputs, inner)}
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()
    ]
    graph = helper.make_graph(_shuffled(b), "variant", inputs, outputs, b.tensors)
    opset = helper.make_opsetid("", b.style.opset)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    layers = b.style.layers
    fused = 0 if b.style.output == "probabilities" else layers
    norms = 2 * layers
    return model, b.style, {"attention": (fused, layers), "add_layernorm": (norms, norms)}


def _shuffled(b: Builder) -> list[onnx.NodeProto]:
    """The nodes in another topological order."""
    made = {name for node in b.nodes for name in node.output}
    waiting, done, order = list(b.nodes), set(), []
    while waiting:
        ready = [n for n in waiting if all(i in done or i not in made for i in n.input)]
        node = ready[int(b.rng.integers(len(ready)))] if b.chance(0.3) else ready[0]
        waiting.remove(node)
        order.append(node)
        done |= set(node.output)
    return order
