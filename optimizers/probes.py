"""Inputs for a graph of which nothing is known but its signature."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.errors import first_line
from tfc.manifest import PAST, SEQUENCE, TOTAL
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.graph import constant, is_op, known_shape
from tfc.optimizers.stand_ins import stand_ins_of

Feed = dict[str, npt.NDArray[np.generic]]

# Sizes that dynamic axes take in turn; primes, so that a product tells its factors.
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23)
# Sizes of the ledger's batches, tried where the axes are called what exporters call them.
_BATCH, _SEQUENCE, _FEW = 3, 16, 8


def dynamic_axes(model: ir.Model) -> list[str]:
    """The names of the inputs' dynamic axes, in order; unnamed ones are called by their place."""
    names: dict[str, None] = {}
    for value in model.graph.inputs:
        for place, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int):
                names[str(dim.value) if dim.value else f"{value.name}.{place}"] = None
    return list(names)


def sizes_of_probe(axes: list[str], number: int) -> dict[str, int]:
    """Distinct sizes for the axes, others in every probe; sums of others are their sums."""
    sizes = {axis: _PRIMES[(number + i) % len(_PRIMES)] for i, axis in enumerate(axes)}
    return with_sums(sizes)


def with_sums(sizes: Mapping[str, int]) -> dict[str, int]:
    """The same sizes, with those axes corrected that are the sum of two others.

    The mask of a decoder spans what was read before and what is new: `total` in our own graphs;
    other exporters write the sum into the name, `past_sequence_length + sequence_length`.
    """
    found = dict(sizes)
    for axis in sizes:
        parts = (PAST, SEQUENCE) if axis == TOTAL else tuple(p.strip() for p in axis.split("+"))
        known = [int(p) if p.isdigit() else sizes.get(p) for p in parts]
        if len(parts) > 1 and None not in known:
            found[axis] = sum(size for size in known if size is not None)
    return found


def feed_of_sizes(model: ir.Model, sizes: Mapping[str, int], seed: int) -> Feed:
    """Random inputs: ids within the embedding table, masks of ones, floats from a normal."""
    rng = np.random.default_rng(seed)
    return {str(v.name): _array(v, _concrete(v, sizes), rng) for v in model.graph.inputs}


def ledger_feeds(model: ir.Model) -> list[Feed]:
    """Batches on which passes are judged: full, padded right, padded left, with holes, one row.

    A graph with stand-ins is slow to run: it gets every padding in one short batch.

    Some exported graphs run at the sizes they were traced with only; sizes are tried until one
    runs.

    Raises:
        RuntimeError: the graph runs at none of them.
    """
    axes = dynamic_axes(model)
    large = bool(stand_ins_of(model))
    sizes = _runnable_sizes(model, axes, _FEW if large else _SEQUENCE)
    full = feed_of_sizes(model, sizes, seed=1)
    feeds = [full]
    masks = [name for name in full if "mask" in name and full[name].ndim == 2]
    if large:
        mixed = {name: _mixed(full[name].shape).astype(full[name].dtype) for name in masks}
        feeds = [{**full, **mixed}]
        masks = []
    for name in masks:
        for keep in _paddings(full[name].shape):
            feeds.append({**full, name: keep.astype(full[name].dtype)})
    if axes:
        single = with_sums(dict.fromkeys(axes[:1], 1) | {a: sizes[a] for a in axes[1:]})
        if not _why_not_run(model, single):
            feeds.append(feed_of_sizes(model, single, seed=2))
    return feeds


def _runnable_sizes(model: ir.Model, axes: list[str], sequence: int) -> dict[str, int]:
    tried = ((_BATCH, sequence), *itertools.product((2, 1, 4, 8), (7, 8, 16, 128)))
    reason = ""
    for pair in tried:
        sizes = with_sums(dict(zip(axes, (*pair, *_PRIMES[3:]), strict=False)))
        reason = _why_not_run(model, sizes)
        if not reason:
            return sizes
    raise RuntimeError(reason)


def _why_not_run(model: ir.Model, sizes: Mapping[str, int]) -> str:
    """Empty if the graph runs at these sizes."""
    try:
        outputs_of(model, [feed_of_sizes(model, sizes, seed=1)])
    except Exception as error:  # ONNX Runtime's errors have no common root
        return first_line(error)
    return ""


def _paddings(shape: tuple[int, ...]) -> list[npt.NDArray[np.int64]]:
    rows, width = shape
    lengths = np.maximum(1, width - 3 * np.arange(rows))[:, None]
    right = (np.arange(width)[None, :] < lengths).astype(np.int64)
    holes = np.ones(shape, np.int64)
    holes[:, 2::3] = 0
    return [right, np.ascontiguousarray(right[:, ::-1]), holes]


def _mixed(shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Rows with holes, padded right and padded left, in turn."""
    right, left, keep = _paddings(shape)
    keep[1::3], keep[2::3] = right[1::3], left[2::3]
    return keep


def _concrete(value: ir.Value, sizes: Mapping[str, int]) -> list[int]:
    shape = []
    for place, dim in enumerate(value.shape or ()):
        if isinstance(dim, int):
            shape.append(dim)
        else:
            shape.append(sizes[str(dim.value) if dim.value else f"{value.name}.{place}"])
    return shape


def _array(value: ir.Value, shape: list[int], rng: np.random.Generator) -> npt.NDArray[np.generic]:
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    if dtype.kind == "b" or "mask" in str(value.name):
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, _rows_of_table(value), shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def _rows_of_table(value: ir.Value) -> int:
    """How many rows the embedding table has that these ids look up; 2 if there is none."""
    for use in value.uses():
        table = constant(use.node.inputs[0]) if is_op(use.node, "Gather") else None
        if table is not None and known_shape(use.node.inputs[0]) is not None:
            return int(table.shape[0])
    return 2
