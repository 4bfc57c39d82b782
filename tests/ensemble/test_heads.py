"""Several classifiers over one backbone: one graph, an output and a prediction for each."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import save_tiny_checkpoint
from click.testing import CliRunner
from ensembles import SMALL, logits_by_label, with_another_head
from text_models import TEXTS
from tokenizers_made import byte_level

import tfc
from tfc.artifact import Artifact
from tfc.cli import cli as commands
from tfc.runtime import Session
from tfc.runtime.tasks.scores import sigmoid, softmax

pytestmark = pytest.mark.ort
Made = Callable[..., Path]
MOODS = {0: "angry", 1: "polite"}


@pytest.fixture(scope="session")
def moods(tiny_checkpoint: Path, made_once: Made) -> Path:
    """The backbone of the tiny checkpoint, under a head that gives several labels."""
    several = {"id2label": MOODS, "problem_type": "multi_label_classification"}
    return (
        made_once(
            "heads-moods",
            lambda folder: with_another_head(tiny_checkpoint, folder / "mood", 3, **several),
        )
        / "mood"
    )


@pytest.fixture(scope="session")
def heads(tiny_checkpoint: Path, moods: Path, made_once: Made) -> Path:
    """Both in one artifact, with an engine. Do not change it: copy it."""

    def make(folder: Path) -> None:
        made = tfc.export([tiny_checkpoint, moods], folder / "artifact", heads=["intent", "mood"])
        tfc.build_engine(made.artifact, backend="onnxruntime")

    return made_once("heads", make) / "artifact"


def test_each_head_says_what_its_model_says(
    heads: Path, tiny_checkpoint: Path, moods: Path
) -> None:
    intents, feelings = logits_by_label(tiny_checkpoint), logits_by_label(moods)
    with Session.load(heads) as session:
        predictions = session.predict(TEXTS)
    for place, prediction in enumerate(predictions):
        p = softmax(np.array([logits[place] for logits in intents.values()]))
        np.testing.assert_allclose(list(prediction["intent"]["scores"].values()), p, atol=1e-5)
        assert prediction["intent"]["label"] == list(intents)[int(p.argmax())]
        for label, logits in feelings.items():
            p = sigmoid(logits[place : place + 1])
            np.testing.assert_allclose(prediction["mood"]["scores"][label], p, atol=1e-5)
        assert prediction["mood"]["labels"] == [
            label for label, logits in feelings.items() if logits[place] >= 0
        ]


def test_the_backbone_is_there_once_and_every_head_has_an_output(
    heads: Path, tmp_path: Path
) -> None:
    artifact = Artifact.open(heads)
    graph = onnx.load(artifact.file("model.onnx")).graph
    assert [node.op_type for node in graph.node].count("Attention") == 2
    assert [value.name for value in graph.output] == ["intent", "mood"]
    manifest = artifact.manifest
    assert manifest.graphs["model"].fusion_sites == {"attention": 2, "add_layernorm": 4}
    assert manifest.task.heads["mood"].problem == "multi_label"
    copy = Path(shutil.copytree(heads, tmp_path / "copy"))
    result = tfc.verify(copy)
    assert result.failed == []
    assert result.output == "intent, mood"


def test_a_job_writes_a_column_for_each_head(heads: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "in.jsonl").write_text(rows)
    with Session.load(heads) as session:
        expected = session.predict(TEXTS)
        for name in ("out.jsonl", "out.csv", "out.parquet"):
            tfc.run_job(session, tmp_path / "in.jsonl", tmp_path / name)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"]["intent"]["label"] for line in lines] == [
        prediction["intent"]["label"] for prediction in expected
    ]
    with (tmp_path / "out.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert json.loads(table[0]["prediction.mood"]).keys() == {"labels", "scores"}
    column = pyarrow.parquet.read_table(tmp_path / "out.parquet")["prediction"].to_pylist()
    assert column[1]["intent"]["label"] == expected[1]["intent"]["label"]
    assert dict(column[1]["mood"]["scores"]).keys() == set(MOODS.values())


def test_the_command_line(
    heads: Path,
    tiny_checkpoint: Path,
    moods: Path,
    tmp_path: Path,
) -> None:
    """Names are checked before anything is loaded; the same export again changes nothing."""

    def refused(*arguments: object) -> str:
        given = ["export", *arguments, "-o", tmp_path / "out"]
        ended = CliRunner().invoke(commands, list(map(str, given)))
        assert ended.exit_code == 2, ended.stderr
        assert not (tmp_path / "out").exists()
        return " ".join(ended.stderr.split())

    both = (tiny_checkpoint, moods)
    text = refused(*both, "--heads", "intent")
    assert "there are 2 checkpoints, and --heads has a name for 1" in text
    assert "two heads are called 'a'" in refused(*both, "--heads", "a,a")
    assert "'input_ids' is no name for a head" in refused(*both, "--heads", "input_ids,b")
    assert "'a b' is no name for a head" in refused(*both, "--heads", "a b,c")
    assert "heads are those of two checkpoints or more" in refused(moods, "--heads", "a")
    text = refused(*both, "--heads", "a,b", "--ensemble", "mean")
    assert "an ensemble has one output, and heads have one each" in text
    assert "--weights is read with --ensemble only" in refused(
        *both, "--heads", "a,b", "--weights", "1,2"
    )
    tokens = save_tiny_checkpoint(tmp_path / "tokens", head="TokenClassification", **SMALL)
    assert "heads are classifiers of texts" in refused(tokens, tokens, "--heads", "a,b")
    other = save_tiny_checkpoint(tmp_path / "other", "roberta", tokenizer=byte_level(), **SMALL)
    assert "heads share a tokenizer" in refused(moods, other, "--heads", "a,b")

    again = ["export", *map(str, both), "-o", str(heads), "--heads", "intent,mood"]
    done = CliRunner().invoke(commands, again)
    assert done.exit_code == 0, done.stderr
    assert "is up to date" in done.stdout
    shown = CliRunner().invoke(commands, ["inspect", str(heads)]).stdout
    assert "Members: 2 models, each with an output of its own" in shown
    assert "head mood    2: angry, polite" in shown
