"""`tfc optimize --trim-vocab`: an artifact with the tokens that a corpus uses, and no others.

    corpus → tokens used → tokenizer.json and graphs with those → both compared with the whole ones

What was made from the whole graphs (optimized graphs, calibration, reports) goes: it is made anew
from the trimmed ones. Engines are not thrown away: an artifact that has some is left as it is, and
the trimmed one written elsewhere.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.artifact import MANIFEST, VOCABULARY, Artifact
from tfc.errors import UsageError, require
from tfc.files import sha256_of_file, staged_folder
from tfc.manifest import Step
from tfc.runtime.rows import Columns
from tfc.runtime.tokenization import INPUT_IDS
from tfc.steps.optimize import loaded_graph
from tfc.steps.record import OnProgress, no_progress, onnxruntime_version, versions_of
from tfc.steps.vocabulary.choosing import Choice, chosen_tokens
from tfc.steps.vocabulary.corpus import Corpus, corpus_from_file
from tfc.steps.vocabulary.graphs import Cut, cut_graph, proof_feeds
from tfc.steps.vocabulary.writing import copied, write_trimmed
from tfc.vocabulary import vocabulary_outputs

NAME = "trim-vocab"
_EXPORT = "export"
_TEXT = "text"


@dataclass(frozen=True)
class TrimResult:
    """The trimmed artifact, the step's record (its `result`), and whether it was there already."""

    artifact: Artifact
    report: dict[str, Any]
    skipped: bool


def trim_vocab(
    artifact: Artifact | str | Path,
    corpus: str | Path,
    *,
    output: str | Path | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    keep_tokens: int = 0,
    on_progress: OnProgress = no_progress,
) -> TrimResult:
    """Cut an artifact's vocabulary to what a corpus uses.

    All texts of the corpus give the same tokens as before, under new ids, and the graphs the same
    outputs for them; both are checked. Tokens that stay whatever the corpus: special and added
    ones, single characters and bytes. What the model writes, or puts in the place of a mask, is
    among the kept tokens.

    Args:
        artifact: an exported artifact, or its path.
        corpus: a file with a text per line, or JSON lines, CSV, TSV or Parquet.
        output: the folder of a new artifact; `artifact` itself is changed if None.
        text_column: the field of a row that holds its text; ``text`` if None.
        pair_column: the field of a second text.
        keep_tokens: keep so many tokens from the start of the vocabulary too, where most
            tokenizers have the frequent ones: new text is then cut into fewer pieces.
        on_progress: called with what is under way.

    Raises:
        UsageError: the artifact has several tokenizers or none, engines, or a trimmed vocabulary
            already; or its tokenizer or graph is of a kind that cannot be cut.
        BadData: the corpus cannot be used.
        CheckFailed: a text gives other tokens, or a graph other outputs.
    """
    for package in ("onnx", "onnx_ir"):
        require(package, "compile")
    source, path = Artifact.of(artifact), Path(corpus)
    columns = Columns(text_column or _TEXT, pair_column)
    texts = corpus_from_file(path, columns)
    step = Step(
        name=NAME,
        options={
            "text_column": text_column,
            "pair_column": pair_column,
            "keep_tokens": keep_tokens,
        },
        inputs={"checkpoint": source.manifest.checkpoint.sha256, "corpus": sha256_of_file(path)},
        outputs=[],
        versions={**versions_of("tokenizers", "onnx-ir"), **onnxruntime_version()},
        seconds=0.0,
    )
    there = _already_there(source, step, None if output is None else Path(output))
    if there is not None:
        return there
    _check_trimmable(source)
    if output is None:
        _check_no_engines(source)
        return _trimmed_in_place(source, step, texts, on_progress)
    with staged_folder(Path(output)) as folder:
        _trimmed_in_place(copied(source, folder), step, texts, on_progress)
    done = Artifact.open(output)
    return TrimResult(done, done.manifest.steps[-1].result, skipped=False)


def _already_there(source: Artifact, step: Step, output: Path | None) -> TrimResult | None:
    """What the same call made before; nothing else may be in the place of the output."""
    if output is None:
        earlier = source.up_to_date(step)
        return None if earlier is None else TrimResult(source, earlier.result, skipped=True)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if (output / MANIFEST).is_file():
        made = Artifact.open(output)
        earlier = made.up_to_date(step)
        if earlier is not None:
            return TrimResult(made, earlier.result, skipped=True)
    raise UsageError("this exists already", where=str(output), fix="Choose another folder for -o")


def _check_trimmable(artifact: Artifact) -> None:
    manifest, where = artifact.manifest, str(artifact.path)
    if manifest.preprocess is None:
        raise UsageError(
            "this artifact has no tokenizer, so no vocabulary to trim",
            where=where,
            fix="Leave --trim-vocab out",
        )
    if manifest.ensemble is not None and manifest.ensemble.preprocess:
        raise UsageError(
            f"this ensemble has {1 + len(manifest.ensemble.preprocess)} tokenizers, and one "
            "vocabulary is trimmed at a time",
            where=where,
            fix="Trim models of one tokenizer",
        )
    if VOCABULARY in manifest.files:
        raise UsageError(
            "the vocabulary of this artifact is trimmed already",
            where=where,
            fix="Export the checkpoint again, or trim the artifact with all its tokens with -o",
        )


def _check_no_engines(artifact: Artifact) -> None:
    engines = artifact.manifest.engines
    if engines:
        raise UsageError(
            f"this artifact has engines with the whole vocabulary ({', '.join(engines)})",
            where=str(artifact.path),
            fix="Write the trimmed one into a new folder: -o TRIMMED",
        )


def _trimmed_in_place(
    artifact: Artifact, step: Step, corpus: Corpus, on_progress: OnProgress
) -> TrimResult:
    begun = time.perf_counter()
    on_progress("tokenizing the corpus", 0, 1)
    models = {name: loaded_graph(artifact, name) for name in artifact.manifest.graphs}
    tokens = chosen_tokens(
        artifact, corpus, list(models.values()), int(step.options["keep_tokens"])
    )
    outputs = vocabulary_outputs(artifact.manifest.task.name)
    cuts = {}
    for number, (name, model) in enumerate(models.items()):
        on_progress(f"cutting {name}", number, len(models))
        if INPUT_IDS not in artifact.manifest.graphs[name].input_names:
            continue  # the encoder of a model that hears
        feeds = proof_feeds(artifact, name, corpus.texts)
        wide = [str(value.name) for value in model.graph.outputs if value.name in outputs]
        cuts[name] = cut_graph(model, tokens.vocabulary, feeds, wide)
    report = _report(corpus, tokens, cuts)
    write_trimmed(artifact, step, tokens, cuts, report, begun)
    return TrimResult(artifact, report, skipped=False)


def _report(corpus: Corpus, tokens: Choice, cuts: dict[str, Cut]) -> dict[str, Any]:
    """What the manifest records."""
    kept = tokens.vocabulary
    return {
        "tokenizer": tokens.kind,
        "tokens": {"before": kept.size, "after": len(kept.kept)},
        "corpus": {"texts": len(corpus.texts), "tokens": tokens.proven},
        "weight_bytes": {
            "before": sum(cut.bytes_before for cut in cuts.values()),
            "after": sum(cut.bytes_after for cut in cuts.values()),
        },
        "outputs": {
            name: {"rows": cut.texts, "difference": cut.difference} for name, cut in cuts.items()
        },
        "new_text": None if tokens.new_text is None else dataclasses.asdict(tokens.new_text),
    }
