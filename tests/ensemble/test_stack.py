"""A second stage over the members: fitted on their features, in the graph, or refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ensembles import logits_by_label
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from text_models import TEXTS
from torch import Tensor, nn
from torch.nn import functional

import tfc
from tfc.cli import cli as commands
from tfc.ensemble import combination_of
from tfc.errors import BadData, UsageError
from tfc.exporter.ensemble.stacked import Features, Stacked, module_from_layers, stage_from_module
from tfc.runtime import Session
from tfc.runtime.tasks.scores import sigmoid, softmax
from tfc.stage import Layer, SecondStage, fault_of, stage_from_file, stage_order

LABELS = ["cancel", "refund", "other"]
MATRIX = [[0.5, -1.0, 0.25, 2.0, 0.0, 1.0]] * 3
STAGE = SecondStage("Made", "probabilities", [Layer("linear", MATRIX, [0.0, 1.0, 2.0])])


def rows(width: int = 6, count: int = 40) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, width))


def fitted(classifier: Any, answers: Any = LABELS, width: int = 6) -> Any:
    x = rows(width)
    names = np.asarray(answers)
    return classifier.fit(x, names[np.arange(len(x)) % len(names)])


@pytest.fixture(scope="session")
def stacked(tiny_checkpoint: Path, distilbert: Path, made_once: Callable[..., Path]) -> Path:
    """The artifact, and beside it `features.npy` and what the fitted stage says of them."""

    def make(folder: Path) -> None:
        members = [tiny_checkpoint, distilbert]
        features = tfc.stack_features(members, TEXTS)
        # Its classes are sorted by name, which is not the order of the labels.
        stage = LogisticRegression(C=100).fit(features, [LABELS[i % 3] for i in range(len(TEXTS))])
        assert list(stage.classes_) != LABELS
        np.save(folder / "features.npy", features)
        tfc.second_stage(stage).save(folder / "stage.json")
        p = dict(zip(stage.classes_, stage.predict_proba(features).T.tolist(), strict=True))
        (folder / "said.json").write_text(json.dumps(p))
        command = [
            *("export", *members, "-o", folder / "artifact"),
            *("--ensemble", "stack", "--stack", folder / "stage.json"),
        ]
        done = CliRunner().invoke(commands, list(map(str, command)))
        assert done.exit_code == 0, done.stderr
        tfc.build_engine(folder / "artifact", backend="onnxruntime")

    return made_once("ensemble-stacked", make) / "artifact"


@pytest.mark.ort
def test_the_engine_says_what_the_fitted_stage_says(
    stacked: Path, tiny_checkpoint: Path, distilbert: Path
) -> None:
    expected = []
    for checkpoint in (tiny_checkpoint, distilbert):
        logits = logits_by_label(checkpoint)
        expected.append(softmax(np.stack([logits[label] for label in LABELS], axis=-1)))
    features = np.load(stacked.with_name("features.npy"))
    np.testing.assert_allclose(features, np.concatenate(expected, axis=-1), atol=1e-5)
    p = json.loads(stacked.with_name("said.json").read_text())
    with Session.load(stacked) as session:
        for place, said in enumerate(session.predict(TEXTS)):
            assert list(said["scores"]) == LABELS
            for label, score in said["scores"].items():
                assert score == pytest.approx(p[label][place], abs=1e-5)
    shown = CliRunner().invoke(commands, ["inspect", str(stacked)]).stdout
    told = "stack of 2 models under LogisticRegression, which reads probabilities, 21 weights"
    assert told in " ".join(shown.split())


@pytest.mark.ort
def test_it_is_verified_and_built_in_fp16(stacked: Path, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(stacked, tmp_path / "artifact"))
    tfc.build_engine(artifact, backend="onnxruntime", precision="fp16")
    verified = tfc.verify(artifact)
    assert verified.failed == []
    verdicts = tfc.Artifact.open(artifact).manifest.verdicts
    assert {each.verdict for each in verdicts.values()} == {"verified"}
    assert len(verdicts) == 2
    pytest.importorskip("tensorrt_rtx")
    engine = tfc.build_engine(artifact, backend="tensorrt-rtx", precision="fp16").engine
    assert (engine.audit["fused_attention"], engine.audit["wanted"]["fused_attention"]) == (3, 3)
    (artifact / "stage.json").write_text("{}")
    with pytest.raises(tfc.TfcError, match=r"stage\.json"):
        tfc.verify(artifact)


@pytest.mark.parametrize("reads", ["probabilities", "logits"])
@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_features_and_layers_are_in_the_order_of_the_labels(problem: str, reads: str) -> None:
    first, second = (torch.randn(5, 3, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    stage = SecondStage(
        "Made",
        reads,
        [Layer("linear", np.eye(6).tolist(), [0.0] * 6), Layer("tanh"),
         Layer("linear", rows(6, 3).tolist(), [0.1, 0.2, 0.3])],
        labels=["other", "cancel", "refund"],
    )  # fmt: skip
    assert fault_of(stage) == ""
    order = stage_order(stage, 2, LABELS, problem)
    module = Stacked(Features(reads, problem, [[0, 1, 2], [1, 2, 0]]), stage, order)
    each = [first.double().numpy(), second.double().numpy()[:, [1, 2, 0]]]
    if reads == "probabilities" and problem != "regression":
        each = [(softmax if problem == "single_label" else sigmoid)(one) for one in each]
    features = np.tanh(np.concatenate(each, axis=-1))
    expected = (features @ rows(6, 3).T + [0.1, 0.2, 0.3])[:, [1, 2, 0]]
    np.testing.assert_allclose(module(first, second).detach().numpy(), expected, atol=1e-5)


def logits_of(stage: SecondStage, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = module_from_layers(stage.layers)(torch.from_numpy(x).float())
    return found.detach().double().numpy()


def test_linear_models_keep_their_answers(tmp_path: Path) -> None:
    x = rows()
    two = fitted(LogisticRegression(), [0, 1])
    stage = tfc.second_stage(two)
    assert (stage.labels, stage.problem, stage.outputs) == (["0", "1"], "single_label", 2)
    assert stage_order(stage, 3, ["no", "yes"], "single_label") == [0, 1]
    np.testing.assert_allclose(softmax(logits_of(stage, x)), two.predict_proba(x), atol=1e-5)
    ridge = fitted(RidgeClassifier())
    stage = tfc.second_stage(ridge)
    assert [stage.labels[i] for i in logits_of(stage, x).argmax(axis=1)] == list(ridge.predict(x))
    several = fitted(OneVsRestClassifier(LogisticRegression()), [[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    stage = tfc.second_stage(several, reads="logits")
    assert (stage.problem, stage.reads) == ("multi_label", "logits")
    np.testing.assert_allclose(sigmoid(logits_of(stage, x)), several.predict_proba(x), atol=1e-5)
    number = LinearRegression().fit(x, x.sum(axis=1) + 3)
    stage = tfc.second_stage(number)
    assert stage_order(stage, 6, [], "regression") == [0]
    np.testing.assert_allclose(logits_of(stage, x)[:, 0], number.predict(x), atol=1e-5)
    stage.save(tmp_path / "stage.json")
    assert stage_from_file(tmp_path / "stage.json") == stage


class Written(nn.Module):
    """A small network as people write it; `how` is what its forward does at the end."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how = how
        self.first, self.drop = nn.Linear(6, 8), nn.Dropout(0.5)
        self.rest = nn.Sequential(nn.GELU(approximate="tanh"), nn.Linear(8, 3, bias=False))

    def forward(self, x: Tensor) -> Any:
        y = self.drop(functional.dropout(functional.relu(self.first(x)), 0.5, self.training))
        y = self.rest(y)
        if self.how == "residual":
            return y + x[:, :3]
        if self.how == "branch" and y.sum() > 0:
            return -y
        return functional.dropout(y) if self.how == "noise" else y


