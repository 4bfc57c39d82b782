"""What a batch costs: a launch, so much for each token, and so much for each pair of tokens.

A batch of r rows of w tokens costs launch + r·(a·w + c·w²): the products with weights grow with the
tokens, those of attention with their square. On a CPU the three numbers are fitted to runs of the
engine. For TensorRT, which builds where it may not run, they are counted: the FLOPs of the graph,
and for the launch a usual GPU's time between kernels.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.manifest import MODEL
from tfc.runtime.backends.base import Profile, Range, Runner
from tfc.runtime.batching import Limits
from tfc.steps.benchmark.workloads import flops_of_rows, full_batch

SECONDS, FLOPS, TOKENS = "seconds, measured", "FLOPs, counted", "tokens"
# Kernels for each matrix product or attention: 54 for the 30 of MiniLM (tests, TensorRT-RTX).
_KERNELS_PER_PRODUCT = 1.8
# From the end of one small kernel to the start of the next on a data centre GPU: microseconds,
# whatever they compute. Not measured here.
_KERNEL_SECONDS = 2e-6
# What such a GPU computes meanwhile: about half of what it can in fp16. Not measured here.
_FLOPS_PER_SECOND = 3e14
# Runs of each measured batch; the fastest counts, for what else the machine does only adds.
_RUNS = 3
# Lengths that are measured, as shares of the texts that are shorter.
_QUANTILES = (0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Curve:
    """The cost of a batch, in `unit`.

    `launch` is for a batch, `token` for each of its tokens, `pair` for each token of each token.
    """

    launch: float
    token: float
    pair: float
    unit: str

    def row(self, width: int) -> float:
        """One row of so many tokens."""
        return self.token * width + self.pair * width * width

    def batch(self, rows: int, width: int) -> float:
        """A batch of so many rows of so many tokens."""
        return self.launch + rows * self.row(width)

    def launch_tokens(self, width: int) -> int:
        """How many tokens, in rows of `width`, cost as much as a launch."""
        one = self.row(width) / width
        return int(self.launch / one) if one else 0


def counted_curve(artifact: Artifact, products: int | None) -> Curve:
    """From the FLOPs of the exported graph, which has so many matrix products and attentions.

    Where they cannot be counted, cost is the number of tokens.
    """
    flops = flops_of_rows(artifact)
    short, long = 64, 128
    first, second = flops(short), flops(long)
    if first is None or second is None or products is None:
        return Curve(0.0, 1.0, 0.0, TOKENS)
    pair = max(0.0, (second / long - first / short) / (long - short))
    token = first / short - pair * short
    launch = products * _KERNELS_PER_PRODUCT * _KERNEL_SECONDS * _FLOPS_PER_SECOND
    return Curve(launch, token, pair, FLOPS)


def products_of_artifact(artifact: Artifact) -> int | None:
    """How many matrix products and attentions the exported graph has."""
    import onnx_ir as ir

    from tfc.steps.flops import products_of_graph

    one = Range(1, 1, 1)
    model = ir.load(artifact.file(f"{MODEL}.onnx"))
    return len(products_of_graph(model, Profile(one, one))) or None


def measured_curve(
    artifact: Artifact, runner: Runner, limits: Limits, lengths: Sequence[int]
) -> Curve:
    """Fitted to runs of a loaded engine: full batches, and single rows, of some of the lengths.

    Args:
        artifact: gives the tokens.
        runner: the engine.
        limits: how large a full batch is.
        lengths: those of the texts, in ascending order.
    """
    widths = {lengths[int(share * (len(lengths) - 1))] for share in _QUANTILES}
    sizes = {(rows, width) for width in widths for rows in (1, limits.most_rows(width))}
    points = [
        (rows, width, _fastest(artifact, runner, rows, width)) for rows, width in sorted(sizes)
    ]
    launch, token, pair = _fitted(points)
    return Curve(launch, token, pair, SECONDS)


def _fastest(artifact: Artifact, runner: Runner, rows: int, width: int) -> float:
    feed = full_batch(artifact, rows, width)
    runner.run(feed)
    times = []
    for _ in range(_RUNS):
        begun = time.perf_counter()
        runner.run(feed)
        times.append(time.perf_counter() - begun)
    return min(times)


def _fitted(points: Sequence[tuple[int, int, float]]) -> tuple[float, float, float]:
    """Least squares of the relative error, none of the three below zero.

    With three numbers every choice of those that are zero can be tried.
    """
    sizes = np.array([[1.0, rows * width, rows * width * width] for rows, width, _ in points])
    seconds = np.array([point[2] for point in points])
    scaled = sizes / seconds[:, None]
    best: tuple[float, npt.NDArray[np.float64]] | None = None
    for kept in itertools.product((True, False), repeat=3):
        found = np.zeros(3)
        columns = np.array(kept)
        if columns.any():
            found[columns] = np.linalg.lstsq(scaled[:, columns], np.ones(len(points)), rcond=None)[
                0
            ]
        error = float(np.sum((scaled @ found - 1.0) ** 2))
        if (found >= 0).all() and (best is None or error < best[0]):
            best = error, found
    assert best is not None  # nothing at all is a choice, too
    launch, token, pair = map(float, best[1])
    return launch, token, pair
