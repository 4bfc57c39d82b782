"""Kernels that TensorRT-RTX compiles for one encoder layer, by the form of its projections.

A post-norm encoder of two and of four layers (hidden size 256, 4 heads, fp16, dynamic sizes) is
written in each form and built; the difference is two layers' kernels. All forms compute the same
layer; they differ in how queries, keys and values get from the GEMM into the attention. How the
attention itself may be written is in `perf/attention_forms.py`. No GPU is needed.

    python perf/layer_forms.py -o perf/results/layer_forms.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.runtime.backends import backend
from tfc.runtime.backends.base import Inputs, Kernel, Profile
from tfc.steps.record import versions_of

HIDDEN, HEADS, HEAD_DIM, WIDE = 256, 4, 64, 512
GROUPS = 2  # heads of keys and values where queries are grouped
LAYERS = (2, 4)
HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
TO_HEADS = [0, 2, 1, 3]


@dataclass(frozen=True)
class Form:
    """How one layer's heads are made."""

    name: str
    packed: str  # "": three products; else the axis on which one product is split
    rotary: bool = False
    grouped: bool = False
    bias: bool = True
    einsum: bool = False  # the output projection reads the heads, and merges them itself
    flat: bool = False  # `Attention` splits and merges the heads itself
    explicit: bool = False  # the products and the softmax in place of `Attention`


FORMS = (
    Form("three products (as exported)", ""),
    Form("three products, rotary", "", rotary=True),
    Form("one product, split on its last axis", "last"),
    Form("one product, [3, batch, heads, …] split on axis 0", "first"),
    Form("one product, heads split on axis 1", "heads"),
    Form("one product, heads split on axis 2", "before"),
    Form("axis 1, no bias", "heads", bias=False),
    Form("axis 2, no bias", "before", bias=False),
    Form("axis 1, rotary", "heads", rotary=True),
    Form("axis 2, rotary", "before", rotary=True),
    Form("axis 1, rotary, grouped queries", "heads", rotary=True, grouped=True),
    Form("three products, rotary, grouped queries", "", rotary=True, grouped=True),
    Form("axis 1, output projection as Einsum", "heads", einsum=True),
    Form("three products, Attention on three axes", "", flat=True),
    Form("three products, explicit attention", "", explicit=True),
    Form("axis 1, explicit attention (tfc)", "heads", explicit=True),
    Form("axis 2, explicit attention (tfc)", "before", explicit=True),
    Form("axis 1, rotary, explicit attention (tfc)", "heads", rotary=True, explicit=True),
    Form("axis 1, no bias, explicit attention (tfc)", "heads", bias=False, explicit=True),
)


