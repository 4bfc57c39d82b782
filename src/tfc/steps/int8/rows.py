"""The rows that an int8 engine is calibrated and judged on: real text, through the tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.files import sha256_of_file
from tfc.manifest import DECODER
from tfc.runtime.jobs import texts_from_jsonl
from tfc.runtime.padding import Feed
from tfc.runtime.tasks import TEXT_TASKS
from tfc.steps.cases import Cases, output_axes, text_feeds
from tfc.steps.verification.labelled import LabelColumns, Labelled, labelled_from_jsonl

# Rows that are read unless the caller asks for more: perf/int8.py shows that ranges and agreement
# move little beyond.
DEFAULT_ROWS = 512


@dataclass(frozen=True)
class RowSource:
    """A file of JSON lines, and which of its fields and rows are read.

    `text` and `pair` are the task's own fields where None; with `label` the rows have labels.
    """

    path: Path
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    limit: int = DEFAULT_ROWS


@dataclass(frozen=True)
class CalibrationRows:
    """The rows in batches; `labelled` where they have labels."""

    cases: Cases
    labelled: Labelled | None

    @property
    def feeds(self) -> list[Feed]:
        """The batches."""
        return self.cases.feeds

    def sha256(self) -> str:
        """The identity of what the graph reads of them: tokens, batches and padding."""
        total = hashlib.sha256()
        for feed in self.feeds:
            for name, array in sorted(feed.items()):
                total.update(f"{name} {array.shape} {array.dtype} ".encode())
                total.update(array.tobytes())
        return total.hexdigest()


def check_reads_text(artifact: Artifact, precision: str) -> None:
    """Refuse what text cannot calibrate.

    Raises:
        UsageError: the artifact reads no text, or generates.
    """
    manifest = artifact.manifest
    if manifest.task.name not in TEXT_TASKS or DECODER in manifest.graphs:
        raise UsageError(
            f"{precision} is for models that read text and answer at once, and this one's task is "
            f"{manifest.task.name}",
            where=str(artifact.path),
            fix="Build in half precision: --fp16 or --bf16",
        )


def calibration_rows(artifact: Artifact, source: RowSource) -> CalibrationRows:
    """Read the rows.

    Raises:
        UsageError: there are no metrics for the artifact's task, and the rows are said to have
            labels.
        BadData: the file or a row cannot be used.
    """
    if source.label is not None:
        columns = LabelColumns(source.label, source.text, source.pair)
        labelled = labelled_from_jsonl(artifact, source.path, columns, source.limit)
        assert isinstance(labelled.cases, Cases), "check_reads_text refused models that generate"
        return CalibrationRows(labelled.cases, labelled)
    own = TEXT_TASKS[artifact.manifest.task.name].columns
    text, pair = source.text or own.text, source.pair or own.pair
    texts = texts_from_jsonl(source.path, text, source.limit, pair)
    cases = Cases(
        text_feeds(artifact, texts),
        output_axes(artifact),
        len(texts),
        "rows",
        str(source.path),
        sha256_of_file(source.path),
    )
    return CalibrationRows(cases, None)
