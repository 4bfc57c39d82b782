"""`tfc verify --label-column`: metrics of PyTorch and of engines on the same labelled rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checkpoints import save_tiny_checkpoint
from click.testing import CliRunner, Result
from sklearn.metrics import accuracy_score, f1_score

import tfc
from tfc.cli import cli as group
from tfc.errors import BadData
from tfc.steps.cases import sample_texts
from tfc.steps.verification.task_metrics import drop_reasons

pytestmark = pytest.mark.ort
ENGINE = "onnxruntime-fp32"
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["verify", *map(str, arguments)])


def swap(folder: Path, first: int, second: int) -> None:
    """Swap what the engine's head has for two labels, hash and all."""
    artifact = tfc.Artifact.open(folder)
    file = artifact.manifest.engines[ENGINE].files["model"]
    model = ir.load(artifact.file(file))
    labels = len(artifact.manifest.task.labels)
    swapped = 0
    for value in model.graph.initializers.values():
        array = value.const_value.numpy()
        if labels not in array.shape:
            continue
        axis = array.shape.index(labels)
        order = np.arange(labels)
        order[[first, second]] = second, first
        value.const_value = ir.tensor(np.take(array, order, axis), name=value.name)
        swapped += 1
    assert swapped == 2, "a weight and a bias"
    with artifact.change() as change:
        ir.save(model, change.path(file))


def predicted(folder: Path, items: list[Any]) -> list[dict[str, Any]]:
    with tfc.Session.load(folder, engine=ENGINE) as session:
        return session.predict(items)


@pytest.fixture
def labelled(tiny_artifact: Path, tmp_path: Path) -> Path:
    """The tiny classifier's sample texts with the labels that it gives them, but for the last."""
    texts = sample_texts(tfc.Artifact.open(tiny_artifact))
    labels = tfc.Artifact.open(tiny_artifact).manifest.task.labels
    rows = []
    for number, (text, found) in enumerate(
        zip(texts, predicted(tiny_artifact, texts), strict=True)
    ):
        index = labels.index(found["label"])
        rows.append({"text": text, "label": found["label"] if number % 2 else index})
    rows[-1]["label"] = labels[(labels.index(found["label"]) + 1) % 3]
    assert len({found["label"] for found in predicted(tiny_artifact, texts)}) > 1
    return written(tmp_path / "eval.jsonl", rows)


def report_of(folder: Path) -> Any:
    return json.loads((folder / "reports/verify.json").read_text(encoding="utf-8"))


def test_a_right_engine_scores_as_pytorch_does(tiny_artifact: Path, labelled: Path) -> None:
    done = verify(tiny_artifact, "--data", labelled, "--label-column", "label", "--max-drop", "0%")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines()[3:-1])) <= 80
    assert "PyTorch and the engine agree on all 24 rows\n" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("accuracy"))
    assert line.split() == ["accuracy", "95.83%", "95.83%", "0.00", "[0.00,", "0.00]"]
    metrics = report_of(tiny_artifact)["metrics"]
    assert metrics["rows"] == 24
    assert metrics["bootstrap"] == {"resamples": 1000, "confidence": 0.95, "seed": 0}
    assert metrics["pytorch"]["values"]["accuracy"] == pytest.approx(23 / 24)
    assert metrics["engines"][ENGINE]["flipped"] == {"rows": 0, "first": []}
    verdict = tfc.Artifact.open(tiny_artifact).manifest.verdicts[ENGINE]
    assert (verdict.verdict, verdict.tolerance["max_drop"]) == ("verified", 0.0)


