"""Which units of a site matter least, and the matrix that makes good what they gave.

A product y = x·W + b reads the units' channels x. Without some of them, the least-squares fit of
y on the others is another matrix and bias, from the second moments of x alone. What the fit
misses is the error of removing them: with C the covariance of x and P its inverse, removing the
channels R costs the trace of W_Rᵀ·(P_RR)⁻¹·W_R, the block form of the Optimal Brain Surgeon
(Hassibi and Stork, 1992). Units go in the order of that cost, a few at a time, and P and W are
brought up to date in between, so that of two units that say the same one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.executor import Feed, runner_of
from tfc.optimizers.graph import constant
from tfc.optimizers.precision.int8.observe import real_vectors, values_model
from tfc.optimizers.simplification.lanes import weight_of
from tfc.optimizers.simplification.removal import Kept
from tfc.optimizers.simplification.sites import HEADS, Site, bias_input, bias_of

Array = npt.NDArray[Any]
# Added to the variances, as a share of their mean, for each channel that a token must tell of: with
# few tokens the fit follows them too closely. On the demo's model 100 texts (1,200 tokens for 1,536
# channels) put the outputs of other texts 0.25 off with 0.1 in all, and 0.28 to 0.33 with less.
_RIDGE = 0.08
# Neurons go in groups of one of these sizes, which kernels like; at least so many groups.
_GROUPS = (64, 32, 16, 8, 4, 2, 1)
_LEAST_GROUPS = 8


@dataclass
class Moments:
    """Sums over tokens of a reader's input x `[channels]`, and of x·xᵀ."""

    tokens: int
    total: Array
    products: Array


@dataclass(frozen=True)
class Reading:
    """How a product reads its units: its matrix, bias, and the channels' mean and covariance.

    `bias` is None where there is none; then `mean` is 0, and the covariance is about 0.
    """

    matrix: Array
    bias: Array | None
    mean: Array
    covariance: Array


@dataclass(frozen=True)
class Path:
    """A site's units in the order in which they go.

    `groups[i]` go together, which adds `errors[i]` to the mean squared error of the product.
    """

    site: Site
    reading: Reading
    groups: tuple[tuple[int, ...], ...]
    errors: tuple[float, ...]

    def kept_after(self, groups: int, *, fitted: bool = True) -> Kept:
        """What is kept without the first so many groups; unless `fitted`, with the old matrix."""
        gone = {unit for group in self.groups[:groups] for unit in group}
        units = tuple(unit for unit in range(self.site.units) if unit not in gone)
        stay = np.isin(np.array(self.site.reads), np.array(units, dtype=int))
        if fitted:
            return _fitted(self.reading, units, stay)
        return Kept(units, self.reading.matrix[stay], self.reading.bias)


def moments_of(model: ir.Model, sites: list[Site], feeds: Sequence[Feed]) -> dict[str, Moments]:
    """Run the graph and sum up what each site's reader reads; padding is left out."""
    values = {site.name: site.reader.inputs[0] for site in sites}
    names = {name: str(value.name) for name, value in values.items() if value is not None}
    run = runner_of(values_model(model, list(names.values())))
    found: dict[str, Moments] = {}
    for feed in feeds:
        outputs = run(feed)
        for name, value in names.items():
            vectors = real_vectors(outputs[value], feed).astype(np.float64)
            width = vectors.shape[1]
            seen = found.setdefault(name, Moments(0, np.zeros(width), np.zeros((width, width))))
            seen.tokens += len(vectors)
            seen.total += vectors.sum(axis=0)
            seen.products += vectors.T @ vectors
    return found


def path_of(site: Site, seen: Moments) -> Path:
    """The order in which a site's units go."""
    reading = _reading(site, seen)
    reads, left = np.array(site.reads), np.arange(site.units)
    inverse, matrix = np.linalg.inv(reading.covariance), reading.matrix.astype(np.float64).copy()
    groups, errors = [], []
    size = group_size(site)
    while len(left):
        costs = np.array([_cost(inverse, matrix, reads == unit) for unit in left])
        chosen = left[np.argsort(costs, kind="stable")[:size]]
        left = np.setdiff1d(left, chosen)
        gone = np.isin(reads, chosen)
        pull = np.linalg.solve(inverse[np.ix_(gone, gone)], matrix[gone])
        errors.append(float((matrix[gone] * pull).sum()))
        groups.append(tuple(int(unit) for unit in np.sort(chosen)))
        away = inverse[:, gone]
        matrix -= away @ pull
        inverse = inverse - away @ np.linalg.solve(inverse[np.ix_(gone, gone)], away.T)
        inverse[np.ix_(gone, gone)] = np.eye(int(gone.sum()))
        stays = ~gone
        inverse[np.ix_(gone, stays)] = inverse[np.ix_(stays, gone)] = 0.0
        matrix[gone] = 0.0
    if not site.removable:
        groups, errors = groups[:-1], errors[:-1]
    return Path(site, reading, tuple(groups), tuple(errors))


def magnitude_path(path: Path) -> Path:
    """The same numbers of units, in the order of the size of their rows: what ignores the data."""
    site, reading = path.site, path.reading
    reads = np.array(site.reads)
    sizes = [float(np.square(reading.matrix[reads == unit]).sum()) for unit in range(site.units)]
    order = iter(np.argsort(sizes, kind="stable"))
    groups = tuple(tuple(sorted(int(next(order)) for _ in group)) for group in path.groups)
    return Path(site, reading, groups, path.errors)


def group_size(site: Site) -> int:
    """How many units go at a time."""
    if site.kind == HEADS:
        return 1
    return next(size for size in _GROUPS if size == 1 or site.units >= size * _LEAST_GROUPS)


def _reading(site: Site, seen: Moments) -> Reading:
    matrix, added = weight_of(site.reader), bias_of(site.reader)
    assert matrix is not None
    bias = constant(added.inputs[bias_input(added)]) if added is not None else None
    tokens = max(1, seen.tokens)
    mean = seen.total / tokens if bias is not None else np.zeros(len(matrix))
    covariance = seen.products / tokens - np.outer(mean, mean)
    size = float(np.trace(covariance)) / len(covariance) or 1.0
    channels = len(covariance)
    covariance += _RIDGE * channels / tokens * size * np.eye(channels)
    return Reading(matrix, bias, mean, covariance)


def _cost(inverse: Array, matrix: Array, gone: Array) -> float:
    places = np.flatnonzero(gone)
    if len(places) == 1:
        row = matrix[places[0]]
        return float(row @ row / inverse[places[0], places[0]])
    block = np.linalg.solve(inverse[np.ix_(places, places)], matrix[places])
    return float((matrix[places] * block).sum())


def _fitted(reading: Reading, units: tuple[int, ...], stay: Array) -> Kept:
    """The least-squares fit of the product on the channels that stay."""
    old = reading.matrix.astype(np.float64)
    kept, gone = np.flatnonzero(stay), np.flatnonzero(~stay)
    new = old[kept]
    if len(kept) and len(gone):
        across = reading.covariance[np.ix_(kept, gone)] @ old[gone]
        new = new + np.linalg.solve(reading.covariance[np.ix_(kept, kept)], across)
    bias = reading.bias
    if bias is not None:
        bias = bias.astype(np.float64) + reading.mean @ old - reading.mean[kept] @ new
    return Kept(units, new, bias)
