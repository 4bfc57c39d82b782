"""Run a graph to see what it computes: the judge of every pass.

ONNX Runtime's CPU provider without graph optimisations executes the standard. Where its kernels
take less than the standard allows, a copy of the graph is adapted first:

1. its `Attention` does not broadcast a mask over the queries (the standard does), so such a
   mask is expanded (`tfc.optimizers.lowering.attention_mask`);
2. it runs fp16 operations in fp32 and leaves out the roundings between them, so they are written
   out (`tfc.optimizers.precision.simulation`);
3. its products of uint8 and int8 saturate on x86 without VNNI, so others are used there
   (`tfc.optimizers.precision.int8.exact_products`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.graph import constant, set_type
from tfc.optimizers.lowering.attention_mask import ExpandAttentionMask
from tfc.optimizers.precision.int8.exact_products import use_exact_products
from tfc.optimizers.precision.simulation import has_half, simulate_half
from tfc.optimizers.stand_ins import write_out_computed
from tfc.vnni import integer_products_saturate

Feed = Mapping[str, npt.NDArray[Any]]
# An invalid graph raises; its error need not be printed too.
_FATAL = 4
# Weights from this many bytes on are handed to ONNX Runtime as they are, not serialized.
_LARGE = 1 << 12

Outputs = dict[str, npt.NDArray[Any]]


def outputs_of(model: ir.Model, feeds: Sequence[Feed]) -> list[Outputs]:
    """The graph's outputs for each feed. The model is not changed.

    Raises:
        onnxruntime's own exceptions, for a graph that is not valid.
    """
    run = runner_of(model)
    return [run(feed) for feed in feeds]


def runner_of(model: ir.Model) -> Callable[[Feed], Outputs]:
    """A function that runs the graph; what a feed has beyond the graph's inputs is ignored.

    Raises:
        onnxruntime's own exceptions, for a graph that is not valid; the function raises them for
        inputs on which it does not run.
    """
    import onnxruntime

    session, weights = _session_and_weights(model)
    names = [output.name for output in session.get_outputs()]
    wanted = [value.name for value in session.get_inputs() if value.name not in weights]
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = _FATAL

    def run(feed: Feed) -> Outputs:
        given = {**weights, **{name: feed[name] for name in wanted}}
        return dict(zip(names, session.run(None, given, quiet), strict=True))

    return run


def relative_difference(expected: Sequence[Outputs], got: Sequence[Outputs]) -> float:
    """The largest difference over all outputs, as a share of each output's largest value.

    Infinite where shapes differ or a value is not finite on one side only.
    """
    worst = 0.0
    for name in expected[0]:
        scale = max(_largest(e[name]) for e in expected)
        for e, g in zip(expected, got, strict=True):
            worst = max(worst, _difference(e[name], g[name]) / (scale or 1.0))
    return worst


def _difference(expected: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    if expected.shape != got.shape:
        return float("inf")
    if expected.dtype.kind != "f" or got.dtype.kind != "f":
        expected, got = expected.astype(np.float64), got.astype(np.float64)
    if _is_finite(expected) and _is_finite(got):
        return _largest(expected - got)
    if not np.array_equal(np.isfinite(expected), np.isfinite(got)):
        return float("inf")
    return _largest(_finite(expected) - _finite(got))


def _largest(array: npt.NDArray[Any]) -> float:
    """The largest absolute value, without a copy: an output may be as wide as a vocabulary."""
    if array.dtype.kind not in "fi":
        array = array.astype(np.float64)
    if not _is_finite(array):
        array = _finite(array)
    return max(float(array.max(initial=0)), -float(array.min(initial=0)))


def _is_finite(array: npt.NDArray[Any]) -> bool:
    """Whether all values are numbers; the extremes tell, for NaN is passed on by both."""
    return bool(np.isfinite(array.max(initial=0)) and np.isfinite(array.min(initial=0)))


def _finite(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(np.isfinite(array), array, 0)


def _session_and_weights(model: ir.Model) -> tuple[Any, Outputs]:
    """ONNX Runtime's session of a copy of the graph, adapted as said above, not optimized.

    The large weights are inputs of that session, to be given in every run: what it has as
    initializers it copies when it starts, and once more for its kernels.
    """
    import onnxruntime

    copy = model.clone()
    ExpandAttentionMask().apply(copy)
    if has_half(copy):
        simulate_half(copy)
    if integer_products_saturate():
        use_exact_products(copy)
    write_out_computed(copy)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL
    # Threads that wait by spinning take more time from others than these short runs save.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Nodes run in the graph's own order: what is computed from weights alone would otherwise come
    # first, of all layers, and be in memory at once.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    weights = _taken_out(copy)
    serialized = ir.to_proto(copy).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    return session, weights


def _taken_out(model: ir.Model) -> Outputs:
    """The large weights by name, which become inputs of the model; it is small to serialize."""
    weights = {}
    for name, value in list(model.graph.initializers.items()):
        tensor, array = value.const_value, constant(value)
        if tensor is None or array is None:
            continue
        if array.nbytes < _LARGE or array.dtype.kind not in "fiu":
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(array, name=name)
            continue
        weights[name] = np.ascontiguousarray(array)
        set_type(value, tensor.dtype, ir.Shape(array.shape))
        del model.graph.initializers[name]
        value.const_value = None
        if not value.is_graph_input():
            model.graph.inputs.append(value)
    return weights
