"""`tfc optimize --simplify`: the options, the call, and what is printed of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from tfc.cli.console import human_count, out, progress, table
from tfc.cli.options import Percent
from tfc.errors import UsageError
from tfc.reporting.simplification import accuracy_texts, effect_text


@dataclass(frozen=True)
class Simplifying:
    """What the options say; `wanted` is None where neither of the two flags was given."""

    wanted: bool | None
    calib: str | None
    calib_limit: int | None
    max_drop: float | None
    label_column: str | None


def simplify_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flags, and the data."""
    for decorate in (
        click.option(
            "--label-column", metavar="FIELD", help="Its field with the label.  [default: none]"
        ),
        click.option(
            "--max-drop",
            type=Percent(),
            metavar="PERCENT",
            help="How far the outputs may move on it: in the main metric with --label-column, or "
            "else in agreement.  [default: 0.5%]",
        ),
        click.option(
            "--calib-limit",
            type=click.IntRange(min=1),
            metavar="ROWS",
            help="Read its first so many rows.  [default: 512]",
        ),
        click.option(
            "--calib",
            type=click.Path(),
            metavar="DATA",
            help="For --simplify: JSON lines with texts like those that the model will read.",
        ),
        click.option(
            "--simplify/--no-simplify",
            "wanted",
            default=None,
            help="First take out attention heads, FFN neurons and layers that the outputs do not "
            "need on --calib; or go back to the whole graph.",
        ),
    ):
        function = decorate(function)
    return function


def check_simplifying(
    given: Simplifying, *, is_file: bool, explains: bool, elsewhere: bool
) -> None:
    """Refuse options that do not go together; `elsewhere` is whether -o names another place.

    Raises:
        UsageError: what does not go with what.
    """
    named = {
        "--calib": given.calib,
        "--calib-limit": given.calib_limit,
        "--max-drop": given.max_drop,
        "--label-column": given.label_column,
    }
    unread = next((name for name, value in named.items() if value is not None), None)
    if not given.wanted and unread is not None:
        raise UsageError(f"{unread} goes with --simplify", fix=f"Add it, or leave {unread} out")
    if given.wanted is None:
        return
    if is_file:
        raise UsageError(
            "an ONNX file has no tokenizer to read texts with",
            fix="Give an artifact, from: tfc export",
        )
    if elsewhere:
        raise UsageError(
            "-o goes with an ONNX file or --trim-vocab; a simplified graph stays in its artifact",
            fix="Leave -o out, or copy the artifact first",
        )
    if explains:
        raise UsageError("--explain writes nothing", fix="Simplify the artifact first, alone")


def simplified(
    source: str,
    given: Simplifying,
    text_column: str | None,
    pair_column: str | None,
    quiet: bool,
) -> dict[str, Any]:
    """Simplify an artifact, or go back; returns the report, empty where it went back."""
    from tfc.steps.simplification.simplify import simplify, undo_simplify

    if not given.wanted:
        gone = undo_simplify(source)
        if not quiet:
            out.print("back to the exported graph" if gone else "the graph is not simplified")
        return {}
    with progress("simplifying") as report:
        result = simplify(
            source,
            given.calib,
            max_drop=given.max_drop,
            text_column=text_column,
            pair_column=pair_column,
            label_column=given.label_column,
            limit=given.calib_limit,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    if not quiet:
        if result.skipped:
            out.print("the simplified graph is up to date")
        print_simplified(result.report)
    return result.report


def print_simplified(report: dict[str, Any]) -> None:
    """What went of each layer, and what that costs and gains."""
    out.print(effect_text(report), style="bold")
    grid = table("", [">layer", "part", ">of", ">kept", ">FLOPs saved"])
    for site in report["sites"]:
        layer = "-" if site["layer"] is None else str(site["layer"])
        kept = str(site["kept"]) if site["kept"] else "dropped"
        units = f"{site['units']} {site['kind']}"
        grid.add_row(
            layer, _below_layer(site["module"], layer), units, kept, f"{site['flops_share']:.0%}"
        )
    out.print(grid)
    if report["layers_dropped"]:
        out.print(f"layers dropped: {', '.join(map(str, report['layers_dropped']))}")
    parameters = report["parameters"]
    out.print(
        f"parameters {human_count(parameters['whole'])} → {human_count(parameters['simplified'])}"
    )
    for text in accuracy_texts(report):
        out.print(text)
    for site in report["left_alone"]:
        out.print(f"left alone: {site['kind']} of {site['module']}: {site['reason']}")


def _below_layer(module: str, layer: str) -> str:
    """The module's path inside its layer, whose number stands beside it."""
    _, found, inside = module.partition(f".{layer}.")
    return inside if found else module
