"""`tfc optimize --trim-vocab`: the artifact before and after, and what later steps make of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from checkpoints import save_tiny_checkpoint
from click.testing import CliRunner
from text_models import TEXTS
from tokenizers_made import byte_level

import tfc
from tfc.artifact import Artifact
from tfc.cli import cli as group
from tfc.errors import BadArtifact, BadData, UsageError
from tfc.manifest import Ensemble
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.rows import Columns
from tfc.steps.benchmark.contestants import check_same_vocabulary
from tfc.steps.vocabulary.corpus import corpus_from_file
from tfc.vocabulary import Vocabulary, vocabulary_of

pytestmark = pytest.mark.ort


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fill-mask model that tells padding by its id, whole and trimmed."""
    folder = tmp_path_factory.mktemp("masked")
    save_tiny_checkpoint(folder / "checkpoint", "roberta", "MaskedLM", byte_level())
    tfc.export(folder / "checkpoint", folder / "whole")
    (folder / "corpus.txt").write_text("\n".join(TEXTS[:2]) + "\n\n", encoding="utf-8")
    tfc.trim_vocab(folder / "whole", folder / "corpus.txt", output=folder / "trimmed")
    tfc.build_engine(folder / "trimmed", backend="onnxruntime")
    return folder


def _vocabulary(path: Path) -> Vocabulary:
    found = vocabulary_of(Artifact.open(path))
    assert found is not None
    return found


def _outputs(artifact: Artifact, texts: list[str]) -> tuple[Any, dict[str, np.ndarray]]:
    """Logits of the graph that is in the artifact, and what it was given."""
    encoder = text_encoder_of(artifact)
    feed = dict(encoder.pad(encoder.encode(texts)))
    session = onnxruntime.InferenceSession(artifact.file("model.onnx"))
    return session.run(None, feed)[0], feed


def test_a_trimmed_model_says_what_the_whole_one_says(masked: Path) -> None:
    whole, trimmed = (Artifact.open(masked / name) for name in ("whole", "trimmed"))
    vocabulary = _vocabulary(trimmed.path)
    assert vocabulary_of(whole) is None
    old, new = (_outputs(each, [*TEXTS[:2], f"{TEXTS[0]} <mask>"]) for each in (whole, trimmed))
    assert (vocabulary.old[new[1]["input_ids"]] == old[1]["input_ids"]).all()
    assert np.abs(old[0][..., vocabulary.old] - new[0]).max() < 1e-5
    kept = len(vocabulary.kept)
    assert 261 < kept < vocabulary.size == 320
    assert trimmed.manifest.signature.outputs[0].shape[-1] == kept
    step = trimmed.manifest.step("trim-vocab")
    assert step is not None
    result = step.result
    assert result["tokens"] == {"before": 320, "after": kept}
    assert result["outputs"]["model"] == {"rows": 2, "difference": 0.0}
    assert result["weight_bytes"]["after"] * 320 == result["weight_bytes"]["before"] * kept
    assert (result["corpus"]["texts"], result["new_text"]["texts"]) == (2, 1)


def test_pytorch_with_all_tokens_agrees_and_masks_are_filled_with_kept_ones(masked: Path) -> None:
    (found,) = tfc.verify(masked / "trimmed").verdicts
    assert (found.verdict, found.reason) == ("verified", "")
    whole = shutil.copytree(masked / "whole", masked / "compared")
    tfc.build_engine(whole, backend="onnxruntime")
    text = "Ada Lovelace met <mask> in London"
    old, new = (
        tfc.Session.load(path).predict([text], top_k=320 if path == whole else 5)[0]["masks"][0]
        for path in (whole, masked / "trimmed")
    )
    kept = _vocabulary(masked / "trimmed").new_ids
    best = [each for each in old if each["token"] in kept][:5]
    assert [kept[e["token"]] for e in best] == [e["token"] for e in new]
    assert [e["sequence"] for e in best] == [e["sequence"] for e in new]


def test_the_same_call_again_does_nothing_and_another_is_refused(
    masked: Path, tmp_path: Path
) -> None:
    corpus, trimmed = masked / "corpus.txt", masked / "trimmed"
    assert tfc.trim_vocab(masked / "whole", corpus, output=trimmed).skipped
    assert tfc.trim_vocab(trimmed, corpus).skipped
    (tmp_path / "other.txt").write_text("another text", encoding="utf-8")
    refused = {
        "the vocabulary of this artifact is trimmed already": (trimmed, None),
        "this exists already": (masked / "whole", trimmed),
    }
    for reason, (source, output) in refused.items():
        with pytest.raises(UsageError) as error:
            tfc.trim_vocab(source, tmp_path / "other.txt", output=output)
        assert error.value.what == reason
    with pytest.raises(UsageError) as error:  # what export would write is not what is there
        tfc.export(masked / "checkpoint", trimmed)
    assert error.value.fix.endswith("--overwrite")
    whole = Artifact.open(masked / "whole")
    with pytest.raises(UsageError) as error:
        check_same_vocabulary(whole, [trimmed])
    assert error.value.fix == "Measure the trimmed artifact, against the whole one"
    check_same_vocabulary(Artifact.open(trimmed), [masked / "whole", trimmed])


