"""Does the exported graph say what the checkpoint says? Asked at once, on varied text.

The graph runs on ONNX Runtime's CPU provider without graph optimisations, so that a difference
is the exporter's. Each batch is tried as the tokenizer pads it, with the padding on the left,
with holes in the mask, and as a single row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from tfc.errors import CheckFailed, first_line
from tfc.optimizers.executor import session_from_model
from tfc.runtime.padding import Feed, padded_left, with_holes

# fp32 against fp32: the two sum in different orders. Measured on MiniLM and tiny random models:
# below 3e-6 of the output's largest value. A wrong graph is off by far more than 1e-5 of it.
RELATIVE_TOLERANCE = 1e-5
_BATCH = 8
# What goes wrong is raised; it need not be printed too.
_FATAL = 4
_REPORT = "Report this model: its graph is wrong, and no artifact was written"


@dataclass(frozen=True)
class ExportParity:
    """The largest difference seen, the output's largest value, and over how many values."""

    max_abs: float
    scale: float
    values: int

    @property
    def relative(self) -> float:
        """`max_abs` as a share of the output's scale."""
        return self.max_abs / self.scale if self.scale else self.max_abs

    def as_json(self) -> dict[str, float]:
        """The numbers as they stand in the manifest."""
        return {
            "max_abs": self.max_abs,
            "scale": self.scale,
            "values": self.values,
            "relative": self.relative,
            "tolerance": RELATIVE_TOLERANCE,
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
        super().__init__(what, where=where, fix=_REPORT)
        self.evidence = evidence


def check_export(
    module: torch.nn.Module, model: Path, feeds: Sequence[Feed], where: str
) -> ExportParity:
    """Run both on the same inputs and compare every value.

    Masked positions of per-token outputs count too: a graph that is right computes them alike.

    Raises:
        GraphDiffers: the largest difference is above `RELATIVE_TOLERANCE` of the output's scale,
            one of the two is not finite, or the graph does not run.
    """
    session = session_from_model(ir.load(model))
    parity = ExportParity(0.0, 0.0, 0)
    worst: Evidence | None = None
    for feed in feeds:
        expected = _expected(module, feed)
        try:
            got = _run(session, feed)
        except Exception as error:  # ONNX Runtime's errors have no common root
            evidence = Evidence(module, model, feed, expected, None, None)
            raise GraphDiffers(_not_run(feed, error), where, evidence) from error
        before = parity.max_abs
        for value, array in zip(expected, got, strict=True):
            parity = _worse(parity, value, array)
        if worst is None or not parity.max_abs <= before:
            worst = Evidence(module, model, feed, expected, got, parity)
    if worst is not None and not parity.relative <= RELATIVE_TOLERANCE:
        what = (
            f"the exported graph differs from the checkpoint by {parity.max_abs:.3g} on outputs "
            f"of up to {parity.scale:.3g}, and {RELATIVE_TOLERANCE:.0e} of that is allowed"
        )
        raise GraphDiffers(what, where, worst)
    return parity


def feeds_from_texts(
    tokenizer: Any, texts: Sequence[str], names: Sequence[str], max_length: int
) -> list[Feed]:
    """Model inputs for the texts: right padding, left padding, holes in the mask, single rows."""
    feeds: list[Feed] = []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        feed = _encode(tokenizer, batch, names, max_length)
        feeds += [feed, padded_left(feed), with_holes(feed)]
    feeds.append(_encode(tokenizer, [max(texts, key=len)], names, max_length))
    feeds.append({name: array[:1, :1] for name, array in feeds[0].items()})
    return feeds


def _expected(module: torch.nn.Module, feed: Feed) -> list[npt.NDArray[Any]]:
    with torch.no_grad():
        given = module(*(torch.from_numpy(array) for array in feed.values()))
    return [t.detach().numpy() for t in (given if isinstance(given, tuple) else (given,))]


def _run(session: Any, feed: Feed) -> list[npt.NDArray[Any]]:
    import onnxruntime

    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = _FATAL
    return [np.asarray(array) for array in session.run(None, feed, quiet)]


def _not_run(feed: Feed, error: Exception) -> str:
    reason = first_line(error)
    reason = reason.rpartition("Status Message: ")[2]
    name, first = next(iter(feed.items()))
    shape = "×".join(map(str, first.shape))
    return f"the exported graph does not run on {name} of {shape}: {reason}"


def _worse(parity: ExportParity, expected: npt.NDArray[Any], got: npt.NDArray[Any]) -> ExportParity:
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


def _encode(tokenizer: Any, texts: list[str], names: Sequence[str], max_length: int) -> Feed:
    encoded = tokenizer(
        texts,
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="np",
        padding_side="right",
        return_token_type_ids="token_type_ids" in names,
    )
    return {name: encoded[name].astype(np.int64) for name in names}
