"""`tfc optimize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tfc.cli.console import out, progress, table, working
from tfc.cli.options import (
    PassNames,
    allow_missed_option,
    pass_options,
    remove_padding_option,
)
from tfc.cli.simplify import Simplifying, check_simplifying, simplified, simplify_options
from tfc.cli.trim_vocab import Trimming, check_trimming, trim_options, trimmed
from tfc.errors import EXIT_CONTRACT, UsageError

_SHOWN = 5
_LABELS = {"attention": "attention", "add_layernorm": "add+LayerNorm"}


@click.command("optimize")
@click.argument("source", metavar="ARTIFACT|MODEL.onnx")
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "onnxruntime-cuda", "tensorrt"]),
    help="What the graph is for: ONNX Runtime on the CPU or on CUDA, or TensorRT. Needed unless "
    "the vocabulary is trimmed or the graph simplified only.",
)
@simplify_options
@trim_options
@pass_options
@remove_padding_option
@click.option(
    "--explain",
    "place",
    metavar="NODE",
    help="Tell what each pass thought of a node, a value or a module; write nothing.",
)
@click.option(
    "-o",
    "--output",
    metavar="OUT.onnx|DIR",
    help="Where to write an optimized MODEL.onnx, or the artifact with a trimmed vocabulary.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@allow_missed_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str,
    target: str | None,
    wanted: bool | None,
    calib: str | None,
    calib_limit: int | None,
    max_drop: float | None,
    label_column: str | None,
    trim_vocab: str | None,
    text_column: str | None,
    pair_column: str | None,
    keep_tokens: int | None,
    remove_padding: bool,
    place: str | None,
    output: str | None,
    as_json: bool,
    allow_missed: bool,
    **selection: tuple[str, ...],
) -> None:
    """Fuse the graph and lower it for a target.

    Attention and residual add+LayerNorm are recognised by what they mean, and counted against
    what the model must have. Every pass runs on the same inputs before and after it; a pass that
    changes the numbers is undone and named. Exit code 3 if a fusion was missed.

    'tfc build-engine' does this by itself where it is needed. An ONNX file of another exporter,
    MODEL.onnx, is written to OUT.onnx even where a fusion was missed. From 4 GiB of weights on they
    are not loaded: passes are judged on random ones in their place, and an OUT.onnx in the folder
    of MODEL.onnx goes on reading what did not change from the file where it is.

    --trim-vocab cuts the embeddings, the tokenizer and a head over the vocabulary to the tokens
    of a corpus, which give the same outputs as before; into a new artifact with -o.

    --simplify shrinks the matrices themselves, as far as --max-drop allows on --calib, and drops
    sublayers that nothing is left of. Engines and reports of the whole graph are removed.
    """
    is_file = Path(source).is_file() or source.endswith(".onnx")
    simplifying = Simplifying(wanted, calib, calib_limit, max_drop, label_column)
    check_simplifying(
        simplifying,
        is_file=is_file,
        explains=place is not None,
        elsewhere=output is not None and trim_vocab is None,
    )
    of_corpus = (text_column, pair_column) if trim_vocab or not wanted else (None, None)
    trimming = Trimming(trim_vocab, *of_corpus, keep_tokens)
    check_trimming(trimming, is_file=is_file, explains=place is not None)
    before: dict[str, Any] = {}
    if trim_vocab is not None:
        source, before["trim_vocab"] = trimmed(source, trimming, output, as_json)
        output = None
    if wanted is not None:
        before["simplify"] = simplified(source, simplifying, text_column, pair_column, as_json)
    if before and target is None:
        if as_json:
            print(json.dumps(before, indent=2))
        return
    if target is None:
        option = next(each for each in ctx.command.params if each.name == "target")
        raise click.MissingParameter(ctx=ctx, param=option)
    if place is not None:
        _explain(
            Path(source) if is_file else source, target, place, as_json, selection, remove_padding
        )
        return
    if is_file:
        report = _optimized_file(source, output, target, selection, remove_padding)
    elif output is not None:
        raise UsageError(
            "-o goes with an ONNX file; an artifact keeps its graphs itself",
            fix="Leave -o out, or give MODEL.onnx",
        )
    else:
        report = _optimized_artifact(
            source, target, allow_missed, as_json, selection, remove_padding
        )
    if as_json:
        print(json.dumps({**before, **report}, indent=2))
    else:
        print_report(report, target)
    short = any(c["found"] < c["expected"] for c in report["fusions"].values())
    if short and not allow_missed:
        ctx.exit(EXIT_CONTRACT)


def _explain(
    source: Path | str,
    target: str,
    place: str,
    as_json: bool,
    selection: PassNames,
    remove_padding: bool,
) -> None:
    from tfc.artifact import Artifact
    from tfc.steps.explain import explain

    opened = source if isinstance(source, Path) else Artifact.open(source)
    with working("asking every pass"):
        opinions = explain(opened, target, place, **selection, remove_padding=remove_padding)
    if as_json:
        print(json.dumps([vars(opinion) for opinion in opinions], indent=2))
        return
    grid = table("", ["pass", "node", "op", "what it says"])
    for opinion in opinions:
        grid.add_row(opinion.step, opinion.node or "-", opinion.op or "-", opinion.verdict)
    out.print(f"{place}   (target {target})", style="bold")
    out.print(grid)
    if not opinions:
        out.print("no fusion starts from there; name a node that one starts from: a Softmax, a "
                  "norm, an Attention, or the module around it")  # fmt: skip


def _optimized_artifact(
    source: str,
    target: str,
    allow_missed: bool,
    quiet: bool,
    selection: PassNames,
    remove_padding: bool,
) -> dict[str, Any]:
    from tfc.artifact import Artifact
    from tfc.steps.optimize import optimize

    opened = Artifact.open(source)
    with progress("optimizing") as report:
        result = optimize(
            opened,
            target,
            allow_missed=allow_missed,
            **selection,
            remove_padding=remove_padding,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    if result.skipped and not quiet:
        out.print(f"{', '.join(result.files.values())} is up to date")
    return result.report


def _optimized_file(
    source: str, output: str | None, target: str, selection: PassNames, remove_padding: bool
) -> dict[str, Any]:
    from tfc.steps.optimize_file import optimize_file

    if output is None:
        raise UsageError("there is no place to write to", fix="Name the file with -o OUT.onnx")
    with progress("optimizing") as report:
        result = optimize_file(
            source,
            output,
            target,
            passes=selection["passes"],
            only=selection["only"],
            skip=selection["skip"],
            remove_padding=remove_padding,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    return result.as_json()


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
    if "stand_in_bytes" in report:
        out.print(
            f"judged on random stand-ins for {report['stand_in_bytes'] / 1e9:.1f} GB of weights, "
            "which were not loaded"
        )
    for miss in [*report["missed"], *report.get("left_alone", [])][:_SHOWN]:
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
