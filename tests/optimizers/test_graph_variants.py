"""Random variants of the same blocks: numbers stay, and every site is fused however it is written.

Hundreds of seeds were run when this was written; those below are what fits in the suite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_variants import ROWS, variant

from tfc.optimizers.executor import outputs_of, relative_difference
from tfc.steps.optimize_file import optimize_file

pytestmark = pytest.mark.ort

SEEDS = range(24)
# What the ledger allows for one pass, for all of them together.
TOLERANCE = 1e-5


def feeds(model: onnx.ModelProto, seed: int) -> list[dict[str, Any]]:
    """Ids, and masks padded on the right, on the left and in holes."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, ROWS, (3, 6))
    places = np.arange(6)
    found = []
    for kept in (places < 4, places > 1, places % 2 == 0):
        mask = np.ones_like(ids)
        mask[1:] = kept
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_variant_is_fused_and_keeps_its_numbers(seed: int, tmp_path: Path) -> None:
    model, style, expected = variant(seed)
    source, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    onnx.save(model, source)
    target = "tensorrt" if seed % 3 == 0 else "onnxruntime"
    report = optimize_file(source, fused, target)
    found = {kind: (count.found, count.expected) for kind, count in report.counts.items()}
    assert found == expected, style
    assert report.reverted == [], style
    result = onnx.load(fused)
    onnx.checker.check_model(result, full_check=target == "tensorrt")
    read = {name for node in result.graph.node for name in node.input}
    given = {value.name for value in result.graph.output}
    assert {tensor.name for tensor in result.graph.initializer} <= read | given
    inputs = feeds(model, seed)
    before, after = (outputs_of(ir.from_proto(m), inputs) for m in (model, result))
    assert relative_difference(before, after) < TOLERANCE, style
