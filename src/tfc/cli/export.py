"""`tfc export`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from tfc.cli.console import facts, human_bytes, human_count, human_seconds, out, working
from tfc.cli.options import NumberList, json_option
from tfc.ensemble import NORMALIZATIONS, RULES, ensemble_summary, nothing_combines
from tfc.errors import UsageError
from tfc.manifest import MODEL, Checkpoint, Manifest, TensorSpec

if TYPE_CHECKING:
    from tfc.steps.export import ExportResult


class ExportCommand(click.Command):
    """Its help ends with the tasks."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each task, and what its model gives."""
        with formatter.section("Tasks"):
            formatter.write_dl(list(TASKS.items()))


# The same names as in tfc.exporter.tasks, which needs torch; a test compares the two.
TASKS = {
    "text-classification": "labels or scores of texts and of pairs of texts",
    "zero-shot-classification": "labels chosen at run time, by an NLI model",
    "token-classification": "entities and their places in the text",
    "question-answering": "the answer's place in a context",
    "fill-mask": "the likeliest words for each mask",
    "feature-extraction": "embeddings of texts",
    "text-generation": "what a causal model writes after a text",
    "text2text-generation": "translations, summaries, answers",
    "image-classification": "labels of images",
    "image-feature-extraction": "embeddings of images",
    "automatic-speech-recognition": "what is said in recordings",
}


# tfc.exporter.to_onnx.OPSET, which needs torch; the same test compares it.
OPSET = 23


