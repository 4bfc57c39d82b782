"""Every command in README.md is run, and so is its Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ensembles import with_another_head

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"^\$ (tfc .+)$", README, re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tiny_checkpoint: Path, generator: Callable[[str], Path], tmp_path: Path) -> Path:
    """The files that the README talks about, with a tiny model."""
    shutil.copytree(tiny_checkpoint, tmp_path / "my-checkpoint")
    with_another_head(tiny_checkpoint, tmp_path / "my-second", 1)
    shutil.copytree(generator("bart") / "artifact", tmp_path / "my-translator")
    texts = ["Where is my parcel?", "I want my money back", "¡Hola!"]
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "tickets.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.ort
@pytest.mark.rtx
def test_the_commands_run_in_their_order(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    shown = dict(re.findall(r"^\$ (tfc .+)\n((?:(?!\$|```).+\n)*)", README, re.MULTILINE))
    assert CONSOLE[:3] == [line for line in shown if shown[line]][:3]
    for command in CONSOLE:
        done = subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        # The output has the lines that the README shows, whatever the numbers.
        names = [line.split()[0] for line in shown[command].splitlines() if line[:1].isalpha()]
        printed = {line.split()[0] for line in done.stdout.splitlines() if line[:1].isalpha()}
        assert set(names) <= printed, command
        assert max(map(len, done.stdout.splitlines())) <= 80 or "/" in done.stdout
    rows = [json.loads(line) for line in (folder / "labelled.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert {path.name for path in (folder / "labelled").iterdir()} == {
        *("part-00000.parquet", "_SUCCESS")
    }

    for code, lines in zip(PYTHON, (2, 3, 1), strict=True):
        blocked = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        done = subprocess.run(
            [sys.executable, "-c", blocked + code],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == lines


def test_the_make_targets_exist() -> None:
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_what_the_readme_names_exists() -> None:
    names = re.findall(r"`((?:examples|perf|docs)/[\w./]+)`", README)
    names += re.findall(r"\]\(([\w./]+)\)", README)
    assert len(names) >= 4
    for name in names:
        assert (ROOT / name).exists(), name


def test_no_command_of_the_cli_is_missing() -> None:
    from tfc.cli import COMMANDS

    assert {command.split()[1] for command in CONSOLE} == set(COMMANDS)
