"""`tfc optimize`."""

from __future__ import annotations

from typing import Any

import click

from tfc.cli.console import out, progress, table
from tfc.cli.options import allow_missed_option, artifact_argument

_LABELS = {"attention": "attention", "add_layernorm": "add+LayerNorm"}


@click.command("optimize")
@artifact_argument
@click.option(
    "--target",
    required=True,
    type=click.Choice(["onnxruntime", "tensorrt"]),
    help="The family of runtimes that the graph is for.",
)
@allow_missed_option
def command(artifact: str, target: str, allow_missed: bool) -> None:
    """Fuse the graph and lower it for a target.

    Attention and residual add+LayerNorm are recognised by what they mean, and counted against
    what the model must have. Every pass runs on the same inputs before and after it; a pass that
    changes the numbers is undone and named. Exit code 3 if a fusion was missed.

    'tfc build-engine' does this by itself where it is needed.
    """
    from tfc.artifact import Artifact
    from tfc.steps.optimize import optimize

    opened = Artifact.open(artifact)
    with progress("optimizing") as report:
        result = optimize(
            opened,
            target,
            allow_missed=allow_missed,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    if result.skipped:
        out.print(f"{result.file} is up to date")
    print_report(result.report, target)


def print_report(report: dict[str, Any], target: str) -> None:
    """The fusion report: the counts, and the ledger."""
    out.print(f"{fusion_summary(report)}   (target {target})", style="bold")
    grid = table("", ["pass", ">sites", ">difference", "verdict"])
    for entry in report["passes"]:
        grid.add_row(entry["name"], str(entry["changed"]), _difference(entry), _verdict(entry))
    out.print(grid)
    nodes = report["nodes"]
    out.print(
        f"nodes {nodes['before']} → {nodes['after']}; differences are relative to the output's "
        f"scale, {report['tolerance']:.0e} is allowed"
    )
    for miss in report["missed"][:5]:
        out.print(f"left alone: {miss['kind']} at {miss['module'] or miss['node']}: "
                  f"{miss['reason']}")  # fmt: skip


def fusion_summary(report: dict[str, Any]) -> str:
    """`attention 6/6, add+LayerNorm 12/12`."""
    return ", ".join(
        f"{_LABELS.get(kind, kind)} {count['found']}/{count['expected']}"
        for kind, count in report["fusions"].items()
    )


def _difference(entry: dict[str, Any]) -> str:
    if entry["changed"] == 0:
        return "-"
    return "invalid" if entry["difference"] is None else f"{entry['difference']:.1e}"


def _verdict(entry: dict[str, Any]) -> str:
    if entry["reverted"]:
        return f"reverted {entry['error']}".strip()
    return "kept" if entry["changed"] else "nothing to do"
