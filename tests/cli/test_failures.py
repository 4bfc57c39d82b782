"""What goes wrong at the terminal: one sentence with the fix, the documented exit code, nothing
half-written. Every case runs the real command line.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.ort
ENGINE = "engines/onnxruntime-fp32/model.onnx"


def message(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error and its fix on one line; no traceback, nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith(("tfc: error: ", "Usage:")), done.stderr
    return " ".join(done.stderr.split())


def rows(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_missing_checkpoint(cli: Cli, tmp_path: Path) -> None:
    text = message(cli("export", tmp_path / "none", "-o", tmp_path / "a"), 5)
    assert text == (
        f"tfc: error: {tmp_path}/none: there is no such folder "
        "Give the folder of a checkpoint, or the id of a model on the hub"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_checkpoint(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    text = message(cli("export", tmp_path / "photos", "-o", tmp_path / "a"), 5)
    assert "this folder is no checkpoint: it has no config.json" in text
    assert not (tmp_path / "a").exists()


def test_an_unsupported_task(cli: Cli, tmp_path: Path) -> None:
    rows(tmp_path / "config.json", json.dumps({"architectures": ["WhisperModelForAudio"]}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    text = message(cli("export", tmp_path, "-o", tmp_path / "a"), 5)
    assert "this checkpoint's task is not supported: WhisperModelForAudio" in text
    text = message(cli("export", tmp_path, "-o", tmp_path / "a", "--task", "poetry"), 2)
    assert "there is no task 'poetry'" in text


def test_a_missing_artifact(cli: Cli, tmp_path: Path) -> None:
    for command in (["build-engine"], ["verify"], ["bench"], ["inspect"]):
        text = message(cli(*command, tmp_path / "none"), 5)
        assert "there is no such folder Create the artifact with: tfc export" in text


def test_a_truncated_model(cli: Cli, tiny_artifact: Path) -> None:
    model = tiny_artifact / "model.onnx"
    model.write_bytes(model.read_bytes()[:5000])
    text = message(cli("optimize", tiny_artifact, "--target", "tensorrt"), 5)
    assert "the file has 5000 bytes, and the manifest says" in text
    assert "'tfc export --overwrite'" in text


def test_a_truncated_model_with_a_matching_manifest(cli: Cli, tiny_artifact: Path) -> None:
    """Somebody signed the damage: the ONNX reader must still refuse it."""
    import tfc
    from tfc.artifact import graph_file

    artifact = tfc.Artifact.open(tiny_artifact)
    data = (tiny_artifact / graph_file("model")).read_bytes()
    with artifact.change() as change:
        change.path(graph_file("model")).write_bytes(data[: len(data) // 2])
    text = message(cli("optimize", tiny_artifact, "--target", "tensorrt"), 5)
    assert "the file is not an ONNX model" in text


def test_a_flipped_byte_in_an_engine(cli: Cli, tiny_artifact: Path, tmp_path: Path) -> None:
    data = bytearray((tiny_artifact / ENGINE).read_bytes())
    data[len(data) // 2] ^= 1
    (tiny_artifact / ENGINE).unlink()
    (tiny_artifact / ENGINE).write_bytes(data)
    source = rows(tmp_path / "in.jsonl", '{"text": "hello"}')
    text = message(cli("run", tiny_artifact, source, "-o", tmp_path / "out.jsonl"), 5)
    assert "the file's bytes do not match the hash in the manifest" in text
    assert not (tmp_path / "out.jsonl").exists()


def test_a_manifest_from_a_newer_version(cli: Cli, tiny_artifact: Path) -> None:
    manifest = json.loads((tiny_artifact / "tfc.json").read_text())
    rows(tiny_artifact / "tfc.json", json.dumps({**manifest, "schema": 99}))
    text = message(cli("inspect", tiny_artifact), 5)
    assert "the manifest has schema 99, and this tfc reads up to 2" in text
    assert "pip install -U tfc" in text


def test_an_empty_input_file(cli: Cli, tiny_artifact: Path, tmp_path: Path) -> None:
    source = rows(tmp_path / "in.jsonl")
    text = message(quiet_run(cli, tiny_artifact, source, tmp_path / "out.jsonl"), 5)
    assert "the input file is empty Give a file with one row per line" in text
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_without_text_is_reported_and_not_lost(
    cli: Cli, tiny_artifact: Path, tmp_path: Path
) -> None:
    source = rows(
        tmp_path / "in.jsonl", '{"text": "hello", "id": 1}', '{"id": 2}', "{", '{"text": "x"}'
    )
    output = tmp_path / "out.jsonl"
    done = quiet_run(cli, tiny_artifact, source, output)
    assert done.returncode == 0, done.stderr
    assert f"2 bad rows left out, each with its reason: {output}.errors.jsonl" in done.stdout
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row.get("id") for row in written] == [1, None]
    assert all(row["prediction"]["label"] in ("cancel", "refund", "other") for row in written)
    bad = [json.loads(line) for line in Path(f"{output}.errors.jsonl").read_text().splitlines()]
    assert [(row["line"], row["error"].partition(";")[0]) for row in bad] == [
        (2, "no field 'text'"),
        (3, bad[1]["error"]),
    ]
    assert bad[0]["row"] == '{"id": 2}'


def test_a_missing_input_file(cli: Cli, tiny_artifact: Path, tmp_path: Path) -> None:
    done = quiet_run(cli, tiny_artifact, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert "there is no such file" in message(done, 5)


def test_no_space_for_an_artifact(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    target = tmp_path / "a"
    code = (
        "import errno, tfc.files, os\n"
        "def full(path): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "tfc.files.sync = full\n"
        "from tfc.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "export", str(tiny_checkpoint), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no space left on the disk; nothing was changed Free some space" in message(done, 4)
    assert list(tmp_path.iterdir()) == []


def test_really_no_space(tiny_artifact: Path, tmp_path: Path) -> None:
    """Files of more than a few bytes cannot be written: the job leaves nothing behind."""
    source = rows(tmp_path / "in.jsonl", *['{"text": "hello there"}'] * 200)
    before = sorted(tmp_path.iterdir())

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    done = subprocess.run(
        [sys.executable, "-m", "tfc", "run", str(tiny_artifact), str(source),
         "-o", str(tmp_path / "out.jsonl")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc here")
def test_a_place_where_nothing_can_be_written(
    cli: Cli, tiny_artifact: Path, tmp_path: Path
) -> None:
    source = rows(tmp_path / "in.jsonl", '{"text": "hello"}')
    text = message(quiet_run(cli, tiny_artifact, source, Path("/proc/out.jsonl")), 4)
    assert "/proc/out.jsonl: this cannot be written: " in text


def test_a_verification_that_fails_exits_with_1(cli: Cli, tiny_artifact: Path) -> None:
    import onnx_ir as ir

    import tfc

    artifact = tfc.Artifact.open(tiny_artifact)
    model = ir.load(artifact.file(ENGINE))
    node = next(n for n in model.graph if n.op_type == "Attention")
    node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    with artifact.change() as change:
        ir.save(model, change.path(ENGINE))
    done = cli("verify", tiny_artifact)
    assert done.returncode == 1
    assert "onnxruntime-fp32 failed: rms difference" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--batch", "8:4:2"], "--batch 8:4:2 is not in order"),
        (["--seq", "1:64:4096"], "--seq goes up to 4096 tokens, and this artifact takes 128"),
        (["--seq", "short"], "'short' is not MIN:OPT:MAX"),
        (["--backend", "abacus"], "'abacus' is not one of"),
    ],
)
def test_wrong_flags_of_build_engine(
    cli: Cli, tiny_artifact: Path, flags: list[str], sentence: str
) -> None:
    assert sentence in message(cli("build-engine", tiny_artifact, *flags), 2)


def test_a_backend_that_is_not_installed(cli: Cli, tiny_artifact: Path) -> None:
    text = message(cli("build-engine", tiny_artifact, "--backend", "tensorrt"), 4)
    assert "tensorrt cannot build engines here" in text
    assert "pip install 'tfc[tensorrt]'" in text


def quiet_run(cli: Cli, artifact: Path, source: Path, output: Path):
    """`tfc run` on an engine with a verdict, so that nothing warns."""
    manifest = json.loads((artifact / "tfc.json").read_text())
    manifest["verdicts"] = {
        "onnxruntime-fp32": {
            "verdict": "verified",
            "reason": "",
            "engine_sha256": manifest["files"][ENGINE]["sha256"],
            "data_sha256": "",
            "tolerance": {},
            "outputs": {},
            "versions": {},
            "hardware": "CPU",
        }
    }
    (artifact / "tfc.json").write_text(json.dumps(manifest))
    return cli("run", artifact, source, "-o", output)
