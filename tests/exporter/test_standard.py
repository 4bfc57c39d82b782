"""Graphs that are not clean are refused before anything is built on them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tfc.errors import CheckFailed
from tfc.exporter.standard import check_standard
from tfc.manifest import Signature, TensorSpec

GRAPH = """
<ir_version: 11, opset_import: ["" : 23, "com.microsoft" : 1]>
clean (float[batch,sequence] x) => (float[batch,sequence] y) {{ {body} }}
"""
CLEAN = Signature(
    [TensorSpec("x", "float32", ["batch", "sequence"])],
    [TensorSpec("y", "float32", ["batch", "sequence"])],
)


def graph(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "g.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH.format(body=body)), path)
    return path


def test_a_clean_graph_passes(tmp_path: Path) -> None:
    check_standard(graph(tmp_path, "y = Relu (x)"), CLEAN, "here")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = com.microsoft.Gelu (x)", "it has operators that are not standard (com.microsoft)"),
        ("y = NoSuchOp (x)", "ONNX's checker refuses it (No Op registered for NoSuchOp"),
        ("z = Relu (x)", "ONNX's checker refuses it ("),
    ],
)
def test_what_is_not_standard_is_refused(tmp_path: Path, body: str, reason: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        check_standard(graph(tmp_path, body), CLEAN, "here")
    assert caught.value.what.startswith(f"the exported graph is not clean: {reason}")


def test_an_output_of_unknown_size_is_refused(tmp_path: Path) -> None:
    unknown = Signature(CLEAN.inputs, [TensorSpec("y", "float32", ["batch", "s77"])])
    with pytest.raises(CheckFailed, match="the output y has an axis of unknown size, 's77'"):
        check_standard(graph(tmp_path, "y = Relu (x)"), unknown, "here")
