"""What `tfc bench` runs: full batches of a grid of shapes, or batches of the user's own texts."""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import BadData, UsageError
from tfc.manifest import BATCH, MODEL, SEQUENCE, Engine
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.backends.base import Profile, Range
from tfc.runtime.batching import Limits, batches
from tfc.runtime.padding import MASK, Feed, split_name
from tfc.runtime.throughput import Workload
from tfc.runtime.tokenization import INPUT_IDS
from tfc.steps.cases import sample_texts

DEFAULT_BATCHES = (1, 8, 32)
DEFAULT_LENGTHS = (16, 64, 128)
DEFAULT_ROWS = 512

# length in tokens → operations of one row
FlopsOfRow = Callable[[int], int | None]


@dataclass(frozen=True)
class Sizes:
    """The batch sizes and lengths that every engine takes."""

    rows: Range
    tokens: Range

    def take(self, rows: int, tokens: int) -> bool:
        """Whether so many rows of so many tokens are within them."""
        return (
            self.rows.min <= rows <= self.rows.max and self.tokens.min <= tokens <= self.tokens.max
        )


def sizes_of(engines: Sequence[Engine]) -> Sizes:
    """What the profiles of all engines have in common."""
    rows, tokens = ([e.profile[axis] for e in engines] for axis in (BATCH, SEQUENCE))
    return Sizes(*(_common(profiles) for profiles in (rows, tokens)))


def _common(profiles: list[list[int]]) -> Range:
    low, high = max(p[0] for p in profiles), min(p[-1] for p in profiles)
    return Range(low, low, high)


def grid_workloads(
    artifact: Artifact,
    sizes: Sizes,
    rows: Sequence[int],
    lengths: Sequence[int],
    flops: FlopsOfRow,
) -> list[Workload]:
    """One full batch for each shape of the grid that is within `sizes`.

    Raises:
        UsageError: none is.
    """
    shapes = [(batch, length) for batch in rows for length in lengths if sizes.take(batch, length)]
    if not shapes:
        raise UsageError(
            "no shape of the grid is within the engines' profiles",
            fix="Give other --batch and --seq, or build with a larger profile",
        )
    return [_full(artifact, batch, length, flops) for batch, length in shapes]


def _full(artifact: Artifact, batch: int, length: int, flops: FlopsOfRow) -> Workload:
    one, tokens = flops(length), batch * length
    feed = full_batch(artifact, batch, length)
    total = None if one is None else one * batch
    name = f"{batch}×{length}"
    return Workload(name, (feed,), batch, tokens, tokens, total, {length: batch})


def full_batch(artifact: Artifact, batch: int, length: int) -> Feed:
    """Rows of real tokens, exactly `length` each, special tokens at both ends."""
    encoder = text_encoder_of(artifact)
    padded = encoder.pad(encoder.encode([" ".join(sample_texts(artifact))]))
    feed = {}
    for spec in artifact.manifest.signature.inputs:
        kind, suffix = split_name(spec.name)
        row = np.zeros(length, np.int64)
        if kind == INPUT_IDS:
            row = _full_row(padded[spec.name][0][padded[MASK + suffix][0] == 1], length)
        elif kind == MASK:
            row[:] = 1
        feed[spec.name] = np.repeat(row[None], batch, axis=0)
    return feed


def _full_row(ids: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """The first and the last of a text's tokens, and those between them as often as needed."""
    inner = np.resize(ids[1:-1] if len(ids) > 2 else ids, max(0, length - 2))
    return np.concatenate([ids[:1], inner, ids[-1:]])[:length]


@dataclass(frozen=True)
class TextFile:
    """The first `limit` rows of JSON lines, and the fields of their text."""

    path: Path
    text_column: str = "text"
    pair_column: str | None = None
    limit: int = DEFAULT_ROWS


def data_workload(
    artifact: Artifact, sizes: Sizes, file: TextFile, limits: Limits, flops: FlopsOfRow
) -> Workload:
    """The texts of a file, in batches of similar length as a batch job would make them.

    Raises:
        BadData: the file cannot be used, or a text is longer than an engine takes.
    """
    from tfc.runtime.jobs import texts_from_jsonl

    encoder = text_encoder_of(artifact)
    texts = texts_from_jsonl(file.path, file.text_column, file.limit, file.pair_column)
    encodings = encoder.encode(texts)
    lengths = [len(encoding) for encoding in encodings]
    _check_lengths(lengths, sizes, file.path)
    plan = batches(lengths, replace(limits, rows=min(limits.rows, sizes.rows.max)))
    feeds = tuple(
        dict(encoder.pad([encodings[i] for i in batch.indices], batch.width)) for batch in plan
    )
    work = [flops(length) for length in lengths]
    return Workload(
        name=file.path.name,
        feeds=feeds,
        rows=len(texts),
        tokens=sum(lengths),
        padded=sum(len(batch.indices) * batch.width for batch in plan),
        flops=None if None in work else sum(one or 0 for one in work),
        lengths=Counter(lengths),
    )


def _check_lengths(lengths: Sequence[int], sizes: Sizes, path: Path) -> None:
    beyond = [
        place for place, length in enumerate(lengths) if not sizes.take(sizes.rows.min, length)
    ]
    if beyond:
        first = beyond[0]
        raise BadData(
            f"{len(beyond)} of {len(lengths)} texts do not fit an engine that is measured: this one"
            f" has {lengths[first]} tokens, and {sizes.tokens.min} to {sizes.tokens.max} are taken",
            where=f"{path}, row {first + 1}",
            fix="Build the engine with a larger profile: tfc build-engine --seq",
        )


def flops_of_rows(artifact: Artifact) -> FlopsOfRow:
    """Counts the matrix arithmetic of one row by its length, from the graph as it was exported.

    Where onnx-ir is not installed, nothing can be counted.
    """
    if importlib.util.find_spec("onnx_ir") is None:
        return lambda length: None
    import onnx_ir as ir

    from tfc.steps.flops import products_of_graph

    model = ir.load(artifact.file(f"{MODEL}.onnx"))

    @functools.cache
    def flops(length: int) -> int | None:
        tokens = Range(length, length, length)
        found = [p.flops for p in products_of_graph(model, Profile(Range(1, 1, 1), tokens))]
        return None if None in found or not found else sum(one or 0 for one in found)

    return flops
