"""Kernels that TensorRT-RTX compiles for a DeBERTa layer, by how positions are multiplied.

The encoders of `perf/layer_forms.py` with heads from one packed product, in fp16; the scores get a
bias gathered from products of queries and of keys with relative positions (a constant of 64 rows).
Of each form are counted, for one layer: kernels, waits between streams, and the KiB that its
kernels write at 8 × 128 tokens; and the kernels of an engine of two layers. The last two forms take
rows of the constant, as many as the length needs, as DeBERTa (v1) does. No GPU is needed.

    python perf/position_forms.py -o perf/results/position_forms.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
from attention_forms import Case, Write, measured, number, scores, shared, softmax
from layer_forms import HEAD_DIM, HEADS, LAYERS, Writer

from tfc.steps.record import versions_of

ROWS = 64
HALF_ROWS = ROWS // 2
SWAPPED, HEADS_FIRST = [0, 1, 3, 2], [1, 0, 2, 3]
Products = Callable[[Writer, ir.Value, ir.Value, ir.Value], Sequence[ir.Value]]


def integer(w: Writer, value: int) -> ir.Value:
    return w.constant(np.array(value, np.int64))


def length_of(w: Writer, mask: ir.Value) -> ir.Value:
    return w.op("Shape", mask, start=3, end=4)


def index(w: Writer, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The rows for queries and for keys, `[batch, heads, sequence, sequence]`."""
    length = length_of(w, mask)
    steps = w.op("Range", integer(w, 0), w.op("Squeeze", length), integer(w, 1))
    away = w.op("Sub", w.op("Unsqueeze", steps, w.ints(1)), w.op("Unsqueeze", steps, w.ints(0)))
    batch = w.op("Shape", mask, start=0, end=1)
    shape = w.op("Concat", batch, w.ints(HEADS), length, length, axis=0)

    def within(distance: ir.Value) -> ir.Value:
        moved = w.op("Add", distance, integer(w, HALF_ROWS))
        return w.op("Expand", w.op("Clip", moved, integer(w, 0), integer(w, ROWS - 1)), shape)

    return within(away), within(w.op("Neg", away))


def form(products: Products) -> Write:
    """An attention whose scores get elements of such products."""

    def write(w: Writer, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value) -> ir.Value:
        made = w.__dict__.setdefault("indices", {})
        if mask not in made:
            made[mask] = index(w, mask)
        of_queries, of_keys = products(w, q, k, mask)
        rows, columns = (
            w.op("GatherElements", product, places, axis=-1)
            for product, places in zip((of_queries, of_keys), made[mask], strict=True)
        )
        bias = w.op("Add", rows, w.op("Transpose", columns, perm=SWAPPED))
        masked = w.op("Add", scores(w, q, k), w.op("Where", mask, bias, number(w, -30000)))
        wide = w.op("Cast", masked, to=ir.DataType.FLOAT)
        return w.op("MatMul", softmax(w, wide, wide=True), v)

    return write


def separate(w: Writer, q: ir.Value, k: ir.Value, mask: ir.Value) -> Sequence[ir.Value]:
    return [w.op("MatMul", x, w.random(1, HEADS, HEAD_DIM, ROWS)) for x in (q, k)]


def stacked(w: Writer, q: ir.Value, k: ir.Value, mask: ir.Value) -> Sequence[ir.Value]:
    heads = w.op("Concat", q, k, axis=1)
    product = w.op("MatMul", heads, w.random(1, 2 * HEADS, HEAD_DIM, ROWS))
    return w.ops("Split", 2, product, w.ints(HEADS, HEADS), axis=1)


def per_head(w: Writer, heads: ir.Value, count: int, positions: ir.Value) -> ir.Value:
    """One GEMM per head, over all texts, `[batch, count, sequence, rows]`."""
    leading = w.op("Transpose", heads, perm=HEADS_FIRST)
    product = w.op("MatMul", w.op("Reshape", leading, w.ints(count, -1, HEAD_DIM)), positions)
    shape = w.op("Concat", w.op("Shape", leading, end=3), w.ints(-1), axis=0)
    return w.op("Transpose", w.op("Reshape", product, shape), perm=HEADS_FIRST)


def separate_per_head(w: Writer, q: ir.Value, k: ir.Value, mask: ir.Value) -> Sequence[ir.Value]:
    return [per_head(w, x, HEADS, w.random(HEADS, HEAD_DIM, ROWS)) for x in (q, k)]


def stacked_per_head(w: Writer, q: ir.Value, k: ir.Value, mask: ir.Value) -> Sequence[ir.Value]:
    return of_both(w, q, k, w.random(2 * HEADS, HEAD_DIM, ROWS))


def of_both(w: Writer, q: ir.Value, k: ir.Value, positions: ir.Value) -> Sequence[ir.Value]:
    product = per_head(w, w.op("Concat", q, k, axis=1), 2 * HEADS, positions)
    return w.ops("Split", 2, product, w.ints(HEADS, HEADS), axis=1)


def rows_taken(w: Writer, mask: ir.Value, table: ir.Value) -> ir.Value:
    """As many rows on both sides of the middle as the length needs."""
    near = w.op("Min", length_of(w, mask), w.ints(HALF_ROWS))
    low, high = (w.op(op, w.ints(HALF_ROWS), near) for op in ("Sub", "Add"))
    return w.op("Slice", table, low, high, w.ints(2))


def sliced(w: Writer, q: ir.Value, k: ir.Value, mask: ir.Value) -> Sequence[ir.Value]:
    return of_both(w, q, k, rows_taken(w, mask, w.random(2 * HEADS, HEAD_DIM, ROWS)))


def sliced_once(w: Writer, q: ir.Value, k: ir.Value, mask: ir.Value) -> Sequence[ir.Value]:
    def tables() -> ir.Value:
        return rows_taken(w, mask, w.random(max(LAYERS) * 2 * HEADS, HEAD_DIM, ROWS))

    used = w.__dict__.setdefault("layers", [])
    used.append(len(used))
    first = 2 * HEADS * used[-1]
    table = shared(w, mask, tables)
    own = w.op("Slice", table, w.ints(first), w.ints(first + 2 * HEADS), w.ints(0))
    return of_both(w, q, k, own)


CASES = (
    Case("two products, positions for each text", form(separate)),
    Case("one product, positions for each text", form(stacked)),
    Case("two products, one GEMM per head over all texts", form(separate_per_head)),
    Case("one product, one GEMM per head over all texts (tfc)", form(stacked_per_head)),
    Case("the same, rows sliced in each layer", form(sliced)),
    Case("the same, rows sliced once (tfc)", form(sliced_once)),
)


def main() -> None:
    """Build every form, print a table, write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    rows = []
    print("| form | kernels | waits | KiB written | of 2 layers |\n|---|--:|--:|--:|--:|")
    for case in CASES:
        row = measured(case)
        rows.append(asdict(row))
        shown = (row.kernels, row.waits, row.kib_written, row.of_two_layers)
        cells = [f"{cell:g}" if cell is not None else "–" for cell in shown]
        print(f"| {row.name} | {' | '.join(cells)} | {row.refusal}", flush=True)
    if asked.output:
        report = {
            "command": "python perf/position_forms.py",
            "versions": versions_of("tensorrt-rtx-cu13"),
            "results": rows,
        }
        asked.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
