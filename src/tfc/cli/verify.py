"""`tfc verify`."""

from __future__ import annotations

import json

import click

from tfc.cli.console import out, progress
from tfc.cli.options import Percent, artifact_argument, checkpoint_options, engine_option
from tfc.errors import EXIT_CHECK_FAILED


@click.command("verify")
@artifact_argument
@engine_option
@click.option(
    "--data",
    type=click.Path(),
    help="JSON lines with a text each.  [default: the samples kept at export]",
)
@click.option(
    "--text-column",
    metavar="FIELD",
    help="The field with the text.  [default: text; of labelled questions: question]",
)
@click.option(
    "--pair-column",
    metavar="FIELD",
    help="The field with the second text of labelled rows.  [default: none, context or text_pair]",
)
@click.option("--label-column", metavar="FIELD", help="The field with the label, for metrics.")
@click.option(
    "--max-drop",
    type=Percent(),
    metavar="PERCENT",
    help="Fail an engine whose main metric is further below PyTorch's: 0.5%",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=512, show_default=True, help="Rows to compare."
)
@click.option(
    "--relations/--no-relations",
    default=True,
    show_default=True,
    help="Check padding, rows and odd texts too, at every size of the engine's profile.",
)
@click.option(
    "--bisect", is_flag=True, help="Find the first pass, layer and node where an engine is off."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@checkpoint_options
@click.pass_context
def command(
    ctx: click.Context,
    artifact: str,
    engines: tuple[str, ...],
    data: str | None,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    max_drop: float | None,
    limit: int,
    relations: bool,
    bisect: bool,
    as_json: bool,
    checkpoints: tuple[str, ...],
    base: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> None:
    """Check that engines still say what PyTorch says.

    Each engine that can run here and the checkpoint in fp32 PyTorch get the same text. How far
    they may differ is not a fixed number: an fp16 engine may be a few times as far from fp32 as
    PyTorch itself is when it runs in fp16. Exit code 1 if an engine fails.

    With --label-column the metrics of the task are compared as well. A label is the name or the
    index of a class, or a list of them where the model gives several; a list of entities with
    start, end and label; a list of answers; the text that is to be written, or a list of texts that
    would do; or a number, the score of a regression or how similar two texts are.

    Relations hold whatever the data are. Padding on either side, holes in the mask, single tokens
    and odd texts are compared with PyTorch; rows in another order, alone, or all the same, with the
    engine itself.

    With --bisect the graphs that an engine came from are compared with PyTorch as well, value by
    value, on the input where the engine is furthest off. What is found is named, and the smallest
    sub-graph that shows it is kept in the artifact, with a command of Polygraphy that runs it.
    """
    from tfc.artifact import VERIFY_REPORT, Artifact
    from tfc.cli.bisect_display import show_bisections
    from tfc.cli.verify_display import show_metrics, show_parity, show_relations
    from tfc.steps.verification.verify import verify

    opened = Artifact.open(artifact)
    with progress("verifying") as report:
        result = verify(
            opened,
            engines=engines,
            data=data,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            max_drop=max_drop,
            limit=limit,
            relations=relations,
            bisect=bisect,
            checkpoint=checkpoints,
            base=base,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2, ensure_ascii=False, default=float))
    else:
        show_parity(result)
        show_relations(result)
        show_metrics(result)
        show_bisections(result)
        if result.failed and not bisect:
            out.print("Find where with: tfc verify --bisect, and the same options")
        out.print(f"written to {opened.path / VERIFY_REPORT}", soft_wrap=True)
    if result.failed:
        ctx.exit(EXIT_CHECK_FAILED)
