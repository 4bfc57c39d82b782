"""Graphs of old opsets are brought to the current one, those of ONNX Runtime too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tfc.optimizers.executor import outputs_of
from tfc.optimizers.opset import OPSET, with_current_opset
from tfc.steps.optimize_file import optimize_file

pytestmark = pytest.mark.ort

# ONNX Runtime writes LayerNormalization into graphs of any opset; the standard has it from 17 on.
NORM = """<ir_version: 7, opset_import: ["" : 14]>
g (float[batch,sequence,8] x, float[batch,sequence,8] r) => (float[batch,sequence,8] y) {
  s = Add(x, r)
  n = LayerNormalization<axis=-1, epsilon=1e-6>(s, scale, bias)
  axes = Constant<value_ints=[0]>()
  u = Unsqueeze(n, axes)
  y = Squeeze(u, axes)
}"""


def norm_model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(NORM)
    for name in ("scale", "bias"):
        array = np.linspace(0.5, 2, 8, dtype=np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def test_a_norm_below_its_opset_is_kept() -> None:
    model = with_current_opset(norm_model())
    assert model.opset_imports == {"": OPSET}
    assert [node.op_type for node in model.graph][1] == "LayerNormalization"
    assert all(node.domain == "" for node in model.graph)


def test_it_is_fused_and_gives_the_same_numbers(tmp_path: Path) -> None:
    source, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    onnx.save(norm_model(), source)
    report = optimize_file(source, fused, "tensorrt")
    assert report.summary() == "attention 0/0, add+LayerNorm 1/1"
    result = onnx.load(fused)
    onnx.checker.check_model(result, full_check=True)
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=(2, 5, 8)).astype(np.float32) for name in ("x", "r")}
    (before,), (after,) = (outputs_of(ir.from_proto(m), [feed]) for m in (norm_model(), result))
    np.testing.assert_allclose(after["y"], before["y"], atol=1e-6)


def test_every_node_gets_its_own_name() -> None:
    model = with_current_opset(norm_model())
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    assert "" not in names
