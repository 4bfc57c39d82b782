"""A report as one HTML page that needs nothing else, or as Markdown for a pull request."""

from __future__ import annotations

from typing import Any

from tfc.errors import require
from tfc.reporting.blocks import Chart, Note, Report, Table


def html_of(report: Report) -> str:
    """One page: no script, no font, no picture from elsewhere."""
    return str(_environment(autoescape=True).get_template("report.html.j2").render(report=report))


def markdown_of(report: Report) -> str:
    """The same tables and sentences; what charts show stands in words."""
    return str(_environment(autoescape=False).get_template("report.md.j2").render(report=report))


def _environment(*, autoescape: bool) -> Any:
    require("jinja2", "report")
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tfc.reporting"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    made.tests["table"] = lambda block: isinstance(block, Table)
    made.tests["chart"] = lambda block: isinstance(block, Chart)
    made.tests["note"] = lambda block: isinstance(block, Note)
    made.filters["cell"] = markdown_cell
    return made


def markdown_cell(text: str) -> str:
    """`text` in a cell of a Markdown table: in one line, its marks spelled out."""
    for mark in ("\\", "|", "`", "*", "_", "<", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split()) or " "
