"""The artifact: malformed ones are refused with a sentence, and writing is all or nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tfc.artifact
from tfc.artifact import MANIFEST, Artifact
from tfc.errors import BadArtifact, EnvironmentProblem, NoSpace
from tfc.files import staged_folder, write_atomically
from tfc.manifest import FileRecord, Step
from tfc.manifest_json import manifest_from_json, manifest_to_json

MODEL = "model.onnx"


def edit(artifact, change):
    """Change the manifest's JSON on the disk by calling `change` on it."""
    path = artifact.path / MANIFEST
    body = json.loads(path.read_text(encoding="utf-8"))
    change(body)
    path.write_text(json.dumps(body), encoding="utf-8")


def content(folder):
    """Every file below `folder` with its bytes."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def step(name, **changes):
    values = {"options": {}, "inputs": {}, "outputs": [], "versions": {}, "seconds": 1.0}
    return Step(name=name, **{**values, **changes})


# Reading


def test_a_manifest_survives_the_way_to_json_and_back(make_artifact):
    manifest = make_artifact().manifest
    text = manifest_to_json(manifest)
    assert manifest_from_json(text, "tfc.json") == manifest
    assert next(iter(json.loads(text))) == "schema"


def test_a_file_is_given_after_its_hash_was_checked(make_artifact):
    artifact = make_artifact()
    assert artifact.file(MODEL) == artifact.path / MODEL
    assert artifact.sha256(MODEL) == artifact.manifest.files[MODEL].sha256
    assert artifact.sha256("none") == ""


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "a/../../outside",
        "a/../model.onnx",
        "./model.onnx",
        "a//b",
        "a\\b",
        "",
        ".",
        "..",
        "nul\0byte",
        "line\nfeed",
        "\x1b[2Jterminal",
    ],
)
def test_attack_a_name_that_leaves_the_folder_or_is_not_plain(make_artifact, name):
    artifact = make_artifact()
    edit(artifact, lambda body: body["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(BadArtifact, match="leads out of the artifact or is malformed") as caught:
        Artifact.open(artifact.path)
    assert caught.value.exit_code == 5


def link_file(artifact):
    (artifact.path.parent / "outside").write_bytes(b"secret")
    (artifact.path / MODEL).unlink()
    (artifact.path / MODEL).symlink_to(artifact.path.parent / "outside")


def link_folder(artifact):
    outside = artifact.path.parent / "outside"
    (artifact.path / "tokenizer").rename(outside)
    (artifact.path / "tokenizer").symlink_to(outside)


def link_loop(artifact):
    (artifact.path / MODEL).unlink()
    (artifact.path / MODEL).symlink_to(MODEL)


def link_manifest(artifact):
    outside = artifact.path.parent / "outside.json"
    (artifact.path / MANIFEST).rename(outside)
    (artifact.path / MANIFEST).symlink_to(outside)


@pytest.mark.parametrize("attack", [link_file, link_folder, link_loop, link_manifest])
def test_attack_a_link_that_leaves_the_folder_or_never_ends(make_artifact, attack):
    artifact = make_artifact()
    attack(artifact)
    with pytest.raises(BadArtifact):
        Artifact.open(artifact.path).file(MODEL)


def test_a_link_inside_the_folder_and_a_link_to_the_folder_are_fine(make_artifact):
    artifact = make_artifact()
    (artifact.path / MODEL).rename(artifact.path / "weights")
    (artifact.path / MODEL).symlink_to("weights")
    link = artifact.path.parent / "link"
    link.symlink_to(artifact.path)
    assert Artifact.open(link).file(MODEL).is_file()


MALFORMED = {
    "newer schema": (lambda b: b.update(schema=3), "has schema 3, .* reads up to 2"),
    "older schema": (lambda b: b.update(schema=1), "has schema 1, which an older tfc wrote"),
    "schema zero": (lambda b: b.update(schema=0), "no schema version"),
    "no schema": (lambda b: b.pop("schema"), "no schema version"),
    "schema as text": (lambda b: b.update(schema="1"), "no schema version"),
    "schema as truth value": (lambda b: b.update(schema=True), "manifest.schema is bool"),
    "unknown field": (lambda b: b.update(extra=1), "unknown field 'extra'"),
    "unknown inner field": (lambda b: b["task"].update(x=1), "manifest.task has an unknown field"),
    "missing field": (lambda b: b.pop("task"), "lacks the field 'task'"),
    "wrong type": (lambda b: b.update(steps={}), "manifest.steps is dict, not list"),
    "wrong inner type": (
        lambda b: b["files"][MODEL].update(bytes="1"),
        r"manifest.files.model.onnx.bytes is str, not int",
    ),
    "truth value as number": (lambda b: b["files"][MODEL].update(bytes=True), "bytes is bool"),
    "null": (lambda b: b.update(checkpoint=None), "manifest.checkpoint is NoneType"),
    "fraction as axis": (
        lambda b: b["graphs"]["model"]["signature"]["inputs"][0].update(shape=[1.5]),
        r"inputs\[0\].shape\[0\] is float",
    ),
}


@pytest.mark.parametrize(("change", "message"), MALFORMED.values(), ids=MALFORMED)
def test_attack_a_manifest_that_does_not_follow_its_schema(make_artifact, change, message):
    artifact = make_artifact()
    edit(artifact, change)
    with pytest.raises(BadArtifact, match=message):
        Artifact.open(artifact.path)


NOT_JSON = {
    "empty": b"",
    "truncated": b'{"schema": 1, "tfc": "0.1',
    "a list": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"schema": 1, "tfc": "\xff"}',
    "field twice": b'{"schema": 1, "schema": 1}',
    "deeply nested": b'{"schema":' + b"[" * 200_000,
    "number without end": b'{"schema": ' + b"1" * 5000 + b"}",
    "half a surrogate pair": b'{"schema": 1, "tfc": "\\ud800"}',
    "raw control character": b'{"schema": 1, "tfc": "\x1b"}',
}


@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON)
def test_attack_a_manifest_that_is_not_what_it_should_be(make_artifact, data):
    artifact = make_artifact()
    (artifact.path / MANIFEST).write_bytes(data)
    with pytest.raises(BadArtifact) as caught:
        Artifact.open(artifact.path)
    assert str(artifact.path) in str(caught.value)
    assert caught.value.fix


def test_attack_a_manifest_that_would_fill_the_memory(make_artifact, monkeypatch):
    artifact = make_artifact()
    monkeypatch.setattr(tfc.artifact, "MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(BadArtifact, match="none has more than 1000"):
        Artifact.open(artifact.path)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped bit": (flip_a_bit, "do not match the hash"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has 7999 bytes"),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has 8001 bytes"),
    "missing": (lambda path: path.unlink(), "the file is missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "the file is missing"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "the file is missing"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_attack_a_damaged_file(make_artifact, damage, message):
    artifact = make_artifact()
    damage(artifact.path / MODEL)
    with pytest.raises(BadArtifact, match=message):
        Artifact.open(artifact.path).file(MODEL)
    assert artifact.file("tokenizer/tokenizer.json").is_file()


def test_a_file_that_the_manifest_does_not_name_does_not_count(make_artifact):
    artifact = make_artifact()
    (artifact.path / "stray").write_bytes(b"x")
    with pytest.raises(BadArtifact, match="does not name the file 'stray'"):
        artifact.file("stray")


def test_a_name_that_no_file_system_takes(make_artifact):
    artifact = make_artifact(files={"n" * 5000: FileRecord("0" * 64, 1)})
    with pytest.raises(BadArtifact):
        artifact.file("n" * 5000)


def test_not_an_artifact(tmp_path):
    with pytest.raises(BadArtifact, match="there is no such folder"):
        Artifact.open(tmp_path / "none")
    with pytest.raises(BadArtifact, match=r"it has no tfc\.json"):
        Artifact.open(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(BadArtifact, match=r"it has no tfc\.json"):
        Artifact.open(tmp_path / "file")


# Steps that need not run again


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, True),
        ({"inputs": {MODEL: "other"}}, False),
        ({"options": {"precision": "fp16"}}, False),
        ({"versions": {"onnx": "2"}}, False),
        ({"seconds": 9.0}, True),
        ({"name": "verify"}, False),
    ],
)
def test_a_step_is_up_to_date_when_nothing_changed(make_artifact, changes, done):
    artifact = make_artifact(steps=[step("optimize", outputs=[MODEL], inputs={MODEL: "hash"})])
    asked = step(**{"name": "optimize", "inputs": {MODEL: "hash"}, **changes})
    assert (artifact.up_to_date(asked) is not None) is done


def test_a_step_whose_output_was_damaged_is_not_up_to_date(make_artifact):
    artifact = make_artifact(steps=[step("optimize", outputs=[MODEL])])
    flip_a_bit(artifact.path / MODEL)
    assert artifact.up_to_date(step("optimize")) is None


# Writing


def test_a_change_adds_replaces_and_drops(make_artifact):
    artifact = make_artifact()
    with artifact.change() as change:
        change.path("reports/bench.json").write_bytes(b"new")
        change.path(MODEL).write_bytes(b"replaced")
        change.drop("reports/verify.json")
        change.record(step("bench", outputs=["reports/bench.json"]))
    for seen in (artifact, Artifact.open(artifact.path)):
        assert seen.file("reports/bench.json").read_bytes() == b"new"
        assert seen.file(MODEL).read_bytes() == b"replaced"
        assert seen.manifest.step("bench") is not None
        assert "reports/verify.json" not in seen.manifest.files
    assert not (artifact.path / "reports/verify.json").exists()
    assert set(content(artifact.path)) == {*artifact.manifest.files, MANIFEST}


def test_a_step_recorded_again_replaces_its_record(make_artifact):
    artifact = make_artifact(steps=[])
    for seconds in (1.0, 2.0):
        with artifact.change() as change:
            change.record(step("bench", seconds=seconds))
    assert [s.seconds for s in artifact.manifest.steps] == [2.0]


def test_a_file_dropped_and_written_again_stays(make_artifact):
    artifact = make_artifact()
    with artifact.change() as change:
        change.drop(MODEL)
        change.path(MODEL).write_bytes(b"again")
    assert artifact.file(MODEL).read_bytes() == b"again"


def test_an_exception_in_a_change_leaves_everything_as_it_was(make_artifact):
    artifact = make_artifact()
    before, manifest = content(artifact.path), artifact.manifest
    with pytest.raises(RuntimeError, match="half way"), artifact.change() as change:  # noqa: PT012
        change.path(MODEL).write_bytes(b"replaced")
        change.drop("reports/verify.json")
        raise RuntimeError("half way")
    assert content(artifact.path) == before
    assert artifact.manifest == manifest


def test_a_file_in_the_way_of_a_folder_leaves_everything_as_it_was(make_artifact):
    artifact = make_artifact()
    (artifact.path / "plans").write_bytes(b"not a folder")
    before = content(artifact.path)
    with pytest.raises(EnvironmentProblem, match="cannot be written"), artifact.change() as change:  # noqa: PT012 - the exit raises
        change.path(MODEL).write_bytes(b"replaced")
        change.path("plans/a").write_bytes(b"x")
    assert content(artifact.path) == before


def test_a_full_disk_leaves_everything_as_it_was(make_artifact, monkeypatch):
    artifact = make_artifact()
    before = content(artifact.path)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(NoSpace) as caught, artifact.change() as change:  # noqa: PT012
        change.path(MODEL).write_bytes(b"replaced")
        monkeypatch.setattr(Path, "write_bytes", full)
        change.path("reports/bench.json").write_bytes(b"new")
    assert caught.value.exit_code == 4
    assert content(artifact.path) == before


def test_a_full_disk_while_the_manifest_is_written(make_artifact, monkeypatch):
    artifact = make_artifact()
    before = content(artifact.path)
    real = Path.write_bytes

    def full(path, data):
        if path.name == MANIFEST:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NoSpace), artifact.change() as change:
        change.path(MODEL).write_bytes(b"replaced")
    assert content(artifact.path) == before


KILLED = """
import os, signal, sys
from tfc.artifact import Artifact
with Artifact.open(sys.argv[1]).change() as change:
    change.path("model.onnx").write_bytes(b"replaced")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_change_leaves_a_readable_artifact_and_its_rest_is_cleared(make_artifact):
    artifact = make_artifact()
    before = content(artifact.path)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(artifact.path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    again = Artifact.open(artifact.path)
    assert all(again.file(name).read_bytes() == before[name] for name in again.manifest.files)
    assert len(content(artifact.path)) == len(before) + 1  # what it had staged
    with again.change():
        pass
    assert set(content(artifact.path)) == set(before)


def test_killed_between_the_files_and_the_manifest(make_artifact, monkeypatch):
    """The replaced file is noticed, and the step that wrote it is run again."""
    artifact = make_artifact(steps=[step("optimize", outputs=[MODEL])])
    real = os.replace

    def killed(source, target):
        if Path(target).name == MANIFEST:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt), artifact.change() as change:
        change.path(MODEL).write_bytes(b"replaced")
    again = Artifact.open(artifact.path)
    with pytest.raises(BadArtifact, match="has 8 bytes"):
        again.file(MODEL)
    assert again.up_to_date(step("optimize")) is None


