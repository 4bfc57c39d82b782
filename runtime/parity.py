"""Compare what an engine gives with what PyTorch gives: numbers, tolerance, verdict.

numpy only; who runs PyTorch is elsewhere (`tfc.steps.reference`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# fp32 against fp32 differs by the order of the sums: MiniLM on ONNX Runtime's CPU provider is at
# 3e-7 of the output's scale. A swapped head, a dropped bias or a wrong scale is above 1e-2.
FP32_TOLERANCE = 1e-4
# An engine in half precision may be this many times as far from fp32 PyTorch (root mean square)
# as PyTorch itself is when it runs in half: it rounds as often, in other places.
NOISE_FACTOR = 3.0
# A single value strays further than the mean; over 10^5 values the largest is about this many
# root mean squares away when the errors are rounding.
PEAK_TO_RMS = 8.0


@dataclass(frozen=True)
class Parity:
    """One output compared over all rows.

    `scale` is the largest value of the reference, `rms` the root mean square difference,
    `cosine` the least cosine of any row, `argmax_agreement` the share of rows (or tokens) whose
    largest value is at the same place, `flips_beyond_noise` those of the others whose reference
    margin is more than twice the allowed difference.
    """

    max_abs: float
    mean_abs: float
    rms: float
    scale: float
    cosine: float
    argmax_agreement: float
    flips_beyond_noise: int
    vectors: int

    def as_json(self) -> dict[str, float]:
        """The numbers as they stand in the manifest."""
        return {name: float(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from fp32 PyTorch, in absolute terms, and where that is from.

    `agreement` is the least agreement in what the model says; None where numbers alone decide.
    """

    rms: float
    max_abs: float
    source: str
    agreement: float | None = None

    def as_json(self) -> dict[str, float]:
        """The numbers as they stand in the manifest."""
        found = {"rms": self.rms, "max_abs": self.max_abs}
        return found if self.agreement is None else {**found, "agreement": self.agreement}

    def at_least(self, allowed: float) -> Tolerance:
        """The same, with so much allowed at least."""
        wider = max(self.rms, allowed), max(self.max_abs, allowed)
        return replace(self, rms=wider[0], max_abs=wider[1])


def tolerance_of(
    expected: Sequence[Array], floor: Sequence[Array] | None, precision: str
) -> Tolerance:
    """The tolerance for an engine of a precision.

    Args:
        expected: fp32 PyTorch's vectors.
        floor: the vectors of PyTorch in the engine's own precision; None for fp32.
        precision: the engine's precision.
    """
    scale = max((float(np.abs(e).max(initial=0.0)) for e in expected), default=0.0) or 1.0
    least = FP32_TOLERANCE * scale
    if floor is None:
        source = f"{FP32_TOLERANCE:g} of the largest value"
        return Tolerance(least, least, source)
    noise = _differences(expected, floor)
    rms = max(NOISE_FACTOR * float(np.sqrt(np.mean(noise**2))), least)
    peak = max(NOISE_FACTOR * float(noise.max(initial=0.0)), PEAK_TO_RMS * rms)
    source = f"{NOISE_FACTOR:g} × the error of PyTorch itself in {precision}"
    return Tolerance(rms, peak, source)


def parity_of(expected: Sequence[Array], got: Sequence[Array], tolerance: Tolerance) -> Parity:
    """Compare two lists of arrays `[..., values]`, whose last axis is a vector each.

    The arrays of a list may differ in the length of their vectors.
    """
    pairs = [_vectors(e, g) for e, g in zip(expected, got, strict=True)]
    difference = np.concatenate([_finite_difference(*pair).reshape(-1) for pair in pairs])
    flips = [_flips(*pair, tolerance.max_abs) for pair in pairs]
    vectors = sum(len(reference) for reference, _ in pairs)
    return Parity(
        max_abs=float(difference.max(initial=0.0)),
        mean_abs=float(difference.mean()),
        rms=float(np.sqrt(np.mean(difference**2))),
        scale=max(float(np.abs(reference).max(initial=0.0)) for reference, _ in pairs),
        cosine=_least([_least_cosine(*pair) for pair in pairs]),
        argmax_agreement=1.0 - sum(changed for changed, _ in flips) / vectors,
        flips_beyond_noise=sum(beyond for _, beyond in flips),
        vectors=vectors,
    )


def failures(parity: Parity, tolerance: Tolerance) -> list[str]:
    """Why the engine fails; empty if it passes."""
    reasons = []
    if not parity.rms <= tolerance.rms:
        reasons.append(f"rms difference {parity.rms:.3g} above {tolerance.rms:.3g}")
    if not parity.max_abs <= tolerance.max_abs:
        reasons.append(f"largest difference {parity.max_abs:.3g} above {tolerance.max_abs:.3g}")
    if parity.flips_beyond_noise:
        reasons.append(f"{parity.flips_beyond_noise} decisions changed beyond rounding")
    return reasons


def _vectors(expected: Array, got: Array) -> tuple[Array, Array]:
    """Both as float64 `[vectors, values]`."""
    shape = (-1, expected.shape[-1])
    return expected.reshape(shape).astype(np.float64), got.reshape(shape).astype(np.float64)


def _finite_difference(reference: Array, engine: Array) -> Array:
    difference = np.abs(reference - engine)
    return np.where(np.isfinite(engine), difference, np.inf)


def _least(cosines: list[float]) -> float:
    return float("nan") if any(np.isnan(c) for c in cosines) else min(cosines, default=1.0)


def _flips(reference: Array, engine: Array, allowed: float) -> tuple[int, int]:
    flipped = reference.argmax(axis=1) != engine.argmax(axis=1)
    if reference.shape[1] < 2:
        return int(flipped.sum()), 0
    top = np.sort(reference, axis=1)[:, -2:]
    clear = (top[:, 1] - top[:, 0]) > 2 * allowed
    return int(flipped.sum()), int((flipped & clear).sum())


def _least_cosine(reference: Array, engine: Array) -> float:
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(engine, axis=1)
    if not np.isfinite(norms).all():
        return float("nan")
    products = (reference * engine).sum(axis=1)
    cosines = np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), 1.0)
    return float(cosines.min(initial=1.0))


def _differences(expected: Sequence[Array], got: Sequence[Array]) -> Array:
    pairs = zip(expected, got, strict=True)
    return np.concatenate([np.abs(e.astype(np.float64) - g).reshape(-1) for e, g in pairs])
