"""`tfc run --shadow`: rows of a job again with the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

import tfc
from tfc.cli.run import command
from tfc.errors import MissingPackage, UsageError
from tfc.manifest import Graph, Signature
from tfc.steps.verification.shadow import Shadow

pytestmark = pytest.mark.ort
ENGINE = "onnxruntime-fp32"
ROWS = 60


@pytest.fixture
def job(tiny_artifact: Path, tmp_path: Path) -> Callable[..., Result]:
    """`job("50%")` runs the tiny classifier with that shadow over 60 texts."""
    rows = [{"text": f"order {n} is late " + "very " * (n % 7)} for n in range(ROWS)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def run(share: str, *options: str) -> Result:
        given = [tiny_artifact, data, "-o", tmp_path / "out.jsonl", "--shadow", share, *options]
        return CliRunner().invoke(command, list(map(str, given)))

    return run


def shadow_of(done: Result) -> dict[str, object]:
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.stdout)["shadow"]
    return found


def test_a_right_engine_does_not_drift(
    job: Callable[..., Result], tiny_artifact: Path, tmp_path: Path
) -> None:
    tfc.verify(tiny_artifact)
    found = shadow_of(job("50%", "--json"))
    assert found["seen"] == ROWS
    assert 15 < found["rows"] == found["sampled"] < 45
    assert str(found["reference"]).startswith("PyTorch with ")
    assert 0 < found["max_abs"] < found["allowed"]
    assert found["argmax_agreement"] == 1.0
    assert found["beyond"] is False
    again = shadow_of(job("50%", "--json", "--threads", "1", "--window", "7", "--restart"))
    assert again["rows"] == found["rows"]  # the same, in whichever batches
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == ROWS


def test_an_engine_that_changed_since_drifts(
    job: Callable[..., Result], tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    tfc.verify(artifact)
    file = artifact.manifest.engines[ENGINE].files["model"]
    model = ir.load(artifact.file(file))
    bias = model.graph.initializers["classifier.bias"]
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(0.5), name=bias.name)
    with artifact.change() as change:
        ir.save(model, change.path(file))
    done = job("0.1%", "--json")
    found = shadow_of(done)
    assert found["rows"] == 1  # one at least
    assert found["max_abs"] == pytest.approx(0.5, rel=1e-3)
    assert found["beyond"] is True


def test_without_the_checkpoint_the_exported_graph_is_the_reference(
    job: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfc.steps.reference.require", missing)
    done = job("10%")
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "against the exported fp32 graph on ONNX Runtime (torch is not here)" in text


def missing(package: str, extra: str) -> None:
    raise MissingPackage(f"{package} is not here", fix="")


def test_what_cannot_be_shadowed(
    job: Callable[..., Result], make_artifact: Callable[..., tfc.Artifact]
) -> None:
    assert job("100%").exit_code == 2
    artifact = make_artifact(graphs={"decoder": Graph(Signature([], []), {})})
    with pytest.raises(UsageError, match="is not asked again row by row"):
        Shadow(artifact, ENGINE, 0.1)
    with pytest.raises(UsageError, match="a share of 0 is not possible"):
        Shadow(artifact, ENGINE, 0)
