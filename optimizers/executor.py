"""Run a graph to see what it computes: the judge of every pass.

ONNX Runtime's CPU provider without graph optimisations executes the standard. Where its kernels
take less than the standard allows, a copy of the graph is adapted first:

1. its `Attention` does not broadcast a mask over the queries (the standard does), so such a
   mask is expanded (`tfc.optimizers.lowering.attention_mask`);
2. it runs fp16 operations in fp32 and leaves out the roundings between them, so they are written
   out (`tfc.optimizers.precision.simulation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.graph import constant
from tfc.optimizers.lowering.attention_mask import ExpandAttentionMask
from tfc.optimizers.precision.simulation import has_half, simulate_half

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
    import onnxruntime

    session = session_from_model(model)
    names = [output.name for output in session.get_outputs()]
    wanted = [value.name for value in session.get_inputs()]
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = _FATAL
    return [
        dict(zip(names, session.run(None, {n: feed[n] for n in wanted}, quiet), strict=True))
        for feed in feeds
    ]


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


def session_from_model(model: ir.Model) -> Any:
    """ONNX Runtime's session of a copy of the graph, adapted as said above, not optimized."""
    import onnxruntime

    copy = model.clone()
    ExpandAttentionMask().apply(copy)
    if has_half(copy):
        simulate_half(copy)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL
    # A session judges a few small batches: weights packed for its kernels would cost more time,
    # and as much memory again, than they save, and so would threads that wait for work by turning.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    weights = _taken_out(copy)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    serialized = ir.to_proto(copy).SerializeToString()
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def _taken_out(model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    """The large weights by name; the model keeps references, so that it is small to serialize."""
    weights = {}
    for name, value in model.graph.initializers.items():
        array = constant(value)
        if array is None:
            continue
        if array.nbytes < _LARGE or array.dtype.kind not in "fiu":
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(array, name=name)
            continue
        array = np.ascontiguousarray(array)
        weights[name] = array
        assert value.const_value is not None
        value.const_value = ir.ExternalTensor(
            "handed over in memory",
            offset=0,
            length=array.nbytes,
            dtype=value.const_value.dtype,
            shape=ir.Shape(array.shape),
            name=name,
        )
    return weights
