"""How fast this machine multiplies matrices: what a model's arithmetic is compared with."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Large enough that starting the threads and packing the factors do not show.
SIZE = 1536
_RUNS = 8

Square = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MatmulPeak:
    """The most operations per second of an fp32 matrix product on the CPU, and who reached it."""

    flops_per_second: float
    library: str


def matmul_peak(threads: int) -> MatmulPeak:
    """The fastest of `_RUNS` products of two square fp32 matrices, by the libraries at hand.

    Which library is fastest depends on the machine, and none of them need reach what the machine
    can do: it is the peak that was measured, not the one on a data sheet.

    Args:
        threads: CPU threads; numpy takes its own number.
    """
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIZE, SIZE), np.float32) for _ in range(2))
    products: dict[str, Callable[[], Any]] = {"numpy": lambda: left @ right}
    if importlib.util.find_spec("torch") is not None:
        products["oneDNN"] = _by_onednn(left, threads)
    if importlib.util.find_spec("onnx_ir") is not None:
        products["ONNX Runtime"] = _by_onnxruntime(left, right, threads)
    seconds = {library: _fastest(product) for library, product in products.items()}
    library = min(seconds, key=lambda name: seconds[name])
    return MatmulPeak(2 * SIZE**3 / seconds[library], library)


def _by_onednn(left: Square, threads: int) -> Callable[[], Any]:
    """PyTorch's own product is of another library, which is slow on some processors."""
    import torch
    from torch.utils import mkldnn

    torch.set_num_threads(threads)
    linear = mkldnn.to_mkldnn(torch.nn.Linear(SIZE, SIZE, bias=False).eval())
    rows = torch.from_numpy(left).to_mkldnn()

    def product() -> Any:
        with torch.inference_mode():
            return linear(rows)

    return product


def _by_onnxruntime(left: Square, right: Square, threads: int) -> Callable[[], Any]:
    import onnx_ir as ir
    import onnxruntime

    x, y = (ir.val(name, ir.DataType.FLOAT, [SIZE, SIZE]) for name in ("x", "y"))
    weight = ir.val("w", const_value=ir.tensor(right, name="w"))
    node = ir.Node("", "MatMul", [x, weight], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": 21})
    data = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": left})


def _fastest(product: Callable[[], Any]) -> float:
    times = []
    for _ in range(_RUNS):
        begun = time.perf_counter()
        product()
        times.append(time.perf_counter() - begun)
    return min(times)
