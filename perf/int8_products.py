"""How fast ONNX Runtime's CPU kernels multiply a `[4096, in]` activation by a constant matrix.

fp32, and every way to do it in int8, quantising included. One thread, by its CPU time, the least
of calls that take turns, so that other work on the machine disturbs little.

    python perf/int8_products.py -o perf/results/int8_products.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime

from tfc.optimizers.precision.int8.cpu_static import uint8_scale
from tfc.optimizers.precision.int8.ranges import Range
from tfc.optimizers.precision.int8.weights import quantized_weight
from tfc.steps.record import versions_of

ROWS, ROUNDS = 4096, 12
WIDTHS = ((384, 384), (384, 1152), (384, 1536), (1536, 384), (768, 3072))
PRODUCT = "com.microsoft.MatMulIntegerToFloat"
FIXED = f"q = QuantizeLinear(x, xs, xz) y = {PRODUCT}(q, w8, xs, ws, xz, w0, b)"
FORMS = {
    "fp32": "p = MatMul(x, w) y = Add(p, b)",
    "uint8 × int8": FIXED,
    "uint8 × uint8": FIXED.replace("w8", "wu").replace("w0", "wu0"),
    "int8 × int8": FIXED.replace("xs", "xs8").replace("xz", "xz8"),
    "dynamic": f"q, s, z = DynamicQuantizeLinear(x) y = {PRODUCT}(q, w8, s, ws, z, w0, b)",
    "dynamic, one op": "y = com.microsoft.DynamicQuantizeMatMul(x, w8, ws, w0, b)",
    "QGemm": "q = QuantizeLinear(x, xs, xz) y = com.microsoft.QGemm(q, xs, xz, w8, ws, w0, b32)",
}


def values_of(inner: int, width: int) -> dict[str, np.ndarray]:
    """Random factors, and what the forms need of them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, inner)).astype(np.float32)
    w = rng.standard_normal((inner, width)).astype(np.float32) / 20
    b = rng.standard_normal(width).astype(np.float32)
    made = quantized_weight(w, axis=1)
    scale, zero = uint8_scale(Range(float(x.min()), float(x.max())))
    return {
        "x": x, "w": w, "b": b, "w8": made.values, "ws": made.scales, "xs": scale, "xz": zero,
        "wu": (made.values.astype(np.int16) + 128).astype(np.uint8),
        "w0": np.zeros(width, np.int8), "wu0": np.full(width, 128, np.uint8),
        "xs8": np.array(np.abs(x).max() / 127, np.float32), "xz8": np.array(0, np.int8),
        "b32": np.rint(b / (scale * made.scales)).astype(np.int32),
    }  # fmt: skip


def session(form: str, values: dict[str, np.ndarray]) -> Any:
    """One product as a graph, on one thread."""
    inner, width = values["w"].shape
    text = f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
      g (float[{ROWS},{inner}] x) => (float[{ROWS},{width}] y) {{ {FORMS[form]} }}"""
    model = onnx.parser.parse_model(text)
    read = {name for node in model.graph.node for name in node.input}
    given = [(name, array) for name, array in values.items() if name in read and name != "x"]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in given)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def measured(inner: int, width: int) -> dict[str, Any]:
    """Every form of one product: its speed, and its error as a share of the result's norm."""
    values = values_of(inner, width)
    feed = {"x": values["x"]}
    sessions = {form: session(form, values) for form in FORMS}
    exact = sessions["fp32"].run(None, feed)[0]
    least = dict.fromkeys(sessions, float("inf"))
    for _ in range(ROUNDS):
        for form, one in sessions.items():
            begun = time.thread_time()
            one.run(None, feed)
            least[form] = min(least[form], time.thread_time() - begun)
    found = {}
    for form, taken in least.items():
        off = np.linalg.norm(sessions[form].run(None, feed)[0] - exact) / np.linalg.norm(exact)
        found[form] = {
            "milliseconds": taken * 1e3,
            "gflop_per_second": 2e-9 * ROWS * inner * width / taken,
            "times_fp32": least["fp32"] / taken,
            "error": float(off),
        }
    return found


def main() -> None:
    """Measure, print, and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    products = {}
    for inner, width in WIDTHS:
        name = f"{ROWS}×{inner}×{width}"
        products[name] = measured(inner, width)
        ratios = "  ".join(f"{f} {one['times_fp32']:.2f}" for f, one in products[name].items())
        print(f"{name}: {ratios}", flush=True)
    report = {
        "command": "python perf/int8_products.py",
        "machine": f"{platform.machine()}, CPU time of one thread",
        "versions": versions_of("onnxruntime-gpu", "onnxruntime"),
        "products": products,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
