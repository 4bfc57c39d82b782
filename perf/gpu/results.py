"""What a stage of the campaign found, written after every item, so that a kill loses nothing.

One JSON file a stage: `stage`, `schema`, `complete` and `items`. An item has a `name`, a `status`
(`done`, `failed`, `skipped`), `seconds`, a `reason` where it is not done, and `found`. A stage that
runs again keeps the items that are done and does the others.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
DONE, FAILED, SKIPPED = STATUSES = ("done", "failed", "skipped")
_MOST_TEXT = 4000  # characters of a traceback, its end


class Skip(Exception):
    """An item that cannot be done here; its text is the reason."""


@dataclass
class Stage:
    """The file of one stage.

    Args:
        name: of the stage.
        folders: where to write it; the first one is read when the stage runs again.
        until: `time.monotonic()` after which no further item is begun.
    """

    name: str
    folders: tuple[Path, ...]
    until: float
    items: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
        earlier = self.folders[0] / f"{self.name}.json"
        if earlier.is_file():
            found = json.loads(earlier.read_text(encoding="utf-8"))["items"]
            self.items = {item["name"]: item for item in found if item["status"] == DONE}

    def item(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Do `work` unless it is done already; what it gives, or raises, is written at once."""
        if name in self.items and self.items[name]["status"] == DONE:
            return self.items[name]
        begun = time.monotonic()
        item: dict[str, Any] = {"name": name, "status": DONE, "seconds": 0.0}
        if begun > self.until:
            item |= {"status": SKIPPED, "reason": "the time of this call was used up"}
        else:
            try:
                item["found"] = dict(work())
            except Skip as reason:
                item |= {"status": SKIPPED, "reason": str(reason)}
            except Exception as error:  # whatever it is, the other items go on
                text = "".join(traceback.format_exception(error))
                item |= {"status": FAILED, "reason": _line(error), "traceback": text[-_MOST_TEXT:]}
        item["seconds"] = round(time.monotonic() - begun, 3)
        self.items[name] = item
        self.write(complete=False)
        told = item.get("reason", "")
        print(f"{self.name}: {name}: {item['status']} {item['seconds']:.1f} s {told}", flush=True)
        return item

    def write(self, *, complete: bool) -> None:
        """Write what there is into every folder."""
        report = {
            "stage": self.name,
            "schema": SCHEMA,
            "complete": complete and all(i["status"] == DONE for i in self.items.values()),
            "items": list(self.items.values()),
        }
        text = json.dumps(report, indent=1, default=str) + "\n"
        for folder in self.folders:
            begun = folder / f"{self.name}.json.begun"
            begun.write_text(text, encoding="utf-8")
            begun.replace(folder / f"{self.name}.json")


def found_by(folder: Path, stage: str) -> dict[str, dict[str, Any]]:
    """What the items of an earlier stage found, by name; of those that are done."""
    path = folder / f"{stage}.json"
    if not path.is_file():
        return {}
    items = json.loads(path.read_text(encoding="utf-8"))["items"]
    return {item["name"]: item["found"] for item in items if item["status"] == DONE}


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"
