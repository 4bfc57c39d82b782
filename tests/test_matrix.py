"""Every family of README's table: checkpoint → parity → fusions → verified → compiled kernels.

`TFC_RECORD_SUPPORT=1 pytest tests/test_matrix.py` writes tests/support.json anew.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrix import CASES, SUPPORT, Case, recorded, table, table_in_readme

import tfc
from tfc.errors import ContractNotReached
from tfc.kernel_report import summary_of
from tfc.steps.kernels import kernels_of_engine

pytestmark = pytest.mark.ort
GENERATING = ("text-generation", "text2text-generation", "automatic-speech-recognition")
RECORDING = bool(os.environ.get("TFC_RECORD_SUPPORT"))
# Kernels and waits of the first of two layers. 10 are a layer's own; DeBERTa's first has the slice
# of all layers' positions too, and one norm in two kernels where the last layer reads one position.
WITH_POSITIONS = {
    "question-answering/deberta-v2": (10, 0),
    "text-classification/deberta": (12, 0),
}
has_rtx = importlib.util.find_spec("tensorrt_rtx") is not None


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_from_checkpoint_to_kernels(
    case: Case, tmp_path: Path, generator: Callable[[str], Path]
) -> None:
    if case.task in GENERATING:  # other tests need some of them too
        shutil.copytree(generator(case.family), tmp_path, dirs_exist_ok=True)
        artifact = tfc.Artifact.open(tmp_path / "artifact")
    else:
        case.save(tmp_path / "checkpoint")
        task = case.task if case.asked else None
        artifact = tfc.export(tmp_path / "checkpoint", tmp_path / "artifact", task=task).artifact
    assert artifact.manifest.task.name == case.task
    assert 0 < artifact.manifest.steps[0].result["parity"]["relative"] < 1e-5
    row = found_of(artifact)
    tfc.build_engine(artifact, backend="onnxruntime", allow_missed=True)
    assert tfc.verify(artifact).failed == []
    if has_rtx:
        row["tensorrt_kernels"] = kernels_of(artifact)
        if case.name in WITH_POSITIONS:
            assert first_layer(artifact) == WITH_POSITIONS[case.name]
    if RECORDING:
        every = recorded() if SUPPORT.exists() else {}
        SUPPORT.write_text(
            json.dumps({**every, case.name: row}, indent=1, sort_keys=True) + "\n", "utf-8"
        )
    expected = recorded()[case.name]
    assert row == {key: expected[key] for key in row}


def found_of(artifact: tfc.Artifact) -> dict[str, str]:
    """The fusions of both targets, and whether each found all that there is to fuse."""
    row = {}
    whole = True
    for target in ("onnxruntime", "tensorrt"):
        report = tfc.optimize(artifact, target, allow_missed=True).report
        assert report["reverted"] == []
        row[target] = shown(report["fusions"])
        whole = whole and all(c["found"] >= c["expected"] for c in report["fusions"].values())
    return {**row, "fused": "yes" if whole else "no"}


def kernels_of(artifact: tfc.Artifact) -> str:
    """Of the fp16 plan: the fused-attention kernels, of so many attention blocks in the graph."""
    try:
        built = tfc.build_engine(
            artifact, precision="fp16", backend="tensorrt-rtx", allow_missed=True
        )
    except ContractNotReached as error:
        return error.what
    audit = built.engine.audit
    return f"fused attention {audit['fused_attention']}/{audit['wanted']['fused_attention']}"


def first_layer(artifact: tfc.Artifact) -> tuple[int, int]:
    """The kernels and the waits of streams for each other of the fp16 plan's first layer."""
    summary = summary_of(kernels_of_engine(artifact, "tensorrt-rtx-fp16").graphs["model"])
    return summary.layers[0], summary.layer_waits[0]


def shown(fusions: dict[str, Any]) -> str:
    return ", ".join(f"{kind} {c['found']}/{c['expected']}" for kind, c in fusions.items())


def test_the_readme_has_the_table_of_what_ran() -> None:
    assert set(recorded()) == {case.name for case in CASES}
    assert table_in_readme() == table()
