"""Labelled rows: what engines and PyTorch are run on when the data says what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfc.artifact import Artifact
from tfc.errors import BadData, UsageError
from tfc.files import sha256_of_file
from tfc.metrics import scorer_of
from tfc.metrics.base import Found, Indices, Scorer, Tally
from tfc.runtime.rows import Columns
from tfc.runtime.tasks import GENERATION_TASKS, TEXT_TASKS
from tfc.runtime.tasks.base import Item, Prediction
from tfc.steps.batches import Batches, Outputs, batches_of
from tfc.steps.cases import Cases, cases_of, output_axes
from tfc.steps.generation_cases import GenerationCases
from tfc.steps.verification.label_rows import (
    MOST_NAMED,
    LabelRow,
    LeftOut,
    label_rows_from_jsonl,
    left_out_of,
)


@dataclass(frozen=True)
class LabelColumns:
    """The fields of a row; `text` and `pair` are the task's own where None."""

    label: str
    text: str | None = None
    pair: str | None = None


@dataclass(frozen=True)
class Labelled:
    """Labelled rows in batches, as `cases` too: of a model that generates the first of them.

    `rows` are those whose label the model knows, `places[i]` the predictions of row i among
    those of `batches`.
    """

    scorer: Scorer
    columns: LabelColumns
    rows: list[LabelRow]
    places: list[range]
    left_out: LeftOut
    batches: Batches
    cases: Cases | GenerationCases

    def found(self, outputs: Sequence[Outputs]) -> list[Found]:
        """What the runtime predicts for each row, from the outputs of each batch."""
        return self.placed(self.batches.predictions(outputs))

    def placed(self, predictions: Sequence[Prediction]) -> list[Found]:
        """The predictions of each row."""
        return [[predictions[place] for place in places] for places in self.places]

    def tally(self, found: Sequence[Found]) -> Tally:
        """What is right and wrong in what was predicted for each row."""
        golds = [row.gold for row in self.rows]
        return self.scorer.tally(golds, found, _queries(self.rows))

    @property
    def every(self) -> Indices:
        """All rows, as a tally counts them."""
        return np.arange(len(self.rows))


def labelled_from_jsonl(
    artifact: Artifact, data: str | Path, columns: LabelColumns, limit: int
) -> Labelled:
    """The first `limit` rows of the JSON lines in `data`, with their labels.

    Raises:
        UsageError: there are no metrics for the artifact's task.
        MissingPackage: they need a package that is not installed.
        BadData: the file or a row cannot be used, no row has a label that the model knows, or
            the labels tell nothing.
    """
    record, path = artifact.manifest.task, Path(data)
    scorer = scorer_of(record)
    columns = _resolved(columns, record.name, scorer)
    texts = Columns(columns.text or "", columns.pair)
    rows = label_rows_from_jsonl(path, scorer, texts, columns.label, limit)
    left_out = left_out_of(rows)
    known = [place for place, row in enumerate(rows) if not row.unknown]
    if not known:
        raise _nothing_known(left_out, columns.label, record.labels, path)
    scorer.check([rows[place].gold for place in known], str(path))
    items = [Item(text, f"{path}, line {row.line}") for row in rows for text in row.texts]
    batches = batches_of(artifact, items)
    each = len(items) // len(rows)
    return Labelled(
        scorer,
        columns,
        [rows[place] for place in known],
        [range(place * each, place * each + each) for place in known],
        left_out,
        batches,
        _cases(artifact, batches, path, columns.text or "", len(rows)),
    )


def _cases(
    artifact: Artifact, batches: Batches, path: Path, column: str, rows: int
) -> Cases | GenerationCases:
    """The rows as what values are compared on, token by token where the model generates."""
    if artifact.manifest.task.name in GENERATION_TASKS:
        return cases_of(artifact, path, column, rows)
    feeds = [dict(feed.arrays) for feed in batches.feeds]
    sha256 = sha256_of_file(path)
    return Cases(feeds, output_axes(artifact), rows, "rows", str(path), sha256)


def _queries(rows: Sequence[LabelRow]) -> list[str]:
    """The first text of each row; none where rows have one text only."""
    pairs = [row.texts[0] if isinstance(row.texts[0], tuple) else tuple(row.texts) for row in rows]
    return [str(pair[0]) for pair in pairs] if all(len(pair) > 1 for pair in pairs) else []


def _resolved(columns: LabelColumns, task: str, scorer: Scorer) -> LabelColumns:
    kind = {**TEXT_TASKS, **GENERATION_TASKS}[task]
    if columns.pair is not None and not kind.pairs:
        raise UsageError(f"{task} reads one text, not a pair", fix="Leave --pair-column out")
    text = columns.text or kind.columns.text
    return replace(columns, text=text, pair=columns.pair or scorer.pair)


def _nothing_known(left_out: LeftOut, column: str, labels: list[str], path: Path) -> BadData:
    named = ", ".join(list(left_out.labels)[:MOST_NAMED])
    fix = f"Name the field with --label-column (it is '{column}')"
    if labels:
        fix += f", and use the model's labels: {', '.join(labels[:MOST_NAMED])}"
        fix += ", …" if len(labels) > MOST_NAMED else ""
    return BadData(
        f"no row has a label that the model knows; they have: {named}", where=str(path), fix=fix
    )
