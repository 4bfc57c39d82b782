"""What every parity check of an export shares: the graph as it is on ONNX Runtime, and the verdict.

The graph runs on ONNX Runtime's CPU provider without graph optimisations, so that a difference
is the exporter's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tfc.errors import CheckFailed, first_line
from tfc.exporter.rounding import MOST_TOLERANCE, tolerance_from_rounding
from tfc.runtime.padding import Feed

# fp32 against fp32: the two sum in different orders. Measured on MiniLM and tiny random models:
# below 3e-6 of the output's largest value. A wrong graph is off by far more than 1e-5 of it.
RELATIVE_TOLERANCE = 1e-5
_FIX = "Report this model: its graph is wrong, and nothing was written"
# What goes wrong is raised; it need not be printed too.
_FATAL = 4


@dataclass(frozen=True)
class ExportParity:
    """The largest difference seen, the output's largest value, and over how many values."""

    max_abs: float
    scale: float
    values: int
    tolerance: float = RELATIVE_TOLERANCE

    @property
    def relative(self) -> float:
        """`max_abs` as a share of the output's scale."""
        return self.max_abs / self.scale if self.scale else self.max_abs

    def as_json(self) -> dict[str, float | bool]:
        """The numbers as they stand in the manifest."""
        return {
            "max_abs": self.max_abs,
            "scale": self.scale,
            "values": self.values,
            "relative": self.relative,
            "tolerance": self.tolerance,
            "from_rounding": self.tolerance > RELATIVE_TOLERANCE,
        }


@dataclass(frozen=True)
class Evidence:
    """What shows that a graph is wrong; `got` and `parity` are None where it did not run."""

    module: torch.nn.Module
    model: Path
    feed: Feed
    expected: list[npt.NDArray[Any]]
    got: list[npt.NDArray[Any]] | None
    parity: ExportParity | None


class GraphDiffers(CheckFailed):
    """The graph does not say what the checkpoint says, with the inputs that show it."""

    def __init__(self, what: str, where: str, evidence: Evidence) -> None:
        super().__init__(what, where=where, fix=_FIX)
        self.evidence = evidence


def check_outputs(
    module: torch.nn.Module, model: Path, feeds: Sequence[Feed], where: str
) -> ExportParity:
    """Run both on the same inputs and compare every value.

    Masked positions of per-token outputs count too: a graph that is right computes them alike.

    Raises:
        GraphDiffers: the largest difference is above `RELATIVE_TOLERANCE` of the output's scale
            and above what PyTorch's own rounding explains, one of the two is not finite, or the
            graph does not run.
    """
    session = session_from_onnx(model, where)
    parity = ExportParity(0.0, 0.0, 0)
    worst: Evidence | None = None
    for feed in feeds:
        expected = _expected(module, feed)
        try:
            got = outputs_of(session, feed, where)
        except CheckFailed as error:
            evidence = Evidence(module, model, feed, expected, None, None)
            raise GraphDiffers(error.what, where, evidence) from error
        before = parity.max_abs
        for value, array in zip(expected, got, strict=True):
            parity = worse(parity, value, array)
        if worst is None or not parity.max_abs <= before:
            worst = Evidence(module, model, feed, expected, got, parity)
    if RELATIVE_TOLERANCE < parity.relative <= MOST_TOLERANCE:
        wider = tolerance_from_rounding(module, feeds, parity.scale) or RELATIVE_TOLERANCE
        parity = dataclasses.replace(parity, tolerance=max(wider, RELATIVE_TOLERANCE))
    check_within_tolerance(parity, where, worst)
    return parity


def check_within_tolerance(
    parity: ExportParity, where: str, evidence: Evidence | None = None
) -> None:
    """Refuse a difference above the tolerance (a share of the output's scale), or without a value.

    Raises:
        CheckFailed: the graph does not say what the checkpoint says; with evidence, GraphDiffers.
    """
    if parity.relative <= parity.tolerance:
        return
    what = (
        f"the exported graph differs from the checkpoint by {parity.max_abs:.3g} on outputs "
        f"of up to {parity.scale:.3g}, and {parity.tolerance:.0e} of that is allowed"
    )
    if evidence is None:
        raise CheckFailed(what, where=where, fix=_FIX)
    raise GraphDiffers(what, where, evidence)


def worse(parity: ExportParity, expected: npt.NDArray[Any], got: npt.NDArray[Any]) -> ExportParity:
    """The verdict with one more pair of outputs taken in."""
    if expected.dtype.kind in "bui":  # neither booleans nor unsigned integers can be subtracted
        expected, got = expected.astype(np.float64), got.astype(np.float64)
    same = expected.shape == got.shape
    difference = float(np.abs(expected - got).max()) if same else float("inf")
    if not (np.isfinite(expected).all() and same and np.isfinite(got).all()):
        difference = float("inf")
    return ExportParity(
        max(parity.max_abs, difference),
        max(parity.scale, float(np.abs(expected).max())),
        parity.values + expected.size,
    )


def _expected(module: torch.nn.Module, feed: Feed) -> list[npt.NDArray[Any]]:
    with torch.no_grad():
        given = module(*(torch.from_numpy(array) for array in feed.values()))
    return [t.detach().numpy() for t in (given if isinstance(given, tuple) else (given,))]


def session_from_onnx(model: Path | bytes, where: str) -> Any:
    """ONNX Runtime on the CPU, running the graph as it stands.

    Raises:
        CheckFailed: ONNX Runtime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common root
        raise CheckFailed(
            f"ONNX Runtime refuses the exported graph: {first_line(error)}", where=where, fix=_FIX
        ) from error


def outputs_of(session: Any, feed: Feed, where: str) -> list[npt.NDArray[Any]]:
    """What the graph gives for these inputs, in its order.

    Raises:
        CheckFailed: it does not run.
    """
    import onnxruntime

    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = _FATAL
    try:
        return [np.asarray(output) for output in session.run(None, feed, quiet)]
    except Exception as error:  # ONNX Runtime's errors have no common root
        reason = first_line(error).rpartition("Status Message: ")[2]
        name, array = next(iter(feed.items()))
        shape = "×".join(map(str, array.shape))
        raise CheckFailed(
            f"the exported graph does not run on {name} of {shape}: {reason}",
            where=where,
            fix=_FIX,
        ) from error
