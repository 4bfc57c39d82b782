"""How many tokens the texts of a file have, as the model would read them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.artifact import Artifact
from tfc.errors import BadData, TfcError, UsageError
from tfc.files import sha256_of_json
from tfc.manifest import DECODER
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.batching import windows
from tfc.runtime.jobs.inputs import InputFile, Place, files_from_inputs, rows_of_files
from tfc.runtime.rows import Columns
from tfc.runtime.tasks import TEXT_TASKS
from tfc.runtime.tasks.base import Item, Task, TextModel
from tfc.steps.record import OnProgress, no_progress

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Lengths:
    """Rows of the model by their tokens.

    Attributes:
        data: where they are from.
        texts: how many items were read; one may be several rows (windows of a long context).
        refused: items that cannot be used.
        counts: length → rows of that length.
    """

    data: str
    texts: int
    refused: int
    counts: Mapping[int, int]

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    @property
    def tokens(self) -> int:
        """Of all rows, without padding."""
        return sum(length * rows for length, rows in self.counts.items())

    @property
    def longest(self) -> int:
        """The longest row."""
        return max(self.counts)

    def sha256(self) -> str:
        """What tells them from other lengths."""
        return sha256_of_json(sorted(self.counts.items()))

    def sample(self, most: int) -> list[int]:
        """At most so many lengths, evenly taken from all of them in ascending order."""
        size = min(most, self.rows)
        places = [(2 * i + 1) * self.rows // (2 * size) for i in range(size)]
        found, seen, at = [], 0, 0
        for length, rows in sorted(self.counts.items()):
            seen += rows
            while at < size and places[at] < seen:
                found.append(length)
                at += 1
        return found


def lengths_of_data(
    artifact: Artifact,
    data: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    on_progress: OnProgress = no_progress,
) -> Lengths:
    """Tokenize every text of a file, folder or glob that a job reads, holding few in memory.

    Raises:
        UsageError: the artifact does not read text and answer at once, or its rows depend on what
            a call asks.
        BadData: there is no such file, or none of its texts can be used.
    """
    task, own = _task_of(artifact)
    files = files_from_inputs([data], None)
    columns = Columns(text_column or own.text, pair_column or own.pair, own.folder)
    counts: Counter[int] = Counter()
    texts = refused = 0
    first: TfcError | None = None
    for chunk in windows(_items(files, columns, on_progress), _ROWS_AT_ONCE):
        texts += len(chunk)
        for found in _rows(task, chunk):
            if isinstance(found, TfcError):
                refused += 1
                first = first or found
            else:
                counts.update(len(row) for row in found)
    if not texts:
        raise BadData(
            "there is no text in it",
            where=str(data),
            fix="Give texts such as the engine will read",
        )
    if not counts:
        raise BadData(
            f"none of {texts} texts can be read" + (f": {first.what}" if first else ""),
            where=str(data),
            fix="Name their field with --text-column",
        )
    return Lengths(Path(data).name, texts, refused, dict(sorted(counts.items())))


def _task_of(artifact: Artifact) -> tuple[Task, Columns]:
    manifest = artifact.manifest
    kind: Any = TEXT_TASKS.get(manifest.task.name)
    if kind is None or DECODER in manifest.graphs or manifest.preprocess is None:
        raise UsageError(
            "profiles from data are for models that read text and answer at once, and this one's "
            f"task is {manifest.task.name}",
            where=str(artifact.path),
            fix="Give the sizes: --batch and --seq",
        )
    needed = [f.name for f in dataclasses.fields(kind.options) if f.default is dataclasses.MISSING]
    if needed:
        raise UsageError(
            f"how long the rows of {manifest.task.name} are depends on the {needed[0]} of a call",
            where=str(artifact.path),
            fix="Give the sizes: --batch and --seq",
        )
    encoder = text_encoder_of(artifact, kind.offsets)
    model = TextModel(manifest.task, encoder, encoder.preprocess.max_length)
    return kind(model, kind.options()), kind.columns


def _items(files: Sequence[InputFile], columns: Columns, on_progress: OnProgress) -> Iterator[Item]:
    sizes = [file.size for file in files]
    rows = rows_of_files(files, columns, Place(), lambda: False)
    for read, (number, row) in enumerate(rows, start=1):
        if read % _ROWS_AT_ONCE == 0:
            done = sum(sizes[:number]) + min(row.end, sizes[number])
            on_progress("reading the lengths of texts", done, sum(sizes))
        yield Item(row.item, f"{files[number].name}, line {row.line}")


def _rows(task: Task, items: Sequence[Item]) -> Iterator[Sequence[Any] | TfcError]:
    good = []
    for item in items:
        try:
            if isinstance(item.value, TfcError):
                raise item.value
            task.check(item)
        except TfcError as error:
            yield error
        else:
            good.append(item)
    yield from task.rows(good)
