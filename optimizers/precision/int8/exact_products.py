"""Integer products as exact ones: for judging a graph where uint8 times int8 saturates.

An engine's session converts the weights itself (`tfc.vnni`); the judge of graphs
(`tfc.optimizers.executor`) runs without ONNX Runtime's optimisations, of which that is one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, constant, nodes_of

_WEIGHT, _ZERO, _MOST_INPUTS = 1, 5, 6
_OFFSET = 128  # from int8 to uint8


def use_exact_products(model: ir.Model) -> None:
    """Give every `MatMulIntegerToFloat` its int8 weight as uint8, 128 higher, in place.

    The zero point is 128 then, so each product is the same number.
    """
    for node in nodes_of(model, "MatMulIntegerToFloat", "com.microsoft"):
        source = node.inputs[_WEIGHT]
        weight = constant(source)
        if source is None or weight is None or weight.dtype != np.int8:
            continue
        raised = (weight.astype(np.int16) + _OFFSET).astype(np.uint8)
        node.resize_inputs(max(len(node.inputs), _MOST_INPUTS))
        node.replace_input_with(_WEIGHT, add_constant(model, f"{source.name}.raised", raised))
        zero = add_constant(model, "raised_zero", np.array(_OFFSET, np.uint8))
        node.replace_input_with(_ZERO, zero)
