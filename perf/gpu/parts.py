"""Large files → parts that are small enough to be carried, and back, with checksums.

`split` cuts files into folders `part-00`, `part-01`, …, each with a copy of the list `parts.json`.
`join` takes in one or more of those folders, in any order and over several calls, and writes every
file whose pieces are all there. It needs nothing but Python's standard library:

    python perf/gpu/parts.py join .parts/part-03 --into /tmp/wheels
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

INDEX = "parts.json"
PIECES = "pieces"  # the folder that keeps pieces until their file is whole
_BLOCK = 1 << 20


class DamagedPart(Exception):
    """A piece or a file is not what was packed; the text names it."""


@dataclass(frozen=True)
class Piece:
    """A part of a file: `name` in the folder `part`, from the byte `offset` of the file on."""

    part: str
    name: str
    offset: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Packed:
    """A file that was cut: its size, its checksum and its pieces in order."""

    name: str
    bytes: int
    sha256: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Joined:
    """What is whole by now, and of what is not the parts that are missing."""

    whole: tuple[str, ...]
    missing_parts: tuple[str, ...]


def split(files: Sequence[Path], target: Path, limit: int) -> tuple[Packed, ...]:
    """Cut `files` into folders of at most `limit` bytes of pieces, under `target`."""
    packed, part, room = [], 0, limit
    for file in files:
        pieces, offset, size = [], 0, file.stat().st_size
        with file.open("rb") as source:
            while offset < size or not pieces:
                if room == 0:
                    part, room = part + 1, limit
                data = source.read(min(room, size - offset))
                folder = target / f"part-{part:02d}"
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{file.name}.{len(pieces):02d}"
                (folder / name).write_bytes(data)
                digest = hashlib.sha256(data).hexdigest()
                pieces.append(Piece(folder.name, name, offset, len(data), digest))
                offset, room = offset + len(data), room - len(data)
        packed.append(Packed(file.name, size, sha256_of(file), tuple(pieces)))
    text = json.dumps([asdict(each) for each in packed], indent=1) + "\n"
    for number in range(part + 1):
        (target / f"part-{number:02d}" / INDEX).write_text(text, encoding="utf-8")
    return tuple(packed)


def join(parts: Iterable[Path], into: Path) -> Joined:
    """Take in the folders `parts`; write the files that are whole by now.

    Raises:
        DamagedPart: a piece is missing from its folder or is not what was packed. Nothing of that
            folder is taken in.
    """
    kept = into / PIECES
    kept.mkdir(parents=True, exist_ok=True)
    for part in parts:
        index = part / INDEX
        if not index.is_file():
            raise DamagedPart(f"{index} is not there: carry the whole folder")
        own = [piece for each in _read(index) for piece in each.pieces if piece.part == part.name]
        for piece in own:
            _check(part / piece.name, piece.bytes, piece.sha256)
        for piece in own:
            shutil.copyfile(part / piece.name, kept / piece.name)
        shutil.copyfile(index, into / INDEX)
    packed = _read(into / INDEX) if (into / INDEX).is_file() else ()
    for each in packed:
        _write_if_complete(each, kept, into)
    whole = tuple(each.name for each in packed if (into / each.name).is_file())
    missing = {
        piece.part
        for each in packed
        for piece in each.pieces
        if each.name not in whole and not (kept / piece.name).is_file()
    }
    return Joined(whole, tuple(sorted(missing)))


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _write_if_complete(packed: Packed, kept: Path, into: Path) -> None:
    sources = [kept / piece.name for piece in packed.pieces]
    target = into / packed.name
    if target.is_file() or not all(source.is_file() for source in sources):
        return
    begun = into / f"{packed.name}.begun"
    with begun.open("wb") as out:
        for source in sources:
            with source.open("rb") as pieces:
                shutil.copyfileobj(pieces, out, _BLOCK)
    _check(begun, packed.bytes, packed.sha256)
    begun.replace(target)
    for source in sources:
        source.unlink()


def _check(file: Path, size: int, sha256: str) -> None:
    if not file.is_file():
        raise DamagedPart(f"{file} is not there: carry the whole folder")
    if file.stat().st_size != size:
        raise DamagedPart(f"{file} has {file.stat().st_size} bytes, and {size} were packed")
    if sha256_of(file) != sha256:
        raise DamagedPart(f"{file} is not what was packed: its SHA-256 is another")


def _read(index: Path) -> tuple[Packed, ...]:
    found = json.loads(index.read_text(encoding="utf-8"))
    return tuple(
        Packed(**{**each, "pieces": tuple(Piece(**piece) for piece in each["pieces"])})
        for each in found
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    joining = commands.add_parser("join", help="take in parts, write the files that are whole")
    joining.add_argument("parts", nargs="+", type=Path)
    joining.add_argument("--into", type=Path, required=True)
    asked = parser.parse_args()
    try:
        joined = join(asked.parts, asked.into)
    except DamagedPart as error:
        print(error, file=sys.stderr)
        return 1
    print(f"whole: {', '.join(joined.whole) or 'nothing yet'}")
    print(f"missing parts: {', '.join(joined.missing_parts) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
