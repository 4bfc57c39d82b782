"""The artifact: the folder that `tfc export` creates and every later step adds to.

Layout (docs/artifact.md is the specification)::

    tfc.json                        the manifest, written last and atomically
    <graph>.onnx                    what export wrote: model.onnx, or encoder.onnx, decoder.onnx
    tokenizer/                      tokenizer.json and its configuration
    vocabulary.json                 of a trimmed vocabulary, the ids that its tokens had
    samples.jsonl, samples/         the texts or images on which export checked parity
    samples.npz                     for a module: tensors, and what PyTorch gave for them
    optimized/<target>/             each graph, fused and lowered, fp32
    optimized/<target>.fp16/        the same in another precision (fp16, bf16)
    engines/<backend>-<precision>/  what a backend compiled
    reports/                        verify.json, bench.json

A file counts only if the manifest names it; its hash is checked when it is first used. A change
moves its files into place one by one and the manifest last: when a process is killed in between,
a file that it replaced no longer matches its hash, and the step that wrote it runs again.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tfc.errors import BadArtifact, EnvironmentProblem, disk_errors
from tfc.files import DATA_SUFFIX, sha256_of_file, sync
from tfc.manifest import Engine, FileRecord, Manifest, Step
from tfc.manifest_json import manifest_from_json, manifest_to_json

MANIFEST = "tfc.json"
TOKENIZER = "tokenizer/tokenizer.json"
# The second stage of a stack of models.
STAGE = "stage.json"
# Which tokens a trimmed vocabulary kept.
VOCABULARY = "vocabulary.json"
SAMPLES = "samples.jsonl"
SAMPLE_FILES = "samples"
VERIFY_REPORT = "reports/verify.json"
BENCH_REPORT = "reports/bench.json"
BISECT_FOLDER = "reports/bisect"

MAX_MANIFEST_BYTES = 64 << 20
"""Real manifests are some 100 kB; a reader should not fill its memory with a wrong one."""

_STAGING = ".partial-"


def graph_file(graph: str) -> str:
    """The name of the file that export writes for a graph."""
    return f"{graph}.onnx"


class Artifact:
    """An artifact on disk and its manifest.

    The object is cheap: opening reads `tfc.json` only. `file()` checks the hash of a file the
    first time that it is asked for. `change()` is the one way to add files.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._checked: set[str] = set()

    @classmethod
    def of(cls, given: Artifact | str | Path) -> Artifact:
        """An artifact as it is, or the one at a path; raises what `open` raises."""
        return given if isinstance(given, Artifact) else cls.open(given)

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open the artifact at `path`.

        Raises:
            BadArtifact: there is no such folder, or it holds no readable manifest.
        """
        path = Path(path)
        if not path.exists():
            raise BadArtifact(
                "there is no such folder",
                where=str(path),
                fix="Create the artifact with: tfc export CHECKPOINT -o ARTIFACT",
            )
        manifest = manifest_from_json(_manifest_text(path), where=str(path / MANIFEST))
        artifact = cls(path, manifest)
        for name in artifact.manifest.files:
            _inside(path, name)
        return artifact

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names, after checking that it is intact.

        The weights that a graph keeps in a file beside it are checked with it.

        Raises:
            BadArtifact: the manifest does not name it, it is missing, or its bytes changed.
        """
        path = _inside(self.path, name)
        record = self.manifest.files.get(name)
        if record is None:
            raise BadArtifact(
                f"the manifest does not name the file '{name}'",
                where=str(self.path),
                fix="Run the step that writes it again",
            )
        if name + DATA_SUFFIX in self.manifest.files:
            self.file(name + DATA_SUFFIX)
        if name in self._checked:
            return path
        try:
            _check_bytes(path, record)
        except OSError as error:
            raise BadArtifact(
                f"the file cannot be read ({error.strerror})", where=str(path), fix=_REPAIR
            ) from error
        self._checked.add(name)
        return path

    def sha256(self, name: str) -> str:
        """The recorded hash of a file that the manifest names."""
        record = self.manifest.files.get(name)
        return record.sha256 if record is not None else ""

    def engine_sha256(self, engine: Engine) -> str:
        """The identity of an engine: its file's hash, or the hash over those of its files."""
        named = engine.files.values()
        files = sorted(f for n in named for f in (n, n + DATA_SUFFIX) if f in self.manifest.files)
        hashes = [self.sha256(file) for file in files]
        if len(hashes) == 1 or not set(named) <= set(files):
            return hashes[0] if hashes else ""
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def up_to_date(self, step: Step) -> Step | None:
        """The earlier record of the same step, if running it again would change nothing.

        That is so when the inputs, the options and the package versions are the same, and
        everything that it wrote is still there with the recorded bytes.
        """
        earlier = self.manifest.step(step.name)
        if earlier is None:
            return None
        same = (
            earlier.inputs == step.inputs
            and earlier.options == step.options
            and earlier.versions == step.versions
        )
        if not same or not all(self._intact(name) for name in earlier.outputs):
            return None
        return earlier

    def _intact(self, name: str) -> bool:
        try:
            self.file(name)
        except BadArtifact:
            return False
        return True

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Add or replace files, then the manifest, all or nothing.

        Only one process at a time may change an artifact; a second one is refused.
        """
        with disk_errors(self.path), _locked(self.path):
            self._refresh()
            staging = Path(tempfile.mkdtemp(dir=self.path, prefix=_STAGING))
            try:
                change = Change(staging, self.manifest)
                yield change
                self._commit(change)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def _refresh(self) -> None:
        """Take up what others did before we held the lock, and clear what a killed one left."""
        known = self.manifest.files
        self.manifest = Artifact.open(self.path).manifest
        self._checked = {n for n in self._checked if known.get(n) == self.manifest.files.get(n)}
        for left in self.path.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)

    def _commit(self, change: Change) -> None:
        """Put the staged files in place; what can fail for want of space comes first."""
        written = new_manifest_files(change.folder)
        manifest = dataclasses.replace(change.manifest, files={**change.manifest.files, **written})
        targets = {change.folder / name: _inside(self.path, name) for name in written}
        removed = [_inside(self.path, n) for n in change.removed if n not in manifest.files]
        staged_manifest = change.folder / MANIFEST
        staged_manifest.write_bytes(manifest_to_json(manifest).encode())
        for staged, target in [*targets.items(), (staged_manifest, self.path / MANIFEST)]:
            sync(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
        for staged, target in targets.items():
            os.replace(staged, target)
            sync(target.parent)
        os.replace(staged_manifest, self.path / MANIFEST)
        sync(self.path)
        self.manifest = manifest
        self._checked.difference_update(written)
        for path in removed:
            path.unlink(missing_ok=True)


_EXPORT_AGAIN = "Export the checkpoint again with: tfc export --overwrite"
_REPAIR = "Run the step that wrote it again, or 'tfc export --overwrite' for the model itself"


@dataclasses.dataclass
class Change:
    """Files being written (into `folder`, under their final names) and the manifest to come."""

    folder: Path
    manifest: Manifest
    removed: list[str] = dataclasses.field(default_factory=list)

    def path(self, name: str) -> Path:
        """Where to write the file that will be called `name` in the artifact."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def record(self, step: Step) -> None:
        """Add the record of a step, in place of an earlier one of the same name."""
        steps = [s for s in self.manifest.steps if s.name != step.name]
        self.manifest = dataclasses.replace(self.manifest, steps=[*steps, step])

    def drop(self, name: str) -> None:
        """Take a file out of the artifact; it is deleted once the manifest is written."""
        files = {k: v for k, v in self.manifest.files.items() if k != name}
        self.manifest = dataclasses.replace(self.manifest, files=files)
        self.removed.append(name)


