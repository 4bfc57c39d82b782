"""Opening the image and audio files that a program names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tfc.errors import BadInput, first_line


@contextmanager
def opened_file(path: str | Path) -> Iterator[BinaryIO]:
    """The file at `path`, open for reading.

    Raises:
        BadInput: it is a web address, or cannot be opened or read.
    """
    if str(path).startswith(("http://", "https://")):
        raise BadInput(
            "this is a web address, and tfc fetches nothing",
            where=str(path),
            fix="Download it first, and give the file or its bytes",
        )
    try:
        with open(path, "rb") as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BadInput(
            f"this file cannot be read: {reason}",
            where=str(path),
            fix="Check the path; a relative one starts at the folder that the program runs in",
        ) from error
