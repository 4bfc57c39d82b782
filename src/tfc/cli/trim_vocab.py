"""`tfc optimize --trim-vocab`: the options, the call, and what is printed of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from tfc.cli.console import human_bytes, out, progress
from tfc.errors import UsageError

_WORDS = {
    "fill-mask": "what it puts in the place of a mask",
    "text-generation": "what it writes",
    "text2text-generation": "what it writes",
    "automatic-speech-recognition": "what it writes",
}


@dataclass(frozen=True)
class Trimming:
    """What the options say; `corpus` is None where nothing is to be trimmed."""

    corpus: str | None
    text_column: str | None
    pair_column: str | None
    keep_tokens: int | None


def trim_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The corpus, and its fields."""
    for decorate in (
        click.option(
            "--keep-tokens",
            type=click.IntRange(min=1),
            metavar="N",
            help="Keep the first N tokens of the vocabulary too, where most tokenizers have the "
            "frequent ones.",
        ),
        click.option("--pair-column", metavar="NAME", help="Field of a second text of the corpus."),
        click.option(
            "--text-column",
            metavar="NAME",
            help="Field of a corpus of rows that holds the text.  [default: text]",
        ),
        click.option(
            "--trim-vocab",
            metavar="CORPUS",
            help="First cut the vocabulary to what a corpus uses: a text per line, or JSON lines, "
            "CSV, TSV or Parquet.",
        ),
    ):
        function = decorate(function)
    return function


def check_trimming(trimming: Trimming, *, is_file: bool, explains: bool) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: what does not go with what.
    """
    if trimming.corpus is None:
        if trimming.text_column is not None or trimming.pair_column is not None:
            raise UsageError(
                "a column is named, and no corpus that has it", fix="Name it with --trim-vocab"
            )
        if trimming.keep_tokens is not None:
            raise UsageError("no vocabulary is trimmed", fix="Name a corpus with --trim-vocab")
        return
    if is_file:
        raise UsageError(
            "an ONNX file has no tokenizer that could be trimmed with it",
            fix="Give an artifact",
        )
    if explains:
        raise UsageError("--explain writes nothing", fix="Trim the vocabulary first, alone")


def trimmed(source: str, trimming: Trimming, output: str | None, quiet: bool) -> tuple[str, Any]:
    """Trim an artifact; where the result is, and the report, which is printed unless `quiet`."""
    from tfc.steps.vocabulary.trim import trim_vocab

    assert trimming.corpus is not None
    with progress("trimming the vocabulary") as report:
        result = trim_vocab(
            source,
            trimming.corpus,
            output=output,
            text_column=trimming.text_column,
            pair_column=trimming.pair_column,
            keep_tokens=trimming.keep_tokens or 0,
            on_progress=lambda what, done, total: report(done, total, what),
        )
    if not quiet:
        if result.skipped:
            out.print(f"the vocabulary of {result.artifact.path} is trimmed already")
        print_trimmed(result.report, result.artifact.manifest.task.name)
    return str(result.artifact.path), result.report


def print_trimmed(report: dict[str, Any], task: str) -> None:
    """What was cut, what was proven, and what new text meets."""
    out.print(f"{vocabulary_summary(report)}   ({report['tokenizer']})", style="bold")
    weights = report["weight_bytes"]
    out.print(
        f"its weights {human_bytes(weights['before'])} → {human_bytes(weights['after'])}; rows "
        "are moved, not changed"
    )
    corpus = report["corpus"]
    out.print(
        f"corpus: {corpus['texts']:,} texts give the same {corpus['tokens']:,} tokens as before"
    )
    for name, found in report["outputs"].items():
        same = f"off by {found['difference']:.0e}" if found["difference"] else "the same bits"
        out.print(f"outputs of {name} on {found['rows']} rows of it: {same}")
    out.print(_new_text(report))
    if task in _WORDS:
        out.print(f"{_WORDS[task]} is among the kept tokens from now on")


def vocabulary_summary(report: dict[str, Any]) -> str:
    """`vocabulary 30,522 → 2,095 tokens`."""
    tokens = report["tokens"]
    return f"vocabulary {tokens['before']:,} → {tokens['after']:,} tokens"


def _new_text(report: dict[str, Any]) -> str:
    """How the tokenizer does on the last texts if it is made from those before them."""
    found = report["new_text"]
    if found is None:
        return "new text: not measured, the corpus has one text only"
    share = found["removed"] / max(1, found["tokens"])
    unknown = f"unknown ones {found['unknown']:,} → {found['unknown_after']:,}"
    return (
        f"new text, estimated on the last {found['texts']:,} texts with what the others use: "
        f"{share:.2%} of {found['tokens']:,} tokens are cut into others, in "
        f"{found['changed_texts']:,} texts; {found['tokens_after']:,} tokens then, {unknown}"
    )
