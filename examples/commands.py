"""What the examples share for compiling: where things go, and commands as one types them."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.cli import cli

DATA = Path(__file__).resolve().parent / "data"
# --quick shows that all steps work, in seconds: the model learns nothing from so few rows.
QUICK_ROWS = 16


@dataclass(frozen=True)
class Plan:
    """Where an example writes, and whether it only shows that it works."""

    folder: Path
    quick: bool

    @property
    def checkpoint(self) -> Path:
        """What is fine-tuned."""
        return self.folder / "checkpoint"

    @property
    def artifact(self) -> Path:
        """What `tfc export` makes of it."""
        return self.folder / "artifact"

    @property
    def predictions(self) -> Path:
        """What `tfc run` writes."""
        return self.folder / "predictions.jsonl"

    @property
    def report(self) -> Path:
        """What `tfc report` writes."""
        return self.folder / "report.md"

    @property
    def base(self) -> dict[str, Any]:
        """Of the base's layers all, or the first."""
        return {"num_hidden_layers": 1} if self.quick else {}

    @property
    def fewer(self) -> list[str]:
        """Flags of `tfc verify`: none, or few rows and no relations."""
        return ["--limit", str(QUICK_ROWS), "--no-relations"] if self.quick else []

    def some(self, rows: list[Any]) -> list[Any]:
        """All of the rows, or the first few."""
        return rows[:QUICK_ROWS] if self.quick else rows

    def epochs(self, number: int) -> int:
        """So many, or one."""
        return 1 if self.quick else number


def plan_from(description: str | None, name: str, arguments: Sequence[str] | None) -> Plan:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("build/examples") / name, metavar="FOLDER"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps on a few rows, to see it work"
    )
    asked = parser.parse_args(arguments)
    asked.output.mkdir(parents=True, exist_ok=True)
    return Plan(asked.output, asked.quick)


def say(words: Sequence[object]) -> list[str]:
    """Print a command line as it is typed here; return its words."""
    texts = [os.path.relpath(word) if isinstance(word, Path) else str(word) for word in words]
    print(f"\n$ {shlex.join(texts)}", flush=True)
    return texts


def tfc(*arguments: object) -> None:
    """Show a command of tfc and run it, in this process; if it fails, end with its exit code."""
    words = say(["tfc", *arguments])
    try:
        cli.main(words[1:], prog_name="tfc")
    except SystemExit as done:
        if done.code:
            raise
