"""The rows that a graph is simplified on: one half chooses, the other one judges."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tfc.artifact import Artifact
from tfc.errors import BadData
from tfc.steps.int8.rows import CalibrationRows, RowSource, calibration_rows

# In each half. Fewer tell nothing: one of eight decisions is 12 %.
LEAST_ROWS = 8


@dataclass(frozen=True)
class Halves:
    """What is chosen on, and what it is judged on."""

    choosing: CalibrationRows
    judging: CalibrationRows


def halves_of(artifact: Artifact, source: RowSource) -> Halves:
    """Every other row of the file, from the first and from the second.

    Raises:
        BadData: the file cannot be used, or has too few rows.
        UsageError: there are no metrics for the task, and the rows are said to have labels.
    """
    with _parted(source) as paths:
        choosing, judging = (
            calibration_rows(artifact, dataclasses.replace(source, path=path, limit=source.limit))
            for path in paths
        )
    return Halves(choosing, judging)


@contextmanager
def _parted(source: RowSource) -> Iterator[list[Path]]:
    try:
        text = source.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(
            f"the data cannot be read ({error})",
            where=str(source.path),
            fix="Name a file of JSON lines with --calib",
        ) from error
    lines = [line for line in text.splitlines() if line.strip()][: source.limit]
    if len(lines) < 2 * LEAST_ROWS:
        raise BadData(
            f"{len(lines)} rows are too few to choose on one half and to judge on the other",
            where=str(source.path),
            fix=f"Give at least {2 * LEAST_ROWS}; some hundred tell half a percent",
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}-{source.path.name}" for name in ("choosing", "judging")]
        for number, path in enumerate(paths):
            path.write_text("\n".join(lines[number::2]) + "\n", encoding="utf-8")
        yield paths
