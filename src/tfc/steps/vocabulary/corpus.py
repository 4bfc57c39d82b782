"""The texts that say which tokens stay: lines of a text file, or rows as batch jobs read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfc.errors import BadData, TfcError
from tfc.runtime.formats import format_from_path
from tfc.runtime.formats.streams import LineReader, open_bytes
from tfc.runtime.jobs.inputs import InputFile, Place, rows_of_files
from tfc.runtime.rows import Columns

_FIX = "Correct the line, or take it out of the corpus"
# Of the texts in their order the last so many are kept aside, to see what new text would meet.
HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class Corpus:
    """Texts in their order; of a row with two texts, both."""

    texts: list[str]

    @property
    def held_out(self) -> int:
        """How many of the last texts are kept aside: none of fewer than two."""
        return max(1, round(HELD_OUT_SHARE * len(self.texts))) if len(self.texts) > 1 else 0


def corpus_from_file(path: Path, columns: Columns) -> Corpus:
    """Read a corpus whole.

    A name that tells JSON lines, CSV, TSV or Parquet is read by its columns; any other file has a
    text per line.

    Raises:
        BadData: the file or a row cannot be used, or there is no text.
    """
    kind = format_from_path(path)
    if kind is None:
        texts = list(_lines(path))
    else:
        rows = rows_of_files([InputFile(path, kind)], columns, Place(), lambda: False)
        texts = [text for _, row in rows for text in _texts_of(row.item, row.line, path)]
    if not texts:
        raise BadData(
            "the corpus has no text", where=str(path), fix="Give a file with a text per line"
        )
    return Corpus(texts)


def _lines(path: Path) -> Iterator[str]:
    with open_bytes(path, None) as source:
        for line in LineReader(source, str(path)):
            try:
                text = line.raw.decode().strip()
            except UnicodeDecodeError as error:
                what = f"not UTF-8 text (byte {error.start + 1} of the line)"
                raise BadData(what, where=f"{path}, line {line.number}", fix=_FIX) from error
            if text:
                yield text


def _texts_of(item: object, line: int, path: Path) -> tuple[str, ...]:
    if isinstance(item, TfcError):
        raise BadData(item.what, where=f"{path}, line {line}", fix=_FIX) from item
    return item if isinstance(item, tuple) else (str(item),)
