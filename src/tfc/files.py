"""Files: hashing while streaming, and writes that are either whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfc.errors import disk_errors

_CHUNK = 1 << 20
# What is added to the name of a graph for the weights that it keeps in a second file.
DATA_SUFFIX = ".data"


def sha256_of_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_tree(folder: Path, names: list[str]) -> str:
    """One SHA-256 over the given files of `folder`: their names and their contents."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0{sha256_of_file(folder / name)}\n".encode())
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: after a crash the old content is there, or the new one."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well.

    Whatever was at `target` is replaced. When the block raises, the temporary folder is removed
    and `target` stays as it was.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
    try:
        with disk_errors(target):
            yield staging
            _sync_tree(staging)
            staging.chmod(0o755)
            _replace_folder(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _replace_folder(source: Path, target: Path) -> None:
    old = None
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
        os.rename(target, old / target.name)
    try:
        os.rename(source, target)
    except OSError:
        if old is not None:
            os.rename(old / target.name, target)
            old.rmdir()
        raise
    sync(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name, or copy it where the file system has no hard links.

    The weights that a graph keeps beside it are copied along, since readers of ONNX refuse weights
    with two names; the graph finds them by its own file's name, so that must stay the same.
    """
    weights = source.with_name(source.name + DATA_SUFFIX)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if weights.exists():
            shutil.copyfile(weights, target.with_name(target.name + DATA_SUFFIX))
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