def test_a_model_that_writes_keeps_what_its_settings_name(
    generator: Callable[[str], Path], tmp_path: Path
) -> None:
    source = generator("bart") / "artifact"
    (tmp_path / "corpus.jsonl").write_text('{"said": "Where is my parcel?"}\n', encoding="utf-8")
    made = tfc.trim_vocab(
        source, tmp_path / "corpus.jsonl", output=tmp_path / "trimmed", text_column="said"
    ).artifact
    vocabulary = _vocabulary(made.path)
    whole = Artifact.open(source).manifest
    for name in ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id"):
        old, new = (m.task.generation[name] for m in (whole, made.manifest))
        assert np.array_equal(old, vocabulary.old[new]), name
    assert made.manifest.graphs["decoder"].signature.outputs[0].shape[-1] == len(vocabulary.kept)
    assert not made.manifest.engines
    tfc.build_engine(made, backend="onnxruntime", allow_missed=True)
    assert tfc.verify(made).verdicts[0].verdict == "verified"
    (said,) = tfc.Session.load(made.path).predict(["Where is my parcel?"], max_new_tokens=4)
    assert isinstance(said["text"], str)


def test_the_command_tells_what_went(masked: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(masked / "whole", tmp_path / "artifact"))
    words = ["optimize", str(folder), "--trim-vocab", str(masked / "corpus.txt")]
    more = CliRunner().invoke(group, [*words, "--keep-tokens", "318", "-o", str(tmp_path / "b")])
    assert more.stdout.startswith("vocabulary 320 → 319 tokens ")
    ended = CliRunner().invoke(group, words, catch_exceptions=False)
    kept = len(_vocabulary(folder).kept)
    assert ended.exit_code == 0
    lines = ended.stdout.splitlines()
    assert lines[0] == f"vocabulary 320 → {kept} tokens   (BPE)"
    assert "outputs of model on 2 rows of it: the same bits" in lines
    assert "what it puts in the place of a mask is among the kept tokens from now on" in lines
    ended = CliRunner().invoke(group, [*words, "--target", "onnxruntime", "--json"])
    report = json.loads(ended.stdout)
    assert report["trim_vocab"]["tokens"]["after"] == kept
    assert report["fusions"]["attention"] == {"found": 2, "expected": 2}
    shown = CliRunner().invoke(group, ["inspect", str(folder)]).stdout
    assert f"{kept} of 320 tokens" in shown


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{a}"], "Missing option '--target'"),
        (["{a}", "--text-column", "t"], "a column is named, and no corpus that has it"),
        (["{a}", "--keep-tokens", "9"], "no vocabulary is trimmed"),
        (["m.onnx", "--trim-vocab", "c"], "an ONNX file has no tokenizer that could be trimmed"),
        (["{a}", "--trim-vocab", "c", "--explain", "n"], "--explain writes nothing"),
    ],
)
def test_options_that_do_not_go_together(masked: Path, words: list[str], reason: str) -> None:
    ended = CliRunner().invoke(group, ["optimize", *(w.format(a=masked / "whole") for w in words)])
    assert ended.exit_code != 0
    assert reason in f"{ended.output}{ended.exception}"


def test_what_cannot_be_trimmed_is_told(tiny_artifact: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a text\n", encoding="utf-8")
    whole = Artifact.open(tiny_artifact)
    with pytest.raises(UsageError) as error:
        tfc.trim_vocab(whole, corpus)
    assert error.value.what == (
        "this artifact has engines with the whole vocabulary (onnxruntime-fp32)"
    )
    assert whole.manifest.preprocess is not None
    both = Ensemble("mean", "softmax", [], [whole.manifest.preprocess])
    manifests: dict[str, dict[str, Any]] = {
        "this ensemble has 2 tokenizers, and one vocabulary is trimmed at a time": {
            "ensemble": both
        },
        "this artifact has no tokenizer, so no vocabulary to trim": {"preprocess": None},
    }
    for reason, changes in manifests.items():
        changed = dataclasses.replace(whole.manifest, **changes)
        with pytest.raises(UsageError) as error:
            tfc.trim_vocab(Artifact(whole.path, changed), corpus, output=tmp_path / "new")
        assert error.value.what == reason
    assert not (tmp_path / "new").exists()


def test_a_corpus_that_cannot_be_used(tmp_path: Path) -> None:
    files = {
        "latin.txt": ("caf\xe9\n".encode("latin-1"), "not UTF-8 text (byte 4 of the line)"),
        "empty.txt": (b"\n \n", "the corpus has no text"),
        "rows.jsonl": (b'{"t": "a"}\n{"u": "b"}\n', "no field 't'; the row has: u"),
    }
    for name, (content, reason) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadData) as error:
            corpus_from_file(tmp_path / name, Columns("t"))
        assert error.value.what == reason
    with pytest.raises(BadData) as error:
        corpus_from_file(tmp_path / "none.txt", Columns("t"))
    assert error.value.what == "there is no such file"
    (tmp_path / "rows.csv").write_text("t,u\na,b\nc,d\n", encoding="utf-8")
    assert corpus_from_file(tmp_path / "rows.csv", Columns("t", "u")).texts == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "damage", ["[]", '{"size": 9}', '{"size": 3, "kept": [2, 1]}', '{"size": 2, "kept": [0, 2]}']
)
def test_a_damaged_table_is_refused(make_artifact: Callable[..., Artifact], damage: str) -> None:
    artifact = make_artifact()
    with artifact.change() as change:
        change.path("vocabulary.json").write_text(damage, encoding="utf-8")
    with pytest.raises(BadArtifact) as error:
        vocabulary_of(artifact)
    assert error.value.what == "the file is not a list of tokens that were kept"
