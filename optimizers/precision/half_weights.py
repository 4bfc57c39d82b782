"""Weights stored in fp16, arithmetic in fp32: what fp16 means where no fp16 kernels exist.

ONNX Runtime's CPU provider has no half-precision matrix products on x86: an fp16 graph is cast
to fp32 node by node, and is slower than the fp32 graph. So for it the matrices are stored as
fp16 with one `Cast` each, which the runtime folds when it loads the file: half the size, the
speed of fp32, and the rounding of fp16 weights.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, constant, set_type

_HALF_MAX = float(np.finfo(np.float16).max)
_MATRIX_RANK = 2


def half_weights_from_fp32(model: ir.Model) -> tuple[ir.Model, int]:
    """The graph with its matrices in fp16, and how many there are. The given one is unchanged.

    Vectors (biases, norms) are small and stay in fp32, and so does a matrix that fp16 cannot hold.
    """
    model = model.clone()
    stored = 0
    for name, value in list(model.graph.initializers.items()):
        array = constant(value)
        if array is None or array.dtype != np.float32 or array.ndim < _MATRIX_RANK:
            continue
        if float(np.abs(array).max(initial=0.0)) > _HALF_MAX:
            continue
        half = add_constant(model, f"{name}.fp16", array.astype(np.float16))
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{name}_as_FLOAT")
        out = cast.outputs[0]
        set_type(out, ir.DataType.FLOAT, value.shape)
        model.graph.insert_before(model.graph[0], [cast])
        ir.convenience.replace_all_uses_with(value, out)
        del model.graph.initializers[name]
        stored += 1
    return model, stored
