"""`tfc optimize model.onnx`: graphs that tfc did not export, by several exporters and opsets."""

from __future__ import annotations

import json
from pathlib import Path

import cached_decoders
import exporter_cells
import numpy as np
import onnx
import pytest
from checkpoints import run_tfc
from handwritten import Encoder, TorchEncoder, export, outputs

from tfc.errors import BadInput
from tfc.steps.optimize_file import optimize_file

pytestmark = pytest.mark.ort

MODELS = {
    "masked_fill with -inf": (lambda: Encoder(style="fill"), 4),
    "additive mask, pre-LN": (lambda: Encoder(style="additive", pre_norm=True), 3),
    "einsum, query scaled by 0.25": (lambda: Encoder(style="einsum"), 4),
    "scores divided by 2": (lambda: Encoder(style="halved"), 4),
    "no mask": (lambda: Encoder(style="none"), 4),
    "bmm, heads merged into the batch": (lambda: Encoder(style="bmm"), 4),
    "one head": (lambda: Encoder(style="fill", heads=1), 4),
}
EXPORTERS = [("torchscript", 11), ("torchscript", 14), ("torchscript", 17), ("dynamo", 18),
             ("dynamo", 23)]  # fmt: skip


@pytest.mark.parametrize(("exporter", "opset"), EXPORTERS)
@pytest.mark.parametrize("model", MODELS)
def test_every_block_is_fused(model: str, exporter: str, opset: int, tmp_path: Path) -> None:
    if "einsum" in model and opset < 12:
        pytest.skip("ONNX has Einsum from opset 12 on")
    make, norms = MODELS[model]
    source = export(make(), tmp_path / "model.onnx", exporter, opset)
    expected = outputs(source)
    for target in ("onnxruntime", "tensorrt"):
        fused = tmp_path / f"{target}.onnx"
        report = optimize_file(source, fused, target)
        assert report.summary() == f"attention 2/2, add+LayerNorm {norms}/{norms}"
        assert report.reverted == []
        for before, after in zip(expected, outputs(fused), strict=True):
            assert np.abs(before - after).max() < 1e-5
        if target == "tensorrt":
            domains = {node.domain for node in onnx.load(fused).graph.node}
            assert domains == {""}


@pytest.mark.parametrize(("pre_norm", "norms"), [(False, 4), (True, 3)])
@pytest.mark.parametrize("opset", [18, 23])
def test_torchs_own_encoder(pre_norm: bool, norms: int, opset: int, tmp_path: Path) -> None:
    source = export(TorchEncoder(pre_norm), tmp_path / "model.onnx", "dynamo", opset)
    report = optimize_file(source, tmp_path / "out.onnx", "tensorrt")
    assert report.summary() == f"attention 2/2, add+LayerNorm {norms}/{norms}"


@pytest.mark.parametrize(("pre_norm", "norms"), [(False, 4), (True, 3)])
def test_a_graph_that_the_trace_fixed_to_one_length_is_fused(
    pre_norm: bool, norms: int, tmp_path: Path
) -> None:
    """TorchScript writes the traced length into nn.MultiheadAttention's reshapes."""
    source = export(TorchEncoder(pre_norm), tmp_path / "model.onnx", "torchscript", 17)
    report = optimize_file(source, tmp_path / "out.onnx", "onnxruntime")
    assert report.summary() == f"attention 2/2, add+LayerNorm {norms}/{norms}"
    assert report.reverted == []
    (shapes,) = [miss for miss in report.missed if miss.kind == "shapes"]
    assert shapes.reason.startswith("the axis 'sequence' is fixed to 7: the graph does not run at")
    batch, sequence = onnx.load(tmp_path / "out.onnx").graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param == "batch"
    assert sequence.dim_value == 7


# Of the table that tests/exporter_cells.py prints: what fails first when a family's eager form,
# TorchScript's arithmetic on shapes, or a decoder's mask is read otherwise.
CELLS = [
    ("gpt2", "eager", "torchscript", 11, "attention 2/2, add+LayerNorm 4/4"),
    ("bart", "sdpa", "torchscript", 14, "attention 6/6, add+LayerNorm 10/10"),
    ("t5", "eager", "torchscript", 13, "attention 6/6, add+LayerNorm 0/0"),
    ("opt", "sdpa", "torchscript", 17, "attention 2/2, add+LayerNorm 4/4"),
    ("vit", "eager", "dynamo", 18, "attention 2/2, add+LayerNorm 4/4"),
    ("distilbert", "sdpa", "dynamo", 24, "attention 2/2, add+LayerNorm 4/4"),
]


@pytest.mark.parametrize(("family", "attention", "exporter", "opset", "counts"), CELLS)
def test_families_of_transformers(
    family: str, attention: str, exporter: str, opset: int, counts: str, tmp_path: Path
) -> None:
    source, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    exporter_cells.export(family, attention, exporter, opset, source)
    report = optimize_file(source, fused, "onnxruntime")
    assert report.summary() == counts
    assert report.reverted == []
    assert exporter_cells.difference(source, fused) < 1e-5


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({}, "past_sequence_length + sequence_length"),
        ({"stacked": True}, "total_seq_len"),
        ({"transposed_keys": True}, "total_sequence_length"),
    ],
    ids=["a cache for each of k and v", "stacked", "keys transposed"],
)
def test_decoders_with_a_cache(options: dict[str, bool], total: str, tmp_path: Path) -> None:
    source, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    cached_decoders.export(cached_decoders.Decoder(**options), source, total, 13)
    report = optimize_file(source, fused, "onnxruntime")
    assert report.summary() == "attention 2/2, add+LayerNorm 4/4"
    assert report.reverted == []
    assert [o.name for o in onnx.load(source).graph.output] == [
        o.name for o in onnx.load(fused).graph.output
    ]


def test_the_command_writes_the_graph_and_prints_json(tmp_path: Path) -> None:
    source = export(Encoder(style="fill"), tmp_path / "model.onnx", "torchscript", 17)
    output = tmp_path / "out.onnx"
    done = run_tfc("optimize", source, "--target", "onnxruntime", "-o", output, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["fusions"]["attention"] == {"found": 2, "expected": 2}
    assert report["missed"] == []
    assert report["reverted"] == []
    onnx.checker.check_model(onnx.load(source))
    assert sum(n.op_type == "Sum" for n in onnx.load(output).graph.node) == 4


def test_the_command_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    done = run_tfc("optimize", broken, "--target", "tensorrt", "-o", tmp_path / "o.onnx")
    assert done.returncode == 5
    assert "the file is not an ONNX model" in done.stderr
    done = run_tfc("optimize", broken, "--target", "tensorrt")
    assert done.returncode == 2
    assert "there is no place to write to" in done.stderr
    with pytest.raises(BadInput, match="there is no such file"):
        optimize_file(tmp_path / "none.onnx", tmp_path / "o.onnx", "tensorrt")
    assert not (tmp_path / "o.onnx").exists()
