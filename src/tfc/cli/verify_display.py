"""What `tfc verify` prints."""

from __future__ import annotations

from rich.table import Table

from tfc.cli.console import out, printable, table
from tfc.steps.verification.label_rows import MOST_NAMED, LeftOut
from tfc.steps.verification.relations import NOT_RUN as RELATION_NOT_RUN
from tfc.steps.verification.relations import Relation
from tfc.steps.verification.report import EngineVerdict, VerifyResult
from tfc.steps.verification.task_metrics import (
    ChangedRow,
    EngineMetrics,
    Judge,
    points_text,
    value_text,
)

# So many rows are named under a table; the report names more.
_FEW = 3
# Failing relations that are listed, for the same reason.
_MOST_RELATIONS = 8


def show_parity(result: VerifyResult) -> None:
    """One table with a row per engine, and why those that failed did."""
    grid = table(
        f"Output {result.output} on {result.rows} {result.cases.noun} of {result.cases.origin}",
        ["engine", "verdict", ">max abs", ">mean abs", ">allowed", ">cosine", ">argmax"],
    )
    decides = not result.artifact.manifest.task.name.endswith("feature-extraction")
    for found in result.verdicts:
        grid.add_row(found.engine, found.verdict, *_numbers(found, decides))
    out.print(grid)
    for found in result.verdicts:
        if found.reason:
            reason = found.reason.partition(". ")[0] if found.parity is None else found.reason
            out.print(f"{found.engine} {found.verdict}: {reason}")
        elif found.tolerance is not None:
            out.print(f"{found.engine}: allowed is {found.tolerance.source}")
        if found.agreement is not None and found.agreement.holds:
            out.print(f"{found.engine}: {found.agreement.text()}")


def show_relations(result: VerifyResult) -> None:
    """For each engine how many relations hold, a table of those that do not, and what was not run.

    A relation holds if it does at every size.
    """
    for found in result.verdicts:
        if not found.relations:
            continue
        names = dict.fromkeys(one.name for one in found.relations)
        failed = [one for one in found.relations if one.fails]
        checked = {one.name for one in found.relations if one.outcome != RELATION_NOT_RUN}
        holding = len(checked - {one.name for one in failed})
        counted = f"{holding} of {len(names)} relations hold" if checked else "no relations"
        out.print(f"{found.engine}: {counted}{_left(found)}")
        if failed:
            out.print(_failed_relations(failed[:_MOST_RELATIONS]))
        if len(failed) > _MOST_RELATIONS:
            out.print(f"… and {len(failed) - _MOST_RELATIONS} more in the report")


def _left(found: EngineVerdict) -> str:
    """The relations that were not run, by reason."""
    reasons: dict[str, dict[str, None]] = {}
    for one in found.relations:
        if one.outcome == RELATION_NOT_RUN:
            reasons.setdefault(one.reason, {})[one.name] = None
    texts = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]
    return f"; not run: {'; '.join(texts)}" if texts else ""


def _failed_relations(failed: list[Relation]) -> Table:
    grid = table("", ["relation that fails", "rows x tokens", ">max abs", ">allowed"])
    for one in failed:
        if one.max_abs is None or one.allowed is None:
            grid.add_row(one.name, f"{one.size}: {printable(one.reason)}", "-", "-")
        else:
            grid.add_row(one.name, one.size, f"{one.max_abs:.1e}", f"{one.allowed:.1e}")
    return grid


def show_metrics(result: VerifyResult) -> None:
    """A table per engine, the rows that changed, and those without a label."""
    judge = result.judge
    if judge is None:
        return
    for found in result.verdicts:
        if found.metrics is not None:
            _show_engine(found.engine, found.metrics, judge)
    left_out = judge.labelled.left_out
    if left_out.rows:
        rows = len(judge.labelled.rows) + left_out.rows
        out.print(printable(_left_out_text(left_out, rows)))


def _show_engine(name: str, metrics: EngineMetrics, judge: Judge) -> None:
    rows = len(judge.labelled.rows)
    grid = table(
        f"{name} on {rows} labelled rows",
        ["metric", ">PyTorch", ">engine", ">difference", ">95 % interval"],
    )
    for metric, value in metrics.values.items():
        difference = metrics.differences[metric]
        low, high = (_signed(metric, end) for end in (difference.low, difference.high))
        grid.add_row(
            metric,
            value_text(metric, judge.values[metric]),
            value_text(metric, value),
            _signed(metric, difference.value),
            f"[{low}, {high}]",
        )
    out.print()
    out.print(grid)
    if metrics.flips is not None:
        out.print(printable(_flips_text(metrics.flips, rows)))


def _signed(metric: str, value: float) -> str:
    """A difference with its sign, without its unit; what rounds to nothing is `0.00`."""
    text = points_text(metric, value).partition(" ")[0]
    if float(text) == 0:
        return text.removeprefix("-")
    return text if value < 0 else f"+{text}"


def _flips_text(flips: list[ChangedRow], rows: int) -> str:
    if not flips:
        return f"PyTorch and the engine agree on all {rows} rows"
    lines = ", ".join(str(row.line) for row in flips[:_FEW])
    more = ", …" if len(flips) > _FEW else ""
    return f"PyTorch and the engine disagree on {len(flips)} of {rows} rows: line {lines}{more}"


def _left_out_text(left_out: LeftOut, rows: int) -> str:
    labels = [f"{label} ({count})" for label, count in left_out.labels.items()][:MOST_NAMED]
    more = ", …" if len(left_out.labels) > MOST_NAMED else ""
    return (
        f"in no metric: {left_out.rows} of {rows} rows, whose label the model does not know:"
        f" {', '.join(labels)}{more}; first in line {left_out.lines[0]}"
    )


def _numbers(found: EngineVerdict, decides: bool) -> list[str]:
    """The cells of one engine; the place of an embedding's largest value means nothing."""
    parity, tolerance = found.parity, found.tolerance
    if parity is None or tolerance is None:
        return ["-"] * 5
    return [
        f"{parity.max_abs:.1e}",
        f"{parity.mean_abs:.1e}",
        f"{tolerance.max_abs:.1e}",
        f"{parity.cosine:.6f}",
        f"{parity.argmax_agreement:.2%}" if decides else "-",
    ]
