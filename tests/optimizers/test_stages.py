"""Which passes run, and where a user's own stand among them."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tfc
from tfc.errors import UsageError
from tfc.optimizers.stages import Selection, stages_of
from tfc.optimizers.user_passes import installed_passes, passes_from_module

# The fusion that CONTRIBUTING.md walks through.
CONTRIBUTING = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text("utf-8")
(OWN_FUSION,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)


def names(selection: Selection | None = None) -> list[str]:
    return [step.name for stage in stages_of("tensorrt", selection) for step in stage.passes]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own_passes.py"
    path.write_text(OWN_FUSION, encoding="utf-8")
    return path


def test_the_order_is_visible() -> None:
    assert [stage.name for stage in stages_of("onnxruntime")] == [
        "clean",
        "recognise",
        "raise",
        "lower",
    ]
    assert names()[-3:] == ["pack QKV", "write attention as products", "inline canonical ops"]


def test_only_and_skip() -> None:
    assert names(Selection(only=("Fuse-Attention", "pack qkv"))) == ["fuse attention", "pack QKV"]
    assert set(names()) - set(names(Selection(skip=("pack QKV",)))) == {"pack QKV"}
    with pytest.raises(UsageError) as caught:
        stages_of("tensorrt", Selection(skip=("fuse atention",)))
    assert caught.value.what == "there is no pass 'fuse atention'"
    assert caught.value.fix is not None
    assert "fuse attention" in caught.value.fix


def test_a_pass_of_ones_own_runs_in_its_stage(own: Path) -> None:
    (step,) = passes_from_module(str(own))
    stages = stages_of("tensorrt", Selection(extra=(step,)))
    assert stages[0].passes[-1].name == "drop identities"
    elsewhere = SimpleNamespace(name="x", apply=None, stage="raise", targets=("onnxruntime",))
    assert "x" not in names(Selection(extra=(elsewhere,)))  # type: ignore[arg-type]
    nowhere = SimpleNamespace(name="x", apply=None, stage="later")
    with pytest.raises(UsageError, match="wants to run in the stage 'later', which there is not"):
        stages_of("tensorrt", Selection(extra=(nowhere,)))  # type: ignore[arg-type]


def test_modules_that_bring_no_passes(tmp_path: Path) -> None:
    for text, message in (
        ("x = 1", "this module has no PASSES"),
        ("PASSES = (3,)", "3 is neither a pass nor a fusion"),
        ("1 / 0", "the passes cannot be loaded (division by zero)"),
    ):
        (tmp_path / "m.py").write_text(text)
        with pytest.raises(UsageError) as caught:
            passes_from_module(str(tmp_path / "m.py"))
        assert caught.value.what == message
    with pytest.raises(UsageError, match=r"cannot be loaded \(No module named 'no_such_module'\)"):
        passes_from_module("no_such_module")


def test_an_installed_package_brings_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    step = SimpleNamespace(name="theirs", apply=lambda model: None)
    entry = SimpleNamespace(value="theirs:PASSES", load=lambda: (step,))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    assert [found.name for found in installed_passes()] == ["theirs"]
    entry.load = lambda: 1 / 0
    with pytest.raises(UsageError, match="an installed package cannot be loaded"):
        installed_passes()


@pytest.mark.ort
def test_the_command_line_takes_passes_and_leaves_some_out(
    tiny_artifact: Path, own: Path, cli: Callable[..., Any]
) -> None:
    done = cli("optimize", tiny_artifact, "--target", "tensorrt", "--passes", own, "--json")
    assert done.returncode == 0, done.stderr
    passes = [entry["name"] for entry in json.loads(done.stdout)["passes"]]
    assert passes.index("drop identities") < passes.index("fuse attention")
    done = cli("optimize", tiny_artifact, "--target", "tensorrt", "--skip", "fuse add+LayerNorm")
    assert done.returncode == 3
    assert "attention 2/2, add+LayerNorm 0/4" in done.stderr
    step = tfc.Artifact.open(tiny_artifact).manifest.step("optimize:tensorrt")
    assert step is not None
    assert step.options["passes"] == [str(own)]


@pytest.mark.ort
def test_explain_tells_what_each_pass_thought(
    tiny_artifact: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    place = "bert.encoder.layer.1"
    done = cli("optimize", tiny_artifact, "--target", "tensorrt", "--explain", place, "--json")
    assert done.returncode == 0, done.stderr
    said = [(o["step"], o["op"], o["verdict"]) for o in json.loads(done.stdout)]
    assert ("fuse add+LayerNorm", "LayerNormalization", "fused") in said
    assert ("pack QKV", "MatMul", "fused") in said
    done = cli("optimize", tiny_artifact, "--target", "tensorrt", "--explain", "bert.encoder.layr")
    assert done.returncode == 2
    assert "the graph has no node and no module called 'bert.encoder.layr'" in done.stderr
    done = cli("optimize", tiny_artifact / "model.onnx", "--target", "onnxruntime", "--explain",
               "bert.encoder.layer.0.output.LayerNorm")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fuse add+LayerNorm" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