@click.command("export", cls=ExportCommand)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("-o", "--output", required=True, metavar="ARTIFACT", help="The folder to create.")
@click.option(
    "--task",
    metavar="TASK",
    help="What the model does, see below.  [default: told by the checkpoint's architecture]",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    help="Longest text in tokens, below the model's own limit.",
)
@click.option(
    "--base",
    metavar="CHECKPOINT",
    help="Base model of an adapter.  [default: told by its adapter_config.json]",
)
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option(
    "--no-tokenizer",
    is_flag=True,
    help="Export a text model that takes tensors only; its folder needs no tokenizer.",
)
@click.option(
    "--ensemble",
    type=click.Choice(RULES),
    help="Combine several checkpoints: the mean of what they say, a weighted one, a vote, the "
    "most that any says, or what a second stage makes of it.",
)
@click.option(
    "--weights", type=NumberList(), metavar="W,W,…", help="A weight for each, for weighted."
)
@click.option(
    "--normalize",
    type=click.Choice(NORMALIZATIONS),
    help="What is combined: probabilities, z-scores of the logits, or probabilities with a "
    "temperature.  [default: softmax]",
)
@click.option(
    "--temperature",
    type=NumberList(),
    metavar="T,T,…",
    help="What each one's logits are divided by, for --normalize temperature.",
)
@click.option(
    "--stack",
    metavar="FILE",
    help="The second stage for stack, which tfc.second_stage(fitted).save(FILE) wrote.",
)
@click.option(
    "--heads",
    metavar="NAME,NAME,…",
    help="Keep an output for each of several classifiers of the same text, with these names.",
)
@click.option("--overwrite", is_flag=True, help="Replace an artifact that is there already.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run the Python code that comes with the checkpoint."
)
@click.option(
    "--allow-pickle", is_flag=True, help="Read weights that are pickles. A pickle can run code."
)
@json_option
def command(
    checkpoints: tuple[str, ...],
    output: str,
    task: str | None,
    max_length: int | None,
    base: str | None,
    revision: str | None,
    no_tokenizer: bool,
    ensemble: str | None,
    weights: tuple[float, ...] | None,
    normalize: str | None,
    temperature: tuple[float, ...] | None,
    stack: str | None,
    heads: str | None,
    overwrite: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint into an artifact.

    CHECKPOINT is a folder that save_pretrained(), sentence-transformers or peft wrote, or the id
    of a model on the Hugging Face hub. The graph is compared with the checkpoint at once, on varied
    text and with every kind of padding; if they differ, there is no artifact, and ARTIFACT.failed
    holds what shows it. Several checkpoints become one graph that gives their combination
    (--ensemble), or what each says (--heads).
    """
    from tfc.steps.export_module import export

    single = {"base": base, "revision": revision, "tokenizer": not no_tokenizer}
    combined = {
        "weights": weights,
        "normalize": normalize,
        "temperature": temperature,
        "stack": stack,
    }
    if ensemble is None:
        _refuse(combined, "is read with --ensemble only")
        if len(checkpoints) > 1 and heads is None:
            raise nothing_combines(len(checkpoints))
    own: dict[str, Any] = single
    if ensemble is not None or heads is not None:
        _refuse(
            {"base": base, "revision": revision, "no_tokenizer": no_tokenizer},
            "is about one checkpoint, and not about several",
        )
        own = {"ensemble": ensemble, **combined} if ensemble is not None else {}
        if heads is not None:
            own["heads"] = [name.strip() for name in heads.split(",")]
    begun = time.perf_counter()
    with working("exporting") as say:
        result = export(
            checkpoints[0] if own is single else checkpoints,
            output,
            task=task,
            max_length=max_length,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            on_stage=say,
            **own,
        )
    manifest = result.artifact.manifest
    if as_json:
        click.echo(json.dumps(_as_json(result), indent=2, ensure_ascii=False))
        return
    if result.skipped:
        out.print(f"{output} is up to date: same checkpoint, options and versions")
        return
    parity = manifest.steps[0].result["parity"]
    rows = {**_made_from(manifest), "task": manifest.task.name}
    if manifest.task.labels:
        rows["labels"] = f"{len(manifest.task.labels)}: {_shortened(manifest.task.labels)}"
    for name, head in manifest.task.heads.items():
        rows[f"head {name}"] = f"{len(head.labels)}: {_shortened(head.labels)}"
    if manifest.task.pooling:
        normalized = ", normalised" if manifest.task.normalize else ""
        rows["pooling"] = f"{manifest.task.pooling}{normalized}"
    rows.update(_graphs(manifest))
    rows["graph"] = f"ONNX opset {OPSET}, standard operators only"
    reason = ", from PyTorch's own rounding" if parity.get("from_rounding") else ""
    rows["parity"] = (
        f"largest difference {parity['max_abs']:.1e} on values up to {parity['scale']:.3g} "
        f"({parity['tolerance']:.0e} of that is allowed{reason})"
    )
    rows["size"] = human_bytes(sum(record.bytes for record in manifest.files.values()))
    out.print(facts(f"Exported to {output} in {human_seconds(time.perf_counter() - begun)}", rows))


def _as_json(result: ExportResult) -> dict[str, Any]:
    """What was made, for machines; all of it stands in the manifest."""
    manifest = result.artifact.manifest
    return {
        "artifact": str(result.artifact.path),
        "skipped": result.skipped,
        "task": manifest.task.name,
        "labels": manifest.task.labels,
        "parity": manifest.steps[0].result["parity"],
        "seconds": manifest.steps[0].seconds,
        "bytes": sum(record.bytes for record in manifest.files.values()),
    }


def _refuse(options: dict[str, Any], why: str) -> None:
    """Options that were given and would do nothing."""
    for name, value in options.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {why}", fix=f"Leave {option} out")


def _made_from(manifest: Manifest) -> dict[str, str]:
    """The model, or the models and what is done with them."""
    if manifest.ensemble is None:
        return {"checkpoint": _model(manifest.checkpoint)}
    members = manifest.ensemble.members
    rows = {f"member {n}": _model(m.checkpoint) for n, m in enumerate(members, start=1)}
    tokenizers = 1 + len(manifest.ensemble.preprocess)
    rows["ensemble"] = ensemble_summary(manifest.ensemble)
    rows["tokenizers"] = "1, shared" if tokenizers == 1 else str(tokenizers)
    shared = manifest.steps[0].result["shared"]
    if shared["nodes"]:
        rows["shared"] = (
            f"{shared['nodes']} nodes and {human_bytes(shared['weight_bytes'])} of weights, "
            "computed and kept once"
        )
    return rows


def _model(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.architecture}, {human_count(checkpoint.parameters)} parameters"


def _graphs(manifest: Manifest) -> dict[str, str]:
    """What goes into the graphs and comes out; caches are counted, not listed."""
    if len(manifest.graphs) == 1 and MODEL in manifest.graphs:
        outputs = manifest.signature.outputs
        shown = ", ".join(f"{o.name} [{', '.join(map(str, o.shape))}]" for o in outputs)
        return {
            "inputs": ", ".join(spec.name for spec in manifest.signature.inputs),
            "output" if len(outputs) == 1 else "outputs": shown,
        }
    return {
        name: f"{_named(graph.signature.inputs)} → {_named(graph.signature.outputs)}"
        for name, graph in manifest.graphs.items()
    }


def _named(tensors: list[TensorSpec]) -> str:
    """Names; `past_key_values.0.key` and the like as one."""
    return ", ".join(dict.fromkeys(spec.name.partition(".")[0] for spec in tensors))


def _shortened(labels: list[str]) -> str:
    shown = ", ".join(labels[:4])
    return f"{shown}, …" if len(labels) > 4 else shown
