"""What a report is made of, whatever it is written as."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells by row; a column whose name begins with `>` is aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [name.removeprefix(">") for name in self.columns]

    @property
    def right(self) -> list[bool]:
        """Which columns are aligned to the right."""
        return [name.startswith(">") for name in self.columns]


@dataclass(frozen=True)
class Chart:
    """A drawing, and the same in words for whoever does not see it."""

    svg: str
    says: str


@dataclass(frozen=True)
class Note:
    """A sentence; `missing` says that something was not run or not measured."""

    text: str
    missing: bool = False


Block = Table | Chart | Note


@dataclass(frozen=True)
class Section:
    """A part of the report under its own title."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True)
class Report:
    """The whole: `facts` say what it is about."""

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
