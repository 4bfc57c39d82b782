"""The sizes that an engine is built for: what was asked, within what the model takes."""

from __future__ import annotations

import dataclasses

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.manifest import (
    BATCH,
    DECODER,
    ENCODER,
    ENCODER_SEQUENCE,
    PAST,
    SEQUENCE,
    TOTAL,
    Manifest,
)
from tfc.runtime.backends.base import Profile, Range
from tfc.steps.export import NAME as EXPORT

_KNOWN_AXES = frozenset({BATCH, SEQUENCE, ENCODER_SEQUENCE, PAST, TOTAL})


def profile_of(
    artifact: Artifact,
    batch: tuple[int, int, int] | None,
    sequence: tuple[int, int, int] | None,
) -> Profile:
    """The asked ranges, or the defaults, within the length that the model takes.

    Raises:
        UsageError: a range is not min ≤ opt ≤ max, or is longer than the model takes.
    """
    default = Profile()
    preprocess = artifact.manifest.preprocess
    told = longest_of(artifact.manifest)
    most = told.get(SEQUENCE, default.sequence.max)
    limit = preprocess.max_length if preprocess is not None else most
    longest = Range(1, min(default.sequence.opt, limit), limit)
    rows = Range(*batch) if batch else _within(default.batch, told.get(BATCH))
    tokens = Range(*sequence) if sequence else longest
    for axis, sizes in (("batch", rows), ("seq", tokens)):
        if not 1 <= sizes.min <= sizes.opt <= sizes.max:
            raise UsageError(
                f"--{axis} {sizes.min}:{sizes.opt}:{sizes.max} is not in order",
                fix=f"Give the smallest, best and largest size, e.g. --{axis} 1:32:256",
            )
    if tokens.max > limit:
        raise UsageError(
            f"--seq goes up to {tokens.max} tokens, and this artifact takes {limit}",
            fix=f"Give at most {limit}",
        )
    profile = _with_decoder_axes(artifact.manifest, rows, tokens)
    return dataclasses.replace(
        profile, others={**profile.others, **_other_axes(artifact.manifest, told)}
    )


def longest_of(manifest: Manifest) -> dict[str, int]:
    """The largest sizes of dynamic axes that a module told when it was exported."""
    step = manifest.step(EXPORT)
    return dict(step.result.get("longest", {})) if step is not None else {}


def _within(sizes: Range, most: int | None) -> Range:
    if most is None:
        return sizes
    return Range(min(sizes.min, most), min(sizes.opt, most), min(sizes.max, most))


def _other_axes(manifest: Manifest, told: dict[str, int]) -> dict[str, Range]:
    """The axes that a module's caller named: as wide as a sequence."""
    inputs = (spec for graph in manifest.graphs.values() for spec in graph.signature.inputs)
    named = dict.fromkeys(a for spec in inputs for a in spec.shape if isinstance(a, str))
    own = [axis for axis in named if axis not in _KNOWN_AXES]
    return {axis: _within(Profile().sequence, told.get(axis)) for axis in own}


def _with_decoder_axes(manifest: Manifest, rows: Range, tokens: Range) -> Profile:
    """The axes of a model that generates: most calls take one token, on a growing past."""
    if DECODER not in manifest.graphs:
        return Profile(rows, tokens)
    new = dataclasses.replace(tokens, opt=tokens.min)
    past = Range(0, tokens.opt, tokens.max)
    total = Range(past.min + new.min, past.opt + new.opt, past.max + new.max)
    source = {ENCODER_SEQUENCE: tokens} if ENCODER in manifest.graphs else {}
    return Profile(rows, new, {**source, PAST: past, TOTAL: total})
