"""`tfc report`: what an artifact went through and what it can do, as a page for people."""

from __future__ import annotations

from pathlib import Path

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.files import write_atomically

HTML, MARKDOWN = ".html", ".md"
DEFAULT = "reports/report.html"


def report(artifact: Artifact | str | Path, output: str | Path | None = None) -> Path:
    """Write the report of an artifact, and say where.

    The page is one file that needs no network. The same artifact gives the same bytes.

    Args:
        artifact: the artifact, or its path.
        output: a file that ends in `.html` or `.md`; left out, `reports/report.html` of the
            artifact.

    Raises:
        UsageError: the file's name says another format.
        MissingPackage: a package of `tfc[report]` is not installed.
        BadArtifact: a file of the artifact is damaged.
    """
    from tfc.reporting.assemble import report_of_artifact
    from tfc.reporting.render import html_of, markdown_of

    artifact = Artifact.of(artifact)
    target = Path(output) if output is not None else None
    suffix = HTML if target is None else target.suffix
    if suffix not in (HTML, MARKDOWN):
        raise UsageError(
            "a report is HTML or Markdown, and this name says neither",
            where=str(target),
            fix="Give a file that ends in .html or .md",
        )
    found = report_of_artifact(artifact)
    text = html_of(found) if suffix == HTML else markdown_of(found)
    if target is not None:
        write_atomically(target, text.encode())
        return target
    with artifact.change() as change:
        change.path(DEFAULT).write_text(text, encoding="utf-8")
    return artifact.path / DEFAULT
