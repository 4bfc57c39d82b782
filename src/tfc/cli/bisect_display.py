"""What `tfc verify --bisect` prints."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from rich.text import Text

from tfc.cli.console import facts, out, printable, table
from tfc.manifest import MODEL
from tfc.steps.bisection.report import ACCUMULATED, NOT_RUN, SUBGRAPH, Bisection, Found, StageGap
from tfc.steps.bisection.reproducer import Reproducer
from tfc.steps.verification.report import VerifyResult

_STAGES = {
    "export": "the exported graph",
    "optimize": "the optimized graph",
    "precision": "the change of precision",
    "engine file": "the engine's file",
    "engine": "the engine itself",
}
_HOW = {SUBGRAPH: "in the whole sub-graph", ACCUMULATED: "up to there"}


def show_bisections(result: VerifyResult) -> None:
    """For each engine its graphs beside PyTorch, the first wrong place, and how to show it."""
    for bisection in result.bisections:
        out.print()
        _show(bisection, result.artifact.path)


def _show(bisection: Bisection, artifact: Path) -> None:
    if bisection.outcome == NOT_RUN:
        out.print(f"{bisection.engine}: not bisected: {bisection.reason}")
        return
    of = "" if bisection.graph == MODEL else f", its {bisection.graph},"
    title = f"{bisection.engine}{of} against PyTorch in fp32"
    grid = table(title, ["graph", "state", ">max abs", ">allowed"])
    for stage in bisection.stages:
        grid.add_row(*_cells(stage))
    out.print(grid)
    rows = {"input": bisection.inputs}
    rows |= (
        _place(bisection.found) if bisection.found is not None else {"first": _nothing(bisection)}
    )
    rows |= {f"note{' ' * i}": note for i, note in enumerate(bisection.notes)}
    out.print(facts("", rows))
    if bisection.reproducer is not None:
        _show_reproducer(bisection.reproducer, artifact)


def _cells(stage: StageGap) -> tuple[str, str, str, str]:
    if not stage.ran:
        return stage.name, f"not run: {stage.reason.partition('. ')[0]}", "-", "-"
    state = "leaves PyTorch" if stage.fails else "agrees"
    return stage.name, state, f"{stage.max_abs:.1e}", f"{stage.allowed:.1e}"


def _nothing(bisection: Bisection) -> str:
    return bisection.reason or "no graph is off by more than its precision explains"


def _place(found: Found) -> dict[str, str]:
    """What made it, where it is, and by how much it is off."""
    made = _STAGES[found.stage] if found.step == found.stage else f"the pass '{found.step}'"
    layer = "" if found.layer is None else f" (layer {found.layer})"
    changed = f": {found.changed}" if found.changed else ""
    rows = {
        "first": f"{made}, in the module {found.module or 'that is not known'}{layer}",
        "node": f"{found.op_type} {found.node}{changed}",
        "value": f"{found.value}, {_amount(found)}",
    }
    others = [name for name in found.nodes if name != found.node]
    if others:
        rows["with"] = ", ".join(others)
    return rows


def _amount(found: Found) -> str:
    local, total = found.local, found.accumulated
    assert local is not None
    assert total is not None
    if found.told_by in _HOW:
        gap = total if found.told_by == ACCUMULATED else local
        how = _HOW[found.told_by]
        return f"off by {gap.max_abs:.2g} {how}, and {gap.allowed_max:.2g} is allowed"
    return (
        f"off by {local.max_abs:.2g} on exact inputs, and {local.allowed_max:.2g} is allowed; "
        f"by {total.max_abs:.2g} in the whole graph"
    )


def _show_reproducer(reproducer: Reproducer, artifact: Path) -> None:
    """The commands that show it, as they are typed."""
    head, marker, tail = reproducer.command.partition("--load-outputs")
    lines = [f"cd {quote(str(artifact / reproducer.folder))}", f"{head}\\", f"  {marker}{tail}"]
    if reproducer.shown:
        out.print("Show it with Polygraphy:")
    elif reproducer.why_not:
        out.print(printable(f"ONNX Runtime does not run this sub-graph: {reproducer.why_not}"))
    else:
        out.print("ONNX Runtime's own session does not show it; other runners may:")
    for line in lines:
        out.print(Text(printable(line)), soft_wrap=True)
