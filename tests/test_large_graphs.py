"""Graphs that keep their weights in a second file, as those beyond 2 GiB must."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tfc
from tfc import onnx_files
from tfc.errors import BadArtifact

pytestmark = pytest.mark.ort


@pytest.fixture
def artifact(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tfc.Artifact:
    monkeypatch.setattr(onnx_files, "EXTERNAL_FROM_BYTES", 0)
    return tfc.export(tiny_checkpoint, tmp_path / "artifact").artifact


def test_every_step_takes_weights_from_a_second_file(artifact: tfc.Artifact) -> None:
    assert artifact.manifest.files["model.onnx"].bytes < 200_000
    assert artifact.manifest.files["model.onnx.data"].bytes > 7_000_000
    assert tfc.optimize(artifact, "tensorrt").report["reverted"] == []
    for precision in ("fp32", "fp16"):
        tfc.build_engine(artifact, precision=precision, backend="onnxruntime")
    assert tfc.verify(artifact).failed == []
    copy = shutil.copytree(artifact.path, artifact.path.with_name("moved"))
    shutil.rmtree(artifact.path)
    with tfc.Session.load(copy) as session:
        assert session.verdict == "verified"
        assert session.predict(["hello"])[0]["label"]


def test_tensorrt_reads_them_too(artifact: tfc.Artifact) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx").engine
    assert engine.audit["fused_attention"] == 2


def test_a_damaged_second_file_is_refused(artifact: tfc.Artifact) -> None:
    tfc.build_engine(artifact, backend="onnxruntime")
    data = artifact.path / "engines/onnxruntime-fp32/model.onnx.data"
    before = artifact.engine_sha256(artifact.manifest.engines["onnxruntime-fp32"])
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(BadArtifact, match="bytes do not match the hash in the manifest"):
        tfc.Session.load(artifact.path)
    assert before not in (record.sha256 for record in artifact.manifest.files.values())


def test_the_same_export_twice_gives_the_same_bytes(
    artifact: tfc.Artifact, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    again = tfc.export(tiny_checkpoint, tmp_path / "again").artifact
    assert again.manifest.files == artifact.manifest.files
