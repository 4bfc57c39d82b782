"""The rows of a data file with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tfc.errors import BadData
from tfc.metrics.base import Scorer, UnknownLabel
from tfc.runtime.formats.jsonl import rows_of_lines
from tfc.runtime.formats.streams import LineReader, open_bytes
from tfc.runtime.jobs.shards import empty_input
from tfc.runtime.rows import Columns, Row
from tfc.runtime.tokenization import Text

NO_LABEL = "no label"
# So many labels and lines are named; the rest is counted.
MOST_NAMED = 10


@dataclass(frozen=True)
class LabelRow:
    """A row: its line, what the model reads of it, its label in the scorer's form.

    `unknown` says why it is in no metric: the label that the model does not have, or that it has
    none; empty where it is in them.
    """

    line: int
    texts: Sequence[Text]
    gold: Any
    unknown: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Rows that are in no metric: how many of each unknown label, and the first lines."""

    labels: dict[str, int]
    lines: list[int]

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(self.labels.values())


def label_rows_from_jsonl(
    path: Path, scorer: Scorer, columns: Columns, label: str, limit: int
) -> list[LabelRow]:
    """The first `limit` rows of the JSON lines in `path`.

    Args:
        path: the file.
        scorer: reads the labels.
        columns: the fields with the texts.
        label: the field with the label.
        limit: read no more rows.

    Raises:
        BadData: the file cannot be read or is empty, or a row cannot be used; the message names
            its line.
    """
    found = []
    with open_bytes(path, None) as source:
        for row in islice(rows_of_lines(LineReader(source, str(path)), columns), limit):
            try:
                found.append(_label_row(row, scorer, label))
            except BadData as error:
                raise BadData(
                    error.what,
                    where=f"{path}, line {row.line}",
                    fix="Mend the row, or name other fields: --text-column, --pair-column,"
                    " --label-column",
                ) from error
    if not found:
        raise empty_input(str(path))
    return found


def left_out_of(rows: Sequence[LabelRow]) -> LeftOut:
    """The rows without a label that the model knows."""
    rest = [row for row in rows if row.unknown]
    labels = Counter(row.unknown for row in rest)
    return LeftOut(dict(labels.most_common()), [row.line for row in rest[:MOST_NAMED]])


def _label_row(row: Row, scorer: Scorer, label: str) -> LabelRow:
    if isinstance(row.item, BadData):
        raise row.item
    item: Any = row.item
    texts = list(item) if scorer.splits else [item]
    value = row.content.as_dict().get(label)
    if value is None:
        return LabelRow(row.line, texts, None, NO_LABEL)
    try:
        return LabelRow(row.line, texts, scorer.gold(value))
    except UnknownLabel as unknown:
        return LabelRow(row.line, texts, None, f"'{unknown.args[0]}'")
