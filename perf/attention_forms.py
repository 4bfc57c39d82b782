"""Kernels that TensorRT-RTX compiles for one encoder layer, by how its attention is written.

The encoders of `perf/layer_forms.py` with heads from one packed product, in fp16: the attention is
one `Attention`, or its products with the mask, the softmax and a guard in each form. Of each form
are counted, for one layer: kernels, waits between streams, and the KiB that its kernels write at
8 × 128 tokens; for the whole engine of two layers: all kernels, and those that are a fused
attention. A second table is by head size. No GPU is needed.

    python perf/attention_forms.py -o perf/results/attention_forms.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import layer_forms
import numpy as np
import onnx_ir as ir
from layer_forms import FLOAT, HALF, LAYERS, Form, Writer, encoder

from tfc.errors import TfcError
from tfc.runtime.backends import backend
from tfc.runtime.backends.base import Inputs, Kernel, Profile, Range
from tfc.runtime.backends.kernel_kinds import bytes_written
from tfc.runtime.backends.kernels import is_fused_attention
from tfc.steps.record import versions_of

KEYS, ROWS = ("batch", 1, 1, "sequence"), ("batch", 1, "sequence", "sequence")
FIXED = Profile(Range(8, 8, 8), Range(128, 128, 128))
HEAD_SIZES = (8, 12, 16, 20, 24, 32, 40, 64, 80, 96, 128, 160, 256, 288)
REPEATS = layer_forms.HEADS // layer_forms.GROUPS
INFINITY, LOW = -np.inf, -30000.0

Write = Callable[[Writer, ir.Value, ir.Value, ir.Value, ir.Value], ir.Value]


@dataclass(frozen=True)
class Case:
    """A form of the attention, the axes of its mask of booleans, and whether keys are grouped."""

    name: str
    write: Write
    mask: tuple[str | int, ...] = KEYS
    grouped: bool = False


@dataclass(frozen=True)
class Found:
    """What was compiled, or why nothing was."""

    name: str
    kernels: float | None = None
    waits: float | None = None
    kib_written: float | None = None
    of_two_layers: int | None = None
    fused_attention: int | None = None
    refusal: str = ""


def number(w: Writer, value: float, dtype: Any = np.float16) -> ir.Value:
    return w.constant(np.array(value, dtype))


def scores(w: Writer, q: ir.Value, k: ir.Value) -> ir.Value:
    return w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2]))


def softmax(w: Writer, masked: ir.Value, wide: bool) -> ir.Value:
    """Over the keys, in fp16 or between casts in fp32."""
    if not wide:
        return w.op("Softmax", masked, axis=-1)
    return w.op("Cast", w.op("Softmax", masked, axis=-1), to=HALF)


def one_op(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
    return w.op("Attention", q, k, v, mask, scale=1.0)


def filled(wide: bool, low: float = LOW) -> Write:
    """The mask as a `Where` on the scores."""

    def write(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
        own = scores(w, q, k)
        if wide:
            own = w.op("Cast", own, to=FLOAT)
        never = number(w, low, np.float32 if wide else np.float16)
        return w.op("MatMul", softmax(w, w.op("Where", mask, own, never), wide), v)

    return write


def added(wide: bool, low: float = LOW) -> Write:
    """The mask as numbers that are added, made once for all layers."""

    def write(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
        numbers = shared(w, mask, lambda: w.op("Where", mask, number(w, 0), number(w, low)))
        total = w.op("Add", scores(w, q, k), numbers)
        if wide:
            total = w.op("Cast", total, to=FLOAT)
        return w.op("MatMul", softmax(w, total, wide), v)

    return write


def guarded(wide: bool) -> Write:
    """A fill of -inf, and 0 for a row of NaN."""

    def write(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
        own = w.op("Where", mask, scores(w, q, k), number(w, INFINITY))
        if wide:
            own = w.op("Cast", own, to=FLOAT)
        p = softmax(w, own, wide)
        return w.op("MatMul", w.op("Where", w.op("IsNaN", p), number(w, 0), p), v)

    return write


def zeroed_weights(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
    """The mask once more, on the probabilities."""
    p = softmax(w, w.op("Where", mask, scores(w, q, k), number(w, LOW)), wide=False)
    return w.op("MatMul", w.op("Where", mask, p, number(w, 0)), v)


def zeroed_result(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
    """The result of a row without a key is replaced by 0."""

    def some_key() -> ir.Value:
        kept = w.op("ReduceMax", w.op("Cast", mask, to=HALF), w.ints(-1), keepdims=1)
        return w.op("Cast", kept, to=ir.DataType.BOOL)

    y = filled(wide=False)(w, q, k, v, mask)
    return w.op("Where", shared(w, mask, some_key), y, number(w, 0))


def repeated(how: str) -> Write:
    """Grouped keys and values, brought to the queries' heads."""

    def many(w: Writer, heads: ir.Value) -> ir.Value:
        if how == "gather":
            places = np.repeat(np.arange(layer_forms.GROUPS), REPEATS)
            return w.op("Gather", heads, w.constant(places), axis=1)
        wide = w.op("Expand", w.op("Unsqueeze", heads, w.ints(2)), w.ints(1, 1, REPEATS, 1, 1))
        return w.op("Reshape", wide, w.ints(0, layer_forms.HEADS, -1, layer_forms.HEAD_DIM))

    def write(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
        return filled(wide=True)(w, q, many(w, k), many(w, v), mask)

    return write


def five_axes(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
    """Grouped queries against an axis of one key."""
    split = w.ints(0, layer_forms.GROUPS, REPEATS, -1, layer_forms.HEAD_DIM)
    turned = w.op("Unsqueeze", w.op("Transpose", k, perm=[0, 1, 3, 2]), w.ints(2))
    own = w.op("MatMul", w.op("Reshape", q, split), turned)
    masked = w.op("Where", w.op("Unsqueeze", mask, w.ints(2)), own, number(w, LOW))
    y = w.op("MatMul", softmax(w, masked, wide=False), w.op("Unsqueeze", v, w.ints(2)))
    return w.op("Reshape", y, w.op("Shape", q))


def shared(w: Writer, mask: ir.Value, make: Callable[[], ir.Value]) -> ir.Value:
    """What is made of the mask once for all layers."""
    made = w.__dict__.setdefault("made", {})
    if mask not in made:
        made[mask] = make()
    return made[mask]


CASES = (
    Case("Attention, mask of keys", one_op),
    Case("Attention, mask of rows", one_op, ROWS),
    Case("products, fill, softmax in fp16", filled(wide=False)),
    Case("products, fill, softmax in fp32 (tfc, mask of keys)", filled(wide=True)),
    Case("products, numbers added, softmax in fp16", added(wide=False)),
    Case("products, numbers added, softmax in fp32 (tfc, mask of numbers)", added(wide=True)),
    Case("products, -inf added", added(wide=False, low=INFINITY)),
    Case("products, fill of -inf, guard (tfc, mask of rows)", guarded(wide=False), ROWS),
    Case("products, fill of -inf, guard, softmax in fp32", guarded(wide=True), ROWS),
    Case("products, masked probabilities", zeroed_weights, ROWS),
    Case("products, masked result", zeroed_result, ROWS),
    Case("grouped keys, Attention", one_op, grouped=True),
    Case("grouped keys, Expand (tfc)", repeated("expand"), grouped=True),
    Case("grouped keys, Gather", repeated("gather"), grouped=True),
    Case("grouped keys, five axes", five_axes, grouped=True),
)


def built(case: Case, layers: int, profile: Profile) -> tuple[Kernel, ...]:
    form = Form(case.name, "heads", rotary=case.grouped, grouped=case.grouped, explicit=True)
    layer_forms.explicit_attention = case.write
    model = encoder(form, layers)
    model.graph.inputs[1].shape = ir.Shape(case.mask)
    axes = ("batch", "sequence", layer_forms.HIDDEN)
    inputs = Inputs({"x": ("float16", axes), "mask": ("bool", case.mask)})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        ir.save(model, file)
        plan = backend("tensorrt-rtx").build(file, Path(folder) / "plan", inputs, profile)
    return plan.kernels


def measured(case: Case) -> Found:
    try:
        few, many = (built(case, layers, Profile()) for layers in LAYERS)
        fixed = [built(case, layers, FIXED) for layers in LAYERS]
    except TfcError as error:
        return Found(case.name, refusal=error.what)
    kib = [sum(bytes_written(kernel) or 0 for kernel in each) / 1024 for each in fixed]
    waits = [_waits(each) for each in (few, many)]
    return Found(
        case.name,
        kernels=_of_one([len(few) - waits[0], len(many) - waits[1]]),
        waits=_of_one(waits),
        kib_written=_of_one(kib),
        of_two_layers=len(few) - waits[0],
        fused_attention=sum(map(is_fused_attention, few)),
    )


def _waits(kernels: Sequence[Kernel]) -> int:
    return sum(kernel.type in ("wait", "signal") for kernel in kernels)


def _of_one(both: Sequence[float]) -> float:
    return (both[1] - both[0]) / (LAYERS[1] - LAYERS[0])


def by_head_size(size: int, case: Case) -> Found:
    """The same with another head size; the hidden size is four heads."""
    before = layer_forms.HEAD_DIM, layer_forms.HIDDEN
    layer_forms.HEAD_DIM, layer_forms.HIDDEN = size, layer_forms.HEADS * size
    try:
        return measured(replace(case, name=f"{case.name.partition(',')[0]}, heads of {size}"))
    finally:
        layer_forms.HEAD_DIM, layer_forms.HIDDEN = before


def main() -> None:
    """Build every form, print a table, write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    rows = []
    print(
        "| form | kernels | waits | KiB written | of 2 layers | fused |\n|---|--:|--:|--:|--:|--:|"
    )
    sizes = [(size, case) for size in HEAD_SIZES for case in (CASES[0], CASES[3])]
    jobs = [partial(measured, case) for case in CASES]
    jobs += [partial(by_head_size, *each) for each in sizes]
    for job in jobs:
        row = job()
        rows.append(asdict(row))
        shown = (row.kernels, row.waits, row.kib_written, row.of_two_layers, row.fused_attention)
        cells = [f"{cell:g}" if cell is not None else "–" for cell in shown]
        print(f"| {row.name} | {' | '.join(cells)} |", flush=True)
    if asked.output:
        report = {
            "command": "python perf/attention_forms.py",
            "versions": versions_of("tensorrt-rtx-cu13"),
            "results": rows,
        }
        asked.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
