"""The ranges of a graph's activations on real text, kept in a file of the artifact.

The file holds histograms, so that every method of choosing ranges works on the same run over the
data. It is keyed by the graph and by what it read; a run that was interrupted goes on where it was
last saved.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from tfc.artifact import Artifact
from tfc.errors import BadArtifact, ContractNotReached
from tfc.manifest import MODEL
from tfc.steps.int8.rows import CalibrationRows
from tfc.steps.record import OnProgress

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.observe import Observed
    from tfc.optimizers.precision.int8.sites import Site

# The time between two saves of a run that is under way.
_SAVE_SECONDS = 20.0
# Ranges that move by more between two halves of the data are not those of the data yet.
STEADY = 0.05
# Below this, halves may agree by chance. perf/int8.py: the error on other rows falls by 8 % from 16
# to 64 rows, and by 9 % more up to 256.
LEAST_ROWS = 64
_FORMAT = 1


@dataclass(frozen=True)
class Movement:
    """How much the ranges differ between two halves of the data, as shares of the larger one.

    `enough` is how many rows would bring the mean below `STEADY`, if it falls with the square root
    of their number, and at least `LEAST_ROWS`; 0 where there are enough.
    """

    mean: float
    most: float
    enough: int


def calibration_file(target: str, graph: str = MODEL, variant: str = "") -> str:
    """The name of the file with what was seen of an optimized graph's activations."""
    return f"calibration/{target}/{graph}{variant}.npz"


def channels_of(artifact: Artifact, target: str, graph: str) -> dict[str, Any]:
    """The largest magnitude of each channel of the activations, as they were before smoothing.

    Raises:
        BadArtifact: the file is missing or damaged.
    """
    seen = _read(artifact, calibration_file(target, graph), None)
    assert seen is not None
    return seen.channels


def observed(
    artifact: Artifact,
    target: str,
    graph: str,
    model: ir.Model,
    sites: Collection[Site],
    rows: CalibrationRows,
    on_progress: OnProgress,
    *,
    variant: str = "",
    alphas: Mapping[str, float] = MappingProxyType({}),
) -> Observed:
    """What the sites read on these rows: from the file, or by running the fp32 graph.

    Args:
        artifact: keeps the file.
        target: what the graph was optimized for.
        graph: its name.
        model: the graph, or one made of it.
        sites: whose activations are looked at.
        rows: the data.
        on_progress: called with what is under way.
        variant: what tells the file of a graph that was made of it.
        alphas: how that was made.

    Raises:
        ContractNotReached: an activation of the graph is not finite.
    """
    from tfc.optimizers.precision.int8.observe import Observed, observe
    from tfc.steps.optimize import optimized_file

    name = calibration_file(target, graph, variant)
    names = list(dict.fromkeys(site.activation for site in sites))
    key = {
        "format": _FORMAT,
        "graph": artifact.sha256(optimized_file(target, graph)),
        "rows": rows.sha256(),
        "alphas": dict(alphas),
        "activations": names,
    }
    seen = _load(artifact, name, key) or Observed()
    total = len(rows.feeds)
    saved = time.monotonic()

    def after_batch(seen: Observed) -> None:
        nonlocal saved
        on_progress("calibrating", seen.batches, total)
        if seen.batches == total or time.monotonic() - saved > _SAVE_SECONDS:
            _save(artifact, name, key, seen)
            saved = time.monotonic()

    if seen.batches < total:
        on_progress("calibrating", seen.batches, total)
        try:
            observe(model, sites, rows.feeds, seen, after_batch)
        except ValueError as error:
            raise ContractNotReached(
                f"{error} in fp32 already, and int8 has no range for it",
                where=str(artifact.path),
                fix="Compare the engine in fp32 with PyTorch on these rows: tfc verify --data",
            ) from error
    return seen


def movement(seen: Observed, method: str) -> Movement:
    """How much the ranges of a method depend on which half of the rows they come from."""
    from tfc.optimizers.precision.int8.ranges import ranges_from

    first, second = (ranges_from(seen.half(number), method) for number in (0, 1))
    differences = [_difference(first[name].amax, second[name].amax) for name in first]
    mean = float(np.mean(differences))
    enough = 0
    if mean > STEADY or seen.rows < LEAST_ROWS:
        enough = max(LEAST_ROWS, int(np.ceil(seen.rows * (mean / STEADY) ** 2)))
    return Movement(mean, float(np.max(differences)), enough)


def _difference(one: float, other: float) -> float:
    larger = max(one, other)
    return abs(one - other) / larger if larger > 0 and np.isfinite(larger) else 0.0


def _save(artifact: Artifact, name: str, key: dict[str, Any], seen: Observed) -> None:
    facts = {"key": key, "batches": seen.batches, "rows": seen.rows, "tokens": seen.tokens}
    facts["limits"] = [
        [[h.limit, h.low, h.high] for h in seen.halves[a]] for a in key["activations"]
    ]
    arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts))}
    for number, activation in enumerate(key["activations"]):
        arrays[f"{number}/channels"] = seen.channels[activation]
        for half, histogram in enumerate(seen.halves[activation]):
            arrays[f"{number}/{half}"] = histogram.counts
    with artifact.change() as change, change.path(name).open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _load(artifact: Artifact, name: str, key: dict[str, Any]) -> Observed | None:
    """What an earlier run saw; None if it was of another graph, other rows or another tfc."""
    return _read(artifact, name, key) if name in artifact.manifest.files else None


def _read(artifact: Artifact, name: str, key: dict[str, Any] | None) -> Observed | None:
    """What the file holds; None if that is not of this key, where one is given."""
    from tfc.optimizers.precision.int8.histogram import Histogram
    from tfc.optimizers.precision.int8.observe import Observed

    path = artifact.file(name)
    try:
        with np.load(path, allow_pickle=False) as archive:
            facts = json.loads(str(archive["facts"]))
            if key is not None and facts["key"] != key:
                return None
            seen = Observed(batches=facts["batches"], rows=facts["rows"], tokens=facts["tokens"])
            for number, activation in enumerate(facts["key"]["activations"]):
                seen.channels[activation] = archive[f"{number}/channels"]
                even, odd = (
                    Histogram(archive[f"{number}/{half}"], *facts["limits"][number][half])
                    for half in (0, 1)
                )
                seen.halves[activation] = (even, odd)
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise BadArtifact(
            f"the file does not hold a calibration ({error})",
            where=str(path),
            fix="Delete the artifact's calibration folder, and build again",
        ) from error
    return seen