def test_swapped_labels_change_the_metrics_and_trip_the_gate(
    tiny_artifact: Path, labelled: Path
) -> None:
    rows = [json.loads(line) for line in labelled.read_text(encoding="utf-8").splitlines()]
    names = tfc.Artifact.open(tiny_artifact).manifest.task.labels
    golds = [names.index(r["label"]) if isinstance(r["label"], str) else r["label"] for r in rows]
    texts = [row["text"] for row in rows]
    before = [names.index(found["label"]) for found in predicted(tiny_artifact, texts)]
    common = int(np.bincount(before).argmax())
    swap(tiny_artifact, common, (common + 1) % 3)
    after = [names.index(found["label"]) for found in predicted(tiny_artifact, texts)]
    flipped = [n for n, (b, a) in enumerate(zip(before, after, strict=True), 1) if b != a]
    assert len(flipped) > 3
    arguments = [tiny_artifact, "--data", labelled, "--label-column", "label"]
    done = verify(*arguments, "--max-drop", "0.5%")
    assert done.exit_code == 1
    was, now = accuracy_score(golds, before), accuracy_score(golds, after)
    sentence = (
        f"accuracy is {now:.2%}, {(was - now) * 100:.2f} points below PyTorch's {was:.2%}, and"
        " at most 0.50 points are allowed"
    )
    assert sentence in " ".join(done.stdout.split())
    named = ", ".join(map(str, flipped[:3]))
    assert (
        f"PyTorch and the engine disagree on {len(flipped)} of 24 rows: line {named}, …\n"
    ) in done.stdout
    report = report_of(tiny_artifact)
    assert report["engines"][ENGINE]["verdict"] == "failed"
    assert report["engines"][ENGINE]["reason"].endswith(sentence)
    found = report["metrics"]["engines"][ENGINE]
    assert found["values"]["accuracy"] == pytest.approx(now)
    assert found["values"]["macro F1"] == pytest.approx(
        f1_score(golds, after, labels=np.unique(golds), average="macro")
    )
    assert found["flipped"]["rows"] == len(flipped)
    assert [row["line"] for row in found["flipped"]["first"]] == flipped[:10]
    first = found["flipped"]["first"][0]
    assert (first["pytorch"], first["engine"]) == (
        names[before[flipped[0] - 1]],
        names[after[flipped[0] - 1]],
    )
    changes = [row["change"] for row in found["worst"]]
    assert changes == sorted(changes)
    assert changes[-1] < 0
    difference = found["differences"]["accuracy"]
    assert difference["low"] <= difference["value"] <= difference["high"] < 0
    assert sentence not in verify(*arguments, "--max-drop", "99%").stdout


def test_the_gate_lets_pass_what_is_just_allowed() -> None:
    assert 0.9 - 0.895 > 0.005
    assert drop_reasons("accuracy", 0.9, 0.895, 0.005) == []
    assert drop_reasons("accuracy", 0.9, 0.95, 0.0) == []
    assert drop_reasons("accuracy", 0.9, 0.894, 0.005) == [
        "accuracy is 89.40%, 0.60 points below PyTorch's 90.00%, and at most 0.50 points are"
        " allowed"
    ]
    assert drop_reasons("Spearman", 0.8412, 0.8312, 0.005) == [
        "Spearman is 0.8312, 0.0100 below PyTorch's 0.8412, and at most 0.0050 are allowed"
    ]
    assert len(drop_reasons("Spearman", 0.8412, float("nan"), 0.5)) == 1


def test_unknown_labels_are_counted_and_told(
    tiny_artifact: Path, labelled: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in labelled.read_text(encoding="utf-8").splitlines()]
    rows[2]["label"] = rows[4]["label"] = "spam"
    del rows[7]["label"]
    data = written(tmp_path / "some.jsonl", rows)
    done = verify(tiny_artifact, "--data", data, "--label-column", "label")
    assert done.exit_code == 0, done.output
    assert (
        "in no metric: 3 of 24 rows, whose label the model does not know: 'spam' (2), no label (1);"
        " first in line 3"
    ) in " ".join(done.stdout.split())
    report = report_of(tiny_artifact)
    assert (report["rows"], report["metrics"]["rows"]) == (24, 21)
    assert report["metrics"]["left_out"] == {
        "rows": 3,
        "labels": {"'spam'": 2, "no label": 1},
        "lines": [3, 5, 8],
    }
    with pytest.raises(BadData, match=r"no row has a label that the model knows; they have: no l"):
        tfc.verify(tiny_artifact, data=data, label_column="intent")


def test_json_is_the_report(tiny_artifact: Path, labelled: Path) -> None:
    done = verify(tiny_artifact, "--data", labelled, "--label-column", "label", "--json")
    assert json.loads(done.stdout) == report_of(tiny_artifact)
    done = verify(tiny_artifact, "--json")
    assert json.loads(done.stdout) == report_of(tiny_artifact)
    assert "metrics" not in report_of(tiny_artifact), "without labels nothing changes"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--label-column", "label"], "there is a label column, and no data that has it"),
        (["--max-drop", "1%"], "a drop of a metric needs labels to measure it"),
        (["--pair-column", "b"], "a second text is read with labels only"),
        (["--max-drop", "0.5"], "'0.5' is not a percentage from 0% to 99%, e.g. 0.5%"),
    ],
)
def test_calls_that_are_wrong(tiny_artifact: Path, arguments: list[str], sentence: str) -> None:
    done = verify(tiny_artifact, *arguments)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())


def test_a_row_that_cannot_be_used_is_named(tiny_artifact: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "d.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": [1]}])
    with pytest.raises(BadData, match="not the name or the index of one") as caught:
        tfc.verify(tiny_artifact, data=data, label_column="label")
    assert caught.value.where == f"{data}, line 2"