def _manifest_text(folder: Path) -> str:
    """The text of the manifest in `folder`."""
    path = _inside(folder, MANIFEST)
    try:
        if not path.is_file():
            raise BadArtifact(
                f"this is not an artifact: it has no {MANIFEST}",
                where=str(folder),
                fix="Create one with: tfc export CHECKPOINT -o ARTIFACT",
            )
        size = path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise BadArtifact(
                f"the manifest has {size} bytes, and none has more than {MAX_MANIFEST_BYTES}",
                where=str(path),
                fix=_EXPORT_AGAIN,
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadArtifact(
            "the manifest is not UTF-8 text", where=str(path), fix=_EXPORT_AGAIN
        ) from error
    except OSError as error:
        raise BadArtifact(
            f"the manifest cannot be read ({error.strerror})",
            where=str(path),
            fix="Check who may read the folder",
        ) from error


def _check_bytes(path: Path, record: FileRecord) -> None:
    """Raise BadArtifact unless `path` is a file with the recorded bytes."""
    if not path.is_file():
        raise BadArtifact("the file is missing", where=str(path), fix=_REPAIR)
    size = path.stat().st_size
    if size != record.bytes:
        raise BadArtifact(
            f"the file has {size} bytes, and the manifest says {record.bytes}",
            where=str(path),
            fix=_REPAIR,
        )
    if sha256_of_file(path) != record.sha256:
        raise BadArtifact(
            "the file's bytes do not match the hash in the manifest",
            where=str(path),
            fix=_REPAIR,
        )


def _inside(folder: Path, name: str) -> Path:
    """`name` as a path in `folder`; refuses names, and links, that leave it."""
    pure = PurePosixPath(name)
    plain = bool(pure.parts) and str(pure) == name and name.isprintable()
    stays = not pure.is_absolute() and ".." not in pure.parts and "\\" not in name
    if not (plain and stays and _leads_inside(folder, folder / pure)):
        raise BadArtifact(
            f"the file name {name!r} leads out of the artifact or is malformed",
            where=str(folder),
            fix="Do not use this artifact; export the checkpoint again",
        )
    return folder / pure


def _leads_inside(folder: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links: RuntimeError before Python 3.13
        return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EnvironmentProblem(
                "another tfc command is changing this artifact",
                where=str(folder),
                fix="Wait for it to finish, then run this again",
            ) from error
        except OSError as error:
            raise EnvironmentProblem(
                f"this file system cannot lock a folder ({error.strerror})",
                where=str(folder),
                fix="Move the artifact to a local disk",
            ) from error
        yield
    finally:
        os.close(handle)


def new_manifest_files(folder: Path) -> dict[str, FileRecord]:
    """A record for every file below `folder`, in the order of their names."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {n: FileRecord(sha256_of_file(folder / n), (folder / n).stat().st_size) for n in names}