class Writer:
    """Writes nodes and constants into one graph."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def constant(self, array: npt.NDArray[Any]) -> ir.Value:
        """An initializer."""
        name = f"c{len(self.constants)}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self.constants.append(value)
        return value

    def ints(self, *numbers: int) -> ir.Value:
        """A vector of int64, for shapes and axes."""
        return self.constant(np.array(numbers, np.int64))

    def random(self, *shape: int) -> ir.Value:
        """Random weights in fp16."""
        return self.constant((self.rng.standard_normal(shape) * 0.05).astype(np.float16))

    def op(self, kind: str, *operands: ir.Value, **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self.ops(kind, 1, *operands, **attributes)[0]

    def ops(self, kind: str, count: int, *operands: ir.Value, **attributes: Any) -> list[ir.Value]:
        """A node with several outputs."""
        node = ir.node(kind, list(operands), attributes, num_outputs=count)
        node.name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(node)
        return list(node.outputs)

    def linear(self, x: ir.Value, inside: int, outside: int, *, bias: bool = True) -> ir.Value:
        """A linear layer."""
        product = self.op("MatMul", x, self.random(inside, outside))
        return self.op("Add", product, self.random(outside)) if bias else product


def heads_of(w: Writer, form: Form, x: ir.Value, turn: Callable[..., ir.Value]) -> list[ir.Value]:
    """Queries, keys and values, `[batch, heads, sequence, head_dim]`."""
    fewer = GROUPS if form.grouped else HEADS
    counts = [HEADS, fewer, fewer]
    if not form.packed:
        flat = [w.linear(x, HIDDEN, n * HEAD_DIM, bias=form.bias) for n in counts]
        return turned(w, form, split_last(w, flat, counts), turn)
    qkv = w.linear(x, HIDDEN, sum(counts) * HEAD_DIM, bias=form.bias)
    if form.packed == "last":
        sizes = w.ints(*(n * HEAD_DIM for n in counts))
        flat = w.ops("Split", 3, qkv, sizes, axis=2)
        return turned(w, form, split_last(w, flat, counts), turn)
    if form.packed == "first":
        five = w.op("Reshape", qkv, w.ints(0, 0, 3, HEADS, HEAD_DIM))
        parts = w.ops(
            "Split", 3, w.op("Transpose", five, perm=[2, 0, 3, 1, 4]), axis=0, num_outputs=3
        )
        return turned(w, form, [w.op("Squeeze", p, w.ints(0)) for p in parts], turn)
    four = w.op("Reshape", qkv, w.ints(0, 0, sum(counts), HEAD_DIM))
    if form.packed == "heads":
        four = w.op("Transpose", four, perm=TO_HEADS)
        return turned(w, form, w.ops("Split", 3, four, w.ints(*counts), axis=1), turn)
    parts = w.ops("Split", 3, four, w.ints(*counts), axis=2)
    return turned(w, form, [w.op("Transpose", p, perm=TO_HEADS) for p in parts], turn)


def split_last(w: Writer, flat: list[ir.Value], counts: list[int]) -> list[ir.Value]:
    """Each `[batch, sequence, count · head_dim]` as heads."""
    split = [
        w.op("Reshape", f, w.ints(0, 0, n, HEAD_DIM)) for f, n in zip(flat, counts, strict=True)
    ]
    return [w.op("Transpose", heads, perm=TO_HEADS) for heads in split]


def turned(
    w: Writer, form: Form, heads: list[ir.Value], turn: Callable[..., ir.Value]
) -> list[ir.Value]:
    q, k, v = heads
    return [turn(w, q), turn(w, k), v] if form.rotary else [q, k, v]


def rotation(w: Writer, x: ir.Value) -> Callable[..., ir.Value]:
    """Rotary embeddings, as `x · cos + rotate_half(x) · sin`, with tables shared by all layers."""
    length = w.op("Squeeze", w.op("Shape", x, start=1, end=2))
    zero, one = (w.constant(np.array(n, np.int64)) for n in (0, 1))
    positions = w.op("Cast", w.op("Range", zero, length, one), to=FLOAT)
    frequency = 10000.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    row = w.constant(frequency.astype(np.float32)[None])
    half = w.op("Mul", w.op("Unsqueeze", positions, w.ints(1)), row)
    angle = w.op("Concat", half, half, axis=-1)
    cos, sin = (w.op("Cast", w.op(kind, angle), to=HALF) for kind in ("Cos", "Sin"))

    def turn(w: Writer, heads: ir.Value) -> ir.Value:
        left, right = w.ops("Split", 2, heads, axis=-1, num_outputs=2)
        other = w.op("Concat", w.op("Neg", right), left, axis=-1)
        return w.op("Add", w.op("Mul", heads, cos), w.op("Mul", other, sin))

    return turn


def encoder(form: Form, layers: int) -> ir.Model:
    """The whole encoder: `x` `[batch, sequence, 256]` and a mask of keys → the same shape."""
    w = Writer()
    x = ir.Value(name="x", type=ir.TensorType(HALF), shape=ir.Shape(["batch", "sequence", HIDDEN]))
    mask = ir.Value(
        name="mask",
        type=ir.TensorType(ir.DataType.BOOL),
        shape=ir.Shape(["batch", 1, 1, "sequence"]),
    )
    turn, y = rotation(w, x) if form.rotary else (lambda w, heads: heads), x
    for _ in range(layers):
        y = norm(w, attention(w, form, y, mask, turn), y)
        wide = w.op("Gelu", w.linear(y, HIDDEN, WIDE))
        y = norm(w, w.linear(wide, WIDE, HIDDEN), y)
    y.name, y.type = "y", ir.TensorType(HALF)
    graph = ir.Graph(
        [x, mask], [y], nodes=w.nodes, initializers=w.constants, opset_imports={"": 23}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def attention(
    w: Writer, form: Form, x: ir.Value, mask: ir.Value, turn: Callable[..., ir.Value]
) -> ir.Value:
    """The attention with its projections, `[batch, sequence, 256]`."""
    if form.flat:
        q, k, v = (w.linear(x, HIDDEN, HIDDEN) for _ in range(3))
        counts = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
        merged = w.op("Attention", q, k, v, mask, scale=1.0, **counts)
        return w.linear(merged, HIDDEN, HIDDEN)
    heads = heads_of(w, form, x, turn)
    if form.explicit:
        attended = explicit_attention(w, *heads, mask)
    else:
        attended = w.op("Attention", *heads, mask, scale=1.0)
    if form.einsum:
        weight = w.random(HEADS, HEAD_DIM, HIDDEN)
        product = w.op("Einsum", attended, weight, equation="bnsd,ndh->bsh")
        return w.op("Add", product, w.random(HIDDEN))
    merged = w.op("Reshape", w.op("Transpose", attended, perm=TO_HEADS), w.ints(0, 0, HIDDEN))
    return w.linear(merged, HIDDEN, HIDDEN)


def explicit_attention(
    w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value
) -> ir.Value:
    """`softmax(q·kᵀ + mask)·v`, the mask as a sum."""
    scores = w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2]))
    zero, low = (w.constant(np.array(number, np.float16)) for number in (0, -30000))
    masked = w.op("Add", scores, w.op("Where", mask, zero, low))
    return w.op("MatMul", w.op("Softmax", masked, axis=-1), v)


def norm(w: Writer, x: ir.Value, residual: ir.Value) -> ir.Value:
    total = w.op("Cast", w.op("Add", x, residual), to=FLOAT)
    scale, shift = (w.constant(w.rng.random(HIDDEN).astype(np.float32)) for _ in range(2))
    return w.op("Cast", w.op("LayerNormalization", total, scale, shift, axis=-1), to=HALF)


def kernels_of(model: ir.Model) -> tuple[Kernel, ...]:
    inputs = Inputs(
        {
            "x": ("float16", ("batch", "sequence", HIDDEN)),
            "mask": ("bool", ("batch", 1, 1, "sequence")),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        ir.save(model, file)
        built = backend("tensorrt-rtx").build(file, Path(folder) / "plan", inputs, Profile())
    return built.kernels


def main() -> None:
    """Build every form, print a table, write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    rows = []
    print("| form | kernels | waits |\n|---|--:|--:|")
    for form in FORMS:
        built = [kernels_of(encoder(form, layers)) for layers in LAYERS]
        waits = [sum(k.type in ("wait", "signal") for k in kernels) for kernels in built]
        work = [len(kernels) - w for kernels, w in zip(built, waits, strict=True)]
        per_layer = [(many - few) / (LAYERS[1] - LAYERS[0]) for few, many in (work, waits)]
        names = [kernel.name for kernel in built[0]]
        rows.append(
            {**asdict(form), "kernels": per_layer[0], "waits": per_layer[1], "names": names}
        )
        print(f"| {form.name} | {per_layer[0]:g} | {per_layer[1]:g} |", flush=True)
    if asked.output:
        report = {
            "command": "python perf/layer_forms.py",
            "versions": versions_of("tensorrt-rtx-cu13"),
            "results": rows,
        }
        asked.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