def pool_by_mean(checkpoint: Path) -> None:
    """What sentence-transformers saves beside a model whose embedding is the tokens' mean."""
    names = ("Transformer", ""), ("Pooling", "1_Pooling")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(names)
    ]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    (checkpoint / "1_Pooling/config.json").write_text(json.dumps(pooling))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made(task, head, **config)`: the artifact of a tiny model with one engine."""

    def make(task: str, head: str, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("metrics")
        save_tiny_checkpoint(folder / "c", head=head, **config)
        if task == "feature-extraction":
            pool_by_mean(folder / "c")
        artifact = tfc.export(folder / "c", folder / "a", task=task).artifact
        tfc.build_engine(artifact, backend="onnxruntime")
        return folder / "a"

    return make


def test_a_tagger(made: Callable[..., Path], tmp_path: Path) -> None:
    folder = made("token-classification", "TokenClassification", id2label=TAGS)
    texts = [text for text in sample_texts(tfc.Artifact.open(folder)) if text.strip()]
    entities = [found["entities"] for found in predicted(folder, texts)]
    kept = [[{k: e[k] for k in ("start", "end", "label")} for e in row] for row in entities]
    total = sum(map(len, kept))
    assert total > 3
    next(row for row in kept if row).pop()  # one entity that is found is none
    rows = [{"body": t, "gold": e} for t, e in zip(texts, kept, strict=True)]
    data = written(tmp_path / "tags.jsonl", rows)
    arguments = ["--data", data, "--text-column", "body", "--label-column", "gold"]
    done = verify(folder, *arguments, "--max-drop", "0%")
    assert done.exit_code == 0, done.output
    values = report_of(folder)["metrics"]["engines"][ENGINE]["values"]
    precision = (total - 1) / total
    wanted = {"precision": precision, "recall": 1.0, "F1": 2 * precision / (1 + precision)}
    assert values == pytest.approx(wanted)
    shutil.copytree(folder, tmp_path / "wrong")
    swap(tmp_path / "wrong", 0, 3)
    done = verify(tmp_path / "wrong", *arguments, "--max-drop", "5%")
    assert done.exit_code == 1
    assert "points below PyTorch's" in " ".join(done.stdout.split())
    found = report_of(tmp_path / "wrong")["metrics"]["engines"][ENGINE]
    assert found["values"]["F1"] < wanted["F1"]
    assert found["flipped"]["rows"] > 3


def test_questions_and_their_answers(made: Callable[..., Path], tmp_path: Path) -> None:
    folder = made("question-answering", "QuestionAnswering", id2label={0: "start", 1: "end"})
    items = [("who?", "Ada met Charles in London. " * 9), ("where?", "In the old abbey.")]
    answers = [found["answer"] for found in predicted(folder, items)]
    rows = [
        {"question": question, "context": context, "answers": [answer]}
        for (question, context), answer in zip(items, answers, strict=True)
    ]
    rows[1]["answers"] = ["none of these words"]
    tfc.verify(folder, data=written(tmp_path / "qa.jsonl", rows), label_column="answers")
    values = report_of(folder)["metrics"]["engines"][ENGINE]["values"]
    assert values == {"F1": 0.5, "exact match": 0.5}


def test_pairs_and_their_similarity(made: Callable[..., Path], tmp_path: Path) -> None:
    folder = made("feature-extraction", "")
    texts = ["a cat", "a dog", "a cat", "where is my parcel", "good", "thanks a lot"]
    vectors = [np.array(found["embedding"]) for found in predicted(folder, texts)]
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(vectors[::2], vectors[1::2], strict=True)
    ]
    ranks = np.argsort(np.argsort(cosines)).tolist()
    rows = [
        {"text": a, "text_pair": b, "score": rank}
        for a, b, rank in zip(texts[::2], texts[1::2], ranks, strict=True)
    ]
    data = written(tmp_path / "pairs.jsonl", rows)
    done = verify(folder, "--data", data, "--label-column", "score", "--max-drop", "1%")
    assert done.exit_code == 0, done.output
    found = report_of(folder)["metrics"]["engines"][ENGINE]
    assert list(found["values"]) == ["nDCG@10", "Spearman", "Pearson"]  # a cat has two rows
    assert found["values"]["nDCG@10"] == found["values"]["Spearman"] == pytest.approx(1.0)
    assert found["values"]["Pearson"] == pytest.approx(np.corrcoef(cosines, ranks)[0, 1])
    assert "flipped" not in found
    line = next(line for line in done.stdout.splitlines() if line.startswith("Spearman"))
    assert line.split()[:4] == ["Spearman", "1.0000", "1.0000", "0.0000"]


@pytest.fixture(scope="module")
def writer(generator: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that generates, and beside it `eval.jsonl` with what it writes as one reference."""
    folder = tmp_path_factory.mktemp("writer")
    shutil.copytree(generator("t5") / "artifact", folder / "artifact")
    texts = ["Where is my order?", "The battery died after two days.", "ok", "Nobody answers me."]
    said = predicted(folder / "artifact", texts)
    rows: list[dict[str, Any]] = [
        {"text": text, "summary": each["text"]} for text, each in zip(texts, said, strict=True)
    ]
    rows[1]["summary"] = ["another text", rows[1]["summary"]]
    rows[3]["summary"] = rows[0]["summary"]
    written(folder / "eval.jsonl", [*rows, {"text": "hello"}])
    return folder


def test_texts_that_are_written_have_bleu_and_rouge(writer: Path) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    arguments = [writer / "artifact", "--data", writer / "eval.jsonl", "--label-column", "summary"]
    done = verify(*arguments, "--max-drop", "0%", "--no-relations")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines()[3:-1])) <= 80
    assert "in no metric: 1 of 5 rows" in done.stdout
    found = report_of(writer / "artifact")["metrics"]
    golds = [json.loads(line) for line in (writer / "eval.jsonl").read_text().splitlines()][:4]
    said = [p["text"] for p in predicted(writer / "artifact", [row["text"] for row in golds])]
    references = [g if isinstance(g, list) else [g] for g in (row["summary"] for row in golds)]
    second = [each[1] if len(each) > 1 else None for each in references]
    bleu = BLEU().corpus_score(said, [[each[0] for each in references], second])
    rouge = RougeScorer(["rougeL"])
    values = found["engines"][ENGINE]["values"]
    assert values["BLEU"] == pytest.approx(bleu.score / 100)
    assert values["ROUGE-L"] == pytest.approx(
        np.mean(
            [
                rouge.score_multi(gold, text)["rougeL"].fmeasure
                for gold, text in zip(references, said, strict=True)
            ]
        )
    )
    assert values == found["pytorch"]["values"], "PyTorch writes the same"
    assert (found["main"], found["engines"][ENGINE]["flipped"]["rows"]) == ("BLEU", 0)


def test_a_drop_alone_fails_an_engine_and_keeps_it_from_running(tmp_path: Path) -> None:
    """Two classes are so close that an engine may say the other one and still be near PyTorch."""
    from safetensors.torch import load_file, save_file

    file = tmp_path / "c/model.safetensors"
    save_tiny_checkpoint(tmp_path / "c", head="SequenceClassification", num_labels=3)
    weights = load_file(file)
    weights["classifier.weight"][1] = weights["classifier.weight"][0]
    for place, bias in enumerate((5.0, 5.00001, -5.0)):
        weights["classifier.bias"][place] = bias
    save_file(weights, file, {"format": "pt"})
    artifact = tfc.export(tmp_path / "c", tmp_path / "a").artifact
    tfc.build_engine(artifact, backend="onnxruntime")
    swap(tmp_path / "a", 0, 1)
    texts = sample_texts(tfc.Artifact.open(tmp_path / "a"))[:20]
    rows = [{"text": text, "label": int(n < 16)} for n, text in enumerate(texts)]
    data = written(tmp_path / "eval.jsonl", rows)
    arguments = [tmp_path / "a", "--data", data, "--label-column", "label", "--max-drop"]
    assert verify(*arguments, "61%").exit_code == 0, "parity holds, and so do the relations"
    done = verify(*arguments, "0.5%")
    assert done.exit_code == 1
    sentence = (
        "accuracy is 20.00%, 60.00 points below PyTorch's 80.00%, and at most 0.50 points are"
        " allowed"
    )
    assert report_of(tmp_path / "a")["engines"][ENGINE]["reason"] == sentence
    assert f"{ENGINE} failed: {sentence}" in " ".join(done.stdout.split())
    words = ["run", str(tmp_path / "a"), str(data), "-o", str(tmp_path / "out.jsonl")]
    told = "every engine that can run here failed tfc verify: onnxruntime-fp32"
    named = f"engine {ENGINE} is not verified (parity: failed), and only a verified one may run"
    for option, refusal in (([], told), (["--engine", ENGINE], named)):
        done = CliRunner().invoke(group, [*words, "--require-verified", *option])
        assert done.exit_code == 1
        assert refusal in " ".join(done.stderr.split())
    assert not (tmp_path / "out.jsonl").exists()
