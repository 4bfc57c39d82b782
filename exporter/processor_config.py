"""Find and read what a checkpoint says about its images or recordings."""

from __future__ import annotations

import json
from typing import Any

from tfc.errors import BadCheckpoint, first_line
from tfc.exporter.source import Source
from tfc.runtime.image_steps import PREPROCESSOR_CONFIG

_NAMES = (PREPROCESSOR_CONFIG, "processor_config.json")


def processor_config_of(source: Source, what: str) -> tuple[dict[str, Any], str]:
    """The processor's configuration and its path; `what` becomes tensors by it.

    An adapter without one has that of its base.

    Raises:
        BadCheckpoint: there is none, or it is not a JSON object.
    """
    folders = [source.folder] if source.base is None else [source.folder, source.base.folder]
    for path in (folder / name for folder in folders for name in _NAMES):
        if path.is_file():
            try:
                return dict(json.loads(path.read_text(encoding="utf-8"))), str(path)
            except (ValueError, TypeError) as error:
                raise BadCheckpoint(
                    f"the file is not a JSON object ({first_line(error)})",
                    where=str(path),
                    fix="Save it again with the processor's save_pretrained()",
                ) from error
    raise BadCheckpoint(
        f"this folder has no {PREPROCESSOR_CONFIG}, which says how {what} become tensors",
        where=source.given,
        fix="Save it into the folder with the processor's save_pretrained()",
    )
