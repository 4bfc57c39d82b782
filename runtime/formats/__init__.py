"""The file formats of batch jobs: JSON lines, CSV, Parquet; the first two also compressed.

One module per format reads rows and writes them. pyarrow is imported only where a file is Parquet
or compressed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from tfc.errors import UsageError

JSONL, CSV, TSV, PARQUET = "jsonl", "csv", "tsv", "parquet"
_KINDS = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": JSONL,
    ".csv": CSV,
    ".tsv": TSV,
    ".parquet": PARQUET,
    ".pq": PARQUET,
}
# Suffix → pyarrow's name of the codec.
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
KNOWN = "jsonl, csv, tsv or parquet; jsonl, csv and tsv also with .gz, .bz2 or .zst"


@dataclass(frozen=True)
class Format:
    """What is in a file: ``jsonl``, ``csv``, ``tsv`` or ``parquet``, and how it is compressed."""

    kind: str
    codec: str | None = None

    @property
    def suffix(self) -> str:
        """What a file's name ends with: ``.jsonl``, ``.csv.gz``."""
        codecs = {codec: suffix for suffix, codec in _CODECS.items()}
        return f".{self.kind}" + ("" if self.codec is None else codecs[self.codec])


def format_from_path(path: PurePath) -> Format | None:
    """The format that the name tells; None where it tells none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    codec = _CODECS.get(suffixes[-1]) if suffixes else None
    if codec is not None:
        suffixes = suffixes[:-1]
    kind = _KINDS.get(suffixes[-1]) if suffixes else None
    if kind is None or (kind == PARQUET and codec is not None):
        return None
    return Format(kind, codec)


def format_from_name(name: str) -> Format:
    """``csv`` or ``csv.gz`` → the format.

    Raises:
        UsageError: there is no such format.
    """
    found = format_from_path(PurePath(f"rows.{name}"))
    if found is None:
        raise UsageError(f"there is no format '{name}'", fix=f"Give {KNOWN}")
    return found
