"""What builds leave for later builds, in a folder of the user's: `~/.cache/tfc`.

Layout::

    engines/<key>/engine      a compiled engine
    engines/<key>/entry.json  its hash, and what the build said of it
    timing/<name>             the times of kernels that TensorRT measured on one kind of GPU
    plans/<key>.json          which values of a graph's architecture were kept in fp32

Nothing here is trusted: an engine counts only if its bytes have the recorded hash, kernels' times
only choose kernels, and a precision plan is measured like any other. Two builds may use the folder
at once: entries are made beside their place and renamed into it, whole. Where the folder cannot be
written, builds go on without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.errors import BadArtifact, TfcError, UsageError
from tfc.files import link_or_copy, sha256_of_file, write_atomically
from tfc.manifest_json import decode
from tfc.runtime.backends.base import Built

FOLDER_VARIABLE, SIZE_VARIABLE = "TFC_CACHE_DIR", "TFC_CACHE_GB"
# Some hundred engines of base models, or twenty of large ones.
DEFAULT_GB = 20.0
_ENGINE, _ENTRY = "engine", "entry.json"
_UNFINISHED = ".partial-"
# What a build that was killed left behind goes after a day: none takes as long.
_FORGOTTEN_SECONDS = 24 * 3600
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class BuildCache:
    """The folder, and how many bytes its engines may have."""

    folder: Path
    most_bytes: int

    def restore(self, key: str, target: Path) -> Built | None:
        """Put the engine under `key` at `target`; what its build said, or None if there is none.

        An entry whose bytes are not those that were kept is deleted.
        """
        place = self._place(key)
        try:
            entry = json.loads((place / _ENTRY).read_text(encoding="utf-8"))
            link_or_copy(place / _ENGINE, target)
            if sha256_of_file(target) != entry["sha256"]:
                raise BadArtifact("the bytes of this engine changed", where=str(place))
            built: Built = decode(Built, entry["built"], "built")
            os.utime(place)
        except FileNotFoundError:
            target.unlink(missing_ok=True)
            return None
        except (OSError, TfcError, ValueError, KeyError, TypeError):
            target.unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            return None
        return built

    def keep(self, key: str, engine: Path, built: Built) -> str:
        """Keep an engine under `key`; why that failed, or nothing.

        Where another build was faster, its entry stays. The oldest entries go where all are larger
        than allowed.
        """
        root = self._place(key).parent
        staged = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(dir=root, prefix=_UNFINISHED))
            link_or_copy(engine, staged / _ENGINE)
            entry = {"sha256": sha256_of_file(engine), "built": dataclasses.asdict(built)}
            write_atomically(staged / _ENTRY, json.dumps(entry).encode())
            with contextlib.suppress(OSError):  # another build put the same entry there first
                staged.rename(self._place(key))
            self._evict(root)
        except (OSError, TfcError) as error:
            return f"the engine was not kept for later builds: {error}"
        finally:
            if staged is not None:
                shutil.rmtree(staged, ignore_errors=True)
        return ""

    def timings(self, name: str) -> Timings:
        """The times of kernels under `name`: a backend, its version and a kind of GPU."""
        return Timings(self.folder / "timing" / name)

    def plan(self, key: str) -> list[dict[str, Any]]:
        """The precision plan under `key`; empty where there is none, or none that can be read."""
        try:
            found = json.loads((self.folder / "plans" / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return found if isinstance(found, list) else []

    def keep_plan(self, key: str, plan: list[dict[str, Any]]) -> None:
        """Keep a precision plan under `key`, in place of an earlier one; or go on without it."""
        with contextlib.suppress(OSError, TfcError):
            write_atomically(self.folder / "plans" / f"{key}.json", json.dumps(plan).encode())

    def _place(self, key: str) -> Path:
        return self.folder / "engines" / key

    def _evict(self, root: Path) -> None:
        entries = []
        for place in root.iterdir():
            used = _used(place)
            if place.name.startswith(_UNFINISHED):
                if time.time() - used > _FORGOTTEN_SECONDS:
                    shutil.rmtree(place, ignore_errors=True)
                continue
            entries.append((used, place, _size(place)))
        total = sum(size for _, _, size in entries)
        for _, place, size in sorted(entries):
            if total <= self.most_bytes:
                break
            shutil.rmtree(place, ignore_errors=True)
            total -= size


def _used(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:  # another build deleted it
        return 0.0


def _size(place: Path) -> int:
    try:
        return sum(file.stat().st_size for file in place.iterdir())
    except OSError:
        return 0


@dataclass(frozen=True)
class Timings:
    """A file of kernels' times: the SHA-256 of the rest, and what TensorRT serialized."""

    path: Path

    def read(self) -> bytes:
        """What was kept; empty where there is nothing, or not what was written."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return b""
        digest, kept = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        return kept if hashlib.sha256(kept).digest() == digest else b""

    def update(self, combined: Callable[[bytes], bytes]) -> None:
        """Write what `combined` makes of what is there now, or go on without it.

        Builds that end at the same time wait for each other, so that none loses the other's times.
        """
        with contextlib.suppress(OSError, TfcError), self._locked():
            data = combined(self.read())
            write_atomically(self.path, hashlib.sha256(data).digest() + data)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f"{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def cache_of_user(environment: Mapping[str, str]) -> BuildCache:
    """The cache in `TFC_CACHE_DIR`, or `~/.cache/tfc`, of at most `TFC_CACHE_GB` gigabytes.

    Raises:
        UsageError: `TFC_CACHE_GB` is no number.
    """
    base = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(environment.get(FOLDER_VARIABLE) or base / "tfc").expanduser()
    given = environment.get(SIZE_VARIABLE) or str(DEFAULT_GB)
    try:
        most = int(float(given) * 1e9)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{SIZE_VARIABLE} is '{given}', not a number of gigabytes",
            fix=f"Set it to a number, e.g. {SIZE_VARIABLE}=50",
        ) from error
    return BuildCache(folder, most)