def test_a_module_is_kept_without_its_code() -> None:
    module, x = Written(), rows()
    stage = stage_from_module(module, "probabilities")
    assert [layer.op for layer in stage.layers] == ["linear", "relu", "gelu_tanh", "linear"]
    assert (stage.kind, stage.inputs, stage.outputs, module.training) == ("Written", 6, 3, True)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(logits_of(stage, x), expected, atol=1e-6)


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 3))
    module[0].register_forward_hook(lambda of, given, y: -y)
    return module


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "not linear": (
        lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        "a second stage is linear and fitted, and Pipeline has no coef_",
    ),
    "not fitted": (LogisticRegression, "LogisticRegression has no coef_"),
    "one against the rest": (
        lambda: fitted(SGDClassifier(loss="log_loss", random_state=0)),
        "this SGDClassifier does not say what its coefficients say",
    ),
    "residual": (lambda: Written("residual"), "the second stage Written has 'getitem'"),
    "branch": (lambda: Written("branch"), "the layers of the second stage Written cannot be told"),
    "noise": (lambda: Written("noise"), "the second stage Written has 'dropout'"),
    "hook": (hooked, "Sequential does not say what its layers say one after another"),
    "no layers": (nn.ReLU, "this second stage has no linear layer"),
    "norm": (lambda: nn.Sequential(nn.LayerNorm(6)), "the second stage Sequential has 'LayerNorm'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_kept_is_refused(what: str) -> None:
    make, sentence = REFUSED[what]
    with pytest.raises(UsageError) as caught:
        tfc.second_stage(make())
    assert sentence in caught.value.what


@pytest.mark.parametrize(
    ("stage", "members", "sentence"),
    [
        (STAGE, 3, "the second stage reads 6 features, and 3 members give 9: 3 each"),
        (
            replace(STAGE, layers=[Layer("linear", MATRIX[:2], [0.0, 0.0])]),
            2,
            "the second stage gives 2 logits, and the members have 3 labels",
        ),
        (
            replace(STAGE, labels=["cancel", "return", "other"]),
            2,
            "the second stage has a class 'cancel', which is no label of the members",
        ),
        (replace(STAGE, problem="regression"), 2, "the second stage is for regression"),
    ],
)
def test_a_stage_that_does_not_fit_its_members(
    stage: SecondStage, members: int, sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        stage_order(stage, members, LABELS, "single_label")
    assert caught.value.what.startswith(sentence)


def test_files_that_are_no_stage(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"

    def reason(content: bytes, place: Path = path) -> str:
        place.write_bytes(content)
        with pytest.raises(BadData) as caught:
            stage_from_file(place)
        return caught.value.what

    pickled = pickle.dumps(fitted(LogisticRegression()))
    assert "this is a pickle" in reason(pickled)
    assert "this is a pickle" in reason(pickle.dumps({}, protocol=0), tmp_path / "stage.pkl")
    assert "not the JSON of a second stage" in reason(b"[")
    STAGE.save(path)
    good = json.loads(path.read_text())
    for change, sentence in (
        ({"layers": 3}, "the stage.layers is int, not list"),
        ({"code": "x"}, "unknown field 'code'"),
        ({"schema": 2}, "has schema 2, and this tfc reads 1"),
        ({"reads": "tea"}, "reads probabilities or logits, and this one 'tea'"),
        ({"layers": []}, "has no linear layer"),
        ({"layers": [{"op": "exec"}]}, "layer 1 of the second stage is 'exec'"),
        (
            {"layers": [{"op": "linear", "weight": [[1.0], []], "bias": [0, 0]}]},
            "layer 1 of the second stage has no matrix",
        ),
        (
            {"layers": [*good["layers"], {"op": "linear", "weight": [[1.0]], "bias": [0]}]},
            "layer 2 of the second stage reads 1 values, and the one before gives 3",
        ),
        (
            {"layers": [{"op": "linear", "weight": [[float("nan")]], "bias": [0]}]},
            "weights that are no finite numbers",
        ),
        ({"labels": ["a", "a", "b"]}, "gives 3 values, and has other than so many labels"),
    ):
        assert sentence in reason(json.dumps({**good, **change}).encode()), change
    with pytest.raises(BadData, match="there is no such file"):
        stage_from_file(tmp_path / "none.json")


def test_calls_that_contradict_themselves(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for rule, options, sentence in (
        ("stack", {}, "--ensemble stack needs a second stage"),
        ("mean", {"stage": STAGE}, "--stack is read with --ensemble stack only"),
        (
            "stack",
            {"stage": STAGE, "normalize": "zscore"},
            "--normalize is not read with --ensemble stack",
        ),
    ):
        with pytest.raises(UsageError, match=sentence):
            combination_of(2, rule, **options)
    for call in (tfc.second_stage, lambda *a, **o: tfc.stack_features([], *a, **o)):
        with pytest.raises(UsageError, match="a second stage does not read 'tea'"):
            call([], reads="tea")
    command = ["export", str(tiny_checkpoint), "-o", str(tmp_path / "a"), "--stack", "s.json"]
    done = CliRunner().invoke(commands, command)
    assert (done.exit_code, "--stack is read with --ensemble only" in done.stderr) == (2, True)
    STAGE.save(tmp_path / "s.json")
    command = [
        *("export", *[str(tiny_checkpoint)] * 3, "-o", str(tmp_path / "a"), "--ensemble", "stack"),
        *("--stack", str(tmp_path / "s.json")),
    ]
    done = CliRunner().invoke(commands, command)
    assert done.exit_code == 2, done.stderr
    assert "reads 6 features, and 3 members give 9" in " ".join(done.stderr.split())
    assert not (tmp_path / "a").exists()
