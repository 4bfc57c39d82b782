"""A wrong graph fails the export and leaves what shows it, with the module that is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from checkpoints import save_tiny_checkpoint
from handwritten import Encoder

import tfc
import tfc.exporter.custom
import tfc.exporter.text
from tfc.errors import CheckFailed

pytestmark = pytest.mark.ort
IDS = torch.arange(14).view(2, 7)
MASK = torch.ones_like(IDS)
AXES = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
Sabotage = Callable[[ir.Model], None]


@pytest.fixture
def sabotaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Sabotage], None]:
    """Let the exporter's graph be changed before it is checked."""

    def apply(room: Any, change: Sabotage) -> None:
        original = room.onnx_from_module

        def wrong(*arguments: Any) -> ir.Model:
            model = original(*arguments)
            change(model)
            return model

        monkeypatch.setattr(room, "onnx_from_module", wrong)

    return apply


def weight_plus(name: str, amount: float) -> Sabotage:
    """One element of one weight is off."""

    def change(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array.flat[1] += amount
        value.const_value = ir.tensor(array, name=name)

    return change


def node_of(module: str, op_type: str, **attributes: float) -> Sabotage:
    """An attribute of the first such node of a module is off."""

    def change(model: ir.Model) -> None:
        node = next(
            n
            for n in model.graph
            if n.op_type == op_type and n.metadata_props.get("tfc.module", "").endswith(module)
        )
        for name, value in attributes.items():
            node.attributes[name] = ir.AttrFloat32(name, value)

    return change


def report_of(folder: Path) -> dict[str, Any]:
    files = {"inputs.npz", "expected.npz", "got.npz", "model.onnx", "report.json"}
    assert set(os.listdir(folder)) == files
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.mark.parametrize(
    ("weight", "module"),
    [
        ("blocks.0.q.bias", "blocks.0.q"),
        ("blocks.1.norm1.weight", "blocks.1.norm1"),
        ("blocks.1.down.bias", "blocks.1.down"),
        ("embedding.weight", "embedding"),
        ("head.bias", "head"),
    ],
)
def test_one_weight_of_a_module(
    tmp_path: Path, sabotaged: Callable[..., None], weight: str, module: str
) -> None:
    sabotaged(tfc.exporter.custom, weight_plus(weight, 0.05))
    with pytest.raises(CheckFailed) as caught:
        tfc.export(Encoder(style="fill"), (IDS, MASK), tmp_path / "a", dynamic_axes=AXES)
    assert f"the first module whose output differs is {module} (" in caught.value.what
    assert str(tmp_path / "a.failed") in caught.value.fix
    site = report_of(tmp_path / "a.failed")["first_difference"]
    assert site["module"] == module
    assert not (tmp_path / "a").exists()


def test_the_evidence_shows_the_difference(tmp_path: Path, sabotaged: Callable[..., None]) -> None:
    import onnxruntime

    sabotaged(tfc.exporter.custom, weight_plus("blocks.1.up.bias", 0.5))
    with pytest.raises(CheckFailed):
        tfc.export(Encoder(style="fill"), (IDS, MASK), tmp_path / "a", dynamic_axes=AXES)
    folder = tmp_path / "a.failed"
    inputs, expected, got = (
        dict(np.load(folder / f"{name}.npz", allow_pickle=False))
        for name in ("inputs", "expected", "got")
    )
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (again,) = session.run(None, inputs)
    np.testing.assert_allclose(again, got["output"], atol=1e-5)
    worst = float(np.abs(expected["output"] - got["output"]).max())
    assert report_of(folder)["parity"]["max_abs"] == pytest.approx(worst)
    assert worst > 1e-3


@pytest.mark.parametrize(
    ("change", "module", "op_type"),
    [
        (
            weight_plus("bert.encoder.layer.1.attention.self.value.bias", 1.0),
            "bert.encoder.layer.1.attention.self.value",
            None,
        ),
        (
            node_of("layer.0.output.LayerNorm", "LayerNormalization", epsilon=0.5),
            "bert.encoder.layer.0.output.LayerNorm",
            "LayerNormalization",
        ),
        (
            node_of("layer.1.attention.self", "Attention", scale=0.01),
            "bert.encoder.layer.1.attention.self",
            "Reshape",
        ),
        (weight_plus("classifier.bias", 0.1), "classifier", None),
    ],
    ids=["weight", "node", "attention", "classifier"],
)
def test_a_wrong_node_of_a_checkpoint(
    tiny_checkpoint: Path,
    tmp_path: Path,
    sabotaged: Callable[..., None],
    change: Sabotage,
    module: str,
    op_type: str | None,
) -> None:
    sabotaged(tfc.exporter.text, change)
    with pytest.raises(CheckFailed) as caught:
        tfc.export(tiny_checkpoint, tmp_path / "a")
    assert caught.value.exit_code == 1
    site = report_of(tmp_path / "a.failed")["first_difference"]
    assert site["module"] == module
    assert op_type is None or site["op_type"] == op_type
    assert not (tmp_path / "a").exists()


def test_a_module_that_is_called_several_times(
    tmp_path: Path, sabotaged: Callable[..., None]
) -> None:
    """ALBERT's layers are one module; its embeddings come before."""
    checkpoint = save_tiny_checkpoint(tmp_path / "c", "albert", num_hidden_layers=3)
    name = "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.bias"
    sabotaged(tfc.exporter.text, weight_plus(name, 0.5))
    with pytest.raises(CheckFailed):
        tfc.export(checkpoint, tmp_path / "a")
    site = report_of(tmp_path / "a.failed")["first_difference"]
    assert site["module"] == name.removesuffix(".bias")


def test_a_graph_that_does_not_run(tmp_path: Path, sabotaged: Callable[..., None]) -> None:
    def change(model: ir.Model) -> None:
        node = next(n for n in model.graph if n.op_type == "Reshape")
        shape = node.inputs[1]
        value = ir.Value(name="wrong", const_value=ir.tensor(np.array([5, 5]), name="wrong"))
        assert shape is not None
        model.graph.initializers["wrong"] = value
        node.replace_input_with(1, value)

    sabotaged(tfc.exporter.custom, change)
    with pytest.raises(CheckFailed, match="the exported graph does not run on input_ids of 2×7"):
        tfc.export(Encoder(style="fill"), (IDS, MASK), tmp_path / "a", dynamic_axes=AXES)
    assert "got.npz" not in os.listdir(tmp_path / "a.failed")


def test_earlier_evidence_is_replaced_and_nothing_else_is(
    tmp_path: Path, sabotaged: Callable[..., None]
) -> None:
    sabotaged(tfc.exporter.custom, weight_plus("head.bias", 0.5))
    (tmp_path / "a.failed").mkdir()
    (tmp_path / "a.failed" / "notes.txt").write_text("mine")
    for _ in range(2):
        with pytest.raises(CheckFailed, match=r"a\.failed-2"):
            tfc.export(Encoder(style="fill"), (IDS, MASK), tmp_path / "a", dynamic_axes=AXES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.failed", "a.failed-2"]
    assert (tmp_path / "a.failed" / "notes.txt").read_text() == "mine"