def test_a_second_change_at_the_same_time_is_refused(make_artifact):
    artifact = make_artifact()
    other = Artifact.open(artifact.path)
    with artifact.change() as change:
        with pytest.raises(EnvironmentProblem, match="another tfc command") as caught:
            other.change().__enter__()
        change.record(step("bench"))
    assert caught.value.exit_code == 4
    assert artifact.manifest.step("bench") is not None


def test_a_change_builds_on_what_others_did_meanwhile(make_artifact):
    first = make_artifact()
    second = Artifact.open(first.path)
    with second.change() as change:
        change.path("reports/bench.json").write_bytes(b"second")
        change.record(step("bench"))
    with first.change() as change:
        change.record(step("verify"))
    manifest = Artifact.open(first.path).manifest
    assert manifest.step("bench") is not None
    assert manifest.step("verify") is not None
    assert "reports/bench.json" in manifest.files


def test_a_change_cannot_write_outside(make_artifact):
    artifact = make_artifact()
    outside = artifact.path.parent / "outside"
    outside.mkdir()
    (artifact.path / "engines/link").symlink_to(outside)
    with pytest.raises(BadArtifact, match="leads out"), artifact.change() as change:
        change.path("engines/link/plan").write_bytes(b"x")
    assert content(outside) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(make_artifact):
    artifact = make_artifact()
    artifact.path.chmod(0o555)
    try:
        with pytest.raises(EnvironmentProblem, match="not permitted"):
            artifact.change().__enter__()
    finally:
        artifact.path.chmod(0o755)


# Folders and files written from nothing


def test_a_staged_folder_replaces_its_target_only_when_all_went_well(tmp_path):
    target = tmp_path / "out"
    with staged_folder(target) as folder:
        (folder / "a").write_bytes(b"first")
    with pytest.raises(RuntimeError), staged_folder(target) as folder:  # noqa: PT012
        (folder / "a").write_bytes(b"second")
        raise RuntimeError
    assert content(tmp_path) == {"out/a": b"first"}
    with staged_folder(target) as folder:
        (folder / "b").write_bytes(b"third")
    assert content(tmp_path) == {"out/b": b"third"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_atomically(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace):
        write_atomically(path, b"new")
    assert content(tmp_path) == {"report.json": b"old"}


@pytest.mark.ort
def test_the_functions_take_a_path_too(tiny_artifact: Path) -> None:
    """As README writes them: `tfc.verify("my-artifact")`."""
    assert tfc.optimize(str(tiny_artifact), "onnxruntime").skipped
    verdicts = tfc.verify(tiny_artifact).verdicts
    assert [verdict.verdict for verdict in verdicts] == ["verified"]
    with pytest.raises(BadArtifact, match="there is no such folder"):
        tfc.build_engine("no-artifact")
