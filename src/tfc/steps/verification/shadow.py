"""`tfc run --shadow`: some rows of a job again with the fp32 reference, to see an engine drift.

Which rows is told by a hash of what the model reads, so that a job takes the same ones whatever
ran beside them; the row with the smallest hash is always among them. The reference runs after the
job. It is PyTorch where the checkpoint is there, and else the exported fp32 graph on ONNX Runtime.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact, graph_file
from tfc.errors import BadCheckpoint, MissingPackage, UsageError
from tfc.manifest import DECODER, MODEL
from tfc.runtime.feeding import Feed as Batch
from tfc.runtime.padding import Feed
from tfc.runtime.parity import Tolerance, parity_of
from tfc.simplified_graph import simplify_step
from tfc.steps.reference import reference_from_artifact
from tfc.steps.simplification.reference import graph_runner

Array = npt.NDArray[Any]
Call = Callable[[Feed], Mapping[str, Array]]
# What is kept until the end of a job: beyond it the rows with the largest hashes go.
_MOST_BYTES = 256 << 20
_HASHES = 1 << 32
# Drift is told, not judged: a decision that flips counts whatever its margin.
_NO_LIMIT = Tolerance(float("inf"), float("inf"), "")


@dataclass(frozen=True)
class Drift:
    """How far the sampled rows are from the reference.

    `rows` were compared of `sampled` that were drawn of `seen`; the numbers are None where none
    was. `allowed` is what `tfc verify` allowed, None where the engine has no verdict.
    """

    share: float
    seen: int
    sampled: int
    rows: int
    reference: str
    max_abs: float | None = None
    mean_abs: float | None = None
    cosine: float | None = None
    argmax_agreement: float | None = None
    allowed: float | None = None

    @property
    def beyond(self) -> bool:
        """Whether a row is further off than the engine was verified with."""
        if self.allowed is None or self.max_abs is None:
            return False
        return not self.max_abs <= self.allowed

    def as_json(self) -> dict[str, Any]:
        """As the summary of a job holds it."""
        return {**asdict(self), "beyond": self.beyond}


@dataclass(order=True)
class _Row:
    """A sampled row: what the model read, and what the engine gave."""

    number: int
    feed: Feed = field(compare=False)
    outputs: dict[str, Array] = field(compare=False)

    @property
    def bytes(self) -> int:
        """The memory of its arrays."""
        return sum(a.nbytes for each in (self.feed, self.outputs) for a in each.values())

    def copied(self) -> _Row:
        """The row without the batch that its arrays are views of."""
        feed, outputs = (
            {n: np.array(a) for n, a in each.items()} for each in (self.feed, self.outputs)
        )
        return _Row(self.number, feed, outputs)


class Shadow:
    """Sees the batches of a job and keeps some rows. `see` may be called by several threads.

    Args:
        artifact: whose engine runs.
        engine: the engine's name.
        share: of the rows, above 0 and below 1.

    Raises:
        UsageError: the share is not possible, or the model cannot be asked again row by row.
    """

    def __init__(self, artifact: Artifact, engine: str, share: float) -> None:
        if not 0 < share < 1:
            raise UsageError(f"a share of {share} is not possible", fix="Give 0.1%, for example")
        _check_model(artifact)
        self._artifact, self._engine, self._share = artifact, engine, share
        self._lock = threading.Lock()
        self._rows: list[_Row] = []
        self._least: _Row | None = None
        self._bytes = self._seen = self._sampled = 0

    def see(self, feed: Batch, rows: Sequence[Mapping[str, Array]]) -> None:
        """Keep the sampled rows of a batch: what the model read, and its outputs."""
        for row, (place, outputs) in enumerate(zip(feed.places, rows, strict=True)):
            read = {name: array[row][place][None] for name, array in feed.arrays.items()}
            self._take(_Row(_hash_of(read), read, dict(outputs)))

    def drift(self) -> Drift:
        """Ask the reference for the sampled rows.

        Raises:
            TfcError: neither the checkpoint nor the exported graph can be run.
        """
        rows = sorted(self._rows or [row for row in [self._least] if row is not None])
        sampled = max(self._sampled, len(rows))
        if not rows:
            return Drift(self._share, self._seen, 0, 0, "")
        call, reference = _reference(self._artifact)
        expected, got = [], []
        for row in rows:
            exact = call(row.feed)
            expected += [np.asarray(exact[name][0]) for name in row.outputs]
            got += list(row.outputs.values())
        verdict = self._artifact.manifest.verdicts.get(self._engine)
        parity = parity_of(expected, got, _NO_LIMIT)
        return Drift(
            share=self._share,
            seen=self._seen,
            sampled=sampled,
            rows=len(rows),
            reference=reference,
            max_abs=parity.max_abs,
            mean_abs=parity.mean_abs,
            cosine=parity.cosine,
            argmax_agreement=parity.argmax_agreement,
            allowed=verdict.tolerance.get("max_abs") if verdict is not None else None,
        )

    def _take(self, row: _Row) -> None:
        with self._lock:
            self._seen += 1
            if self._least is None or row < self._least:
                self._least = row.copied()
            if row.number < self._share * _HASHES:
                self._sampled += 1
                self._keep(row.copied())

    def _keep(self, row: _Row) -> None:
        self._rows.append(row)
        self._bytes += row.bytes
        while self._bytes > _MOST_BYTES and len(self._rows) > 1:
            last = max(self._rows)
            self._rows.remove(last)
            self._bytes -= last.bytes


def _check_model(artifact: Artifact) -> None:
    manifest = artifact.manifest
    if DECODER in manifest.graphs:
        raise UsageError(
            "a model that generates is not asked again row by row",
            where=str(artifact.path),
            fix="Leave --shadow out, and compare it with: tfc verify",
        )


def _hash_of(feed: Feed) -> int:
    """The same for the same input, in whichever batch it ran."""
    found = 0
    for array in feed.values():
        found = zlib.crc32(np.ascontiguousarray(array).tobytes(), found)
    return found


def _reference(artifact: Artifact) -> tuple[Call, str]:
    """What gives the right outputs, and what it is called."""
    if simplify_step(artifact) is not None:
        return graph_runner(artifact), "the simplified fp32 graph"
    try:
        reference = reference_from_artifact(artifact)
    except (BadCheckpoint, MissingPackage, UsageError) as error:
        from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend

        runner = OnnxRuntimeBackend().load(artifact.file(graph_file(MODEL)))
        return runner.run, f"the exported fp32 graph on ONNX Runtime ({error.what})"
    return reference, f"PyTorch with {artifact.manifest.checkpoint.source}"
