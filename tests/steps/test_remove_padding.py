"""`--remove-padding`, from the command line to predictions, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import tfc
from tfc.cli.build_engine import command as build_engine
from tfc.cli.inspect import command as inspect
from tfc.errors import UsageError

pytestmark = pytest.mark.ort

DONE = "linear layers run on packed tokens; padding is around attention only"
TEXTS = ["where is my order", "refund", "please cancel it " * 9, ""]


def test_from_the_command_line_to_predictions(tiny_artifact: Path) -> None:
    with tfc.Session.load(tiny_artifact) as session:
        padded = session.predict(TEXTS)
    asked = [str(tiny_artifact), "--backend", "onnxruntime", "--remove-padding"]
    built = CliRunner().invoke(build_engine, asked, catch_exceptions=False)
    assert f"note     {DONE}" in built.output
    assert DONE in CliRunner().invoke(inspect, [str(tiny_artifact)]).output
    artifact = tfc.Artifact.open(tiny_artifact)
    assert tfc.build_engine(artifact, backend="onnxruntime", remove_padding=True).skipped
    (found,) = tfc.verify(artifact).verdicts  # with padding on either side, and holes
    assert found.verdict == "verified"
    with tfc.Session.load(tiny_artifact) as session:
        packed = session.predict(TEXTS)
    assert [p["label"] for p in packed] == [p["label"] for p in padded]
    assert [p["score"] for p in packed] == pytest.approx([p["score"] for p in padded], abs=1e-6)
    again = tfc.build_engine(artifact, backend="onnxruntime")
    assert not again.skipped
    assert DONE not in again.notes


def test_fp16_on_the_cpu_keeps_the_packed_form(tiny_artifact: Path) -> None:
    built = tfc.build_engine(
        tiny_artifact, backend="onnxruntime", precision="fp16", remove_padding=True
    )
    assert built.notes[0] == DONE
    verdicts = {v.engine: v.verdict for v in tfc.verify(tiny_artifact, relations=False).verdicts}
    assert verdicts["onnxruntime-fp16"] == "verified"


def test_other_backends_and_precisions_are_refused(tiny_artifact: Path, tmp_path: Path) -> None:
    for backend, precision in (("tensorrt-rtx", "fp32"), ("onnxruntime", "int8")):
        with pytest.raises(UsageError) as caught:
            tfc.build_engine(
                tiny_artifact,
                backend=backend,
                precision=precision,
                calib=tmp_path / "rows.jsonl" if precision == "int8" else None,
                remove_padding=True,
            )
        assert caught.value.what == (
            "padding is removed for ONNX Runtime's CPU provider in fp32 and fp16, and this is "
            f"{backend} in {precision}"
        )
