"""Heads merged into the batch get an axis of their own again, past everything in between."""

from __future__ import annotations

import numpy as np
import pytest

from tfc.optimizers.merged_heads import SplitMergedHeads
from tfc.optimizers.shapes import InferShapes


def feed(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shape = (3, 2, 5, 4)
    made = {name: rng.standard_normal(shape).astype(np.float32) for name in "qkv"}
    return {**made, "bias": rng.standard_normal(shape[:3]).astype(np.float32)}


GRAPH = """
<ir_version: 11, opset_import: ["" : 23]>
merged (float[batch,2,sequence,4] q, float[batch,2,sequence,4] k, float[batch,2,sequence,4] v,
        float[batch,2,sequence] bias) => (float[batch,2,sequence,4] y) {
  minus = Constant <value_ints = [-1]> ()
  one = Constant <value_ints = [1]> ()
  heads = Constant <value_ints = [2]> ()
  dim = Constant <value_ints = [4]> ()
  rows = Shape <start = 0, end = 1> (q)
  length = Shape <start = 2, end = 3> (q)
  merged_size = Concat <axis = 0> (minus, length, dim)
  bias_size = Concat <axis = 0> (minus, one, length)
  split_size = Concat <axis = 0> (rows, heads, length, dim)
  q3 = Reshape (q, merged_size)
  k3 = Reshape (k, merged_size)
  v3 = Reshape (v, merged_size)
  bias3 = Reshape (bias, bias_size)
  kt = Transpose <perm = [0, 2, 1]> (k3)
  product = MatMul (q3, kt)
  scores = Add (OPERANDS)
  p = Softmax <axis = -1> (scores)
  y3 = MatMul (p, v3)
  y = Reshape (y3, split_size)
}
"""


@pytest.mark.ort
@pytest.mark.parametrize("operands", ["product, bias3", "bias3, product"])
def test_a_bias_per_head_is_split_as_the_scores_are(graphs, operands: str) -> None:
    import onnx_ir as ir

    from tfc.optimizers.executor import outputs_of, relative_difference

    model = ir.from_onnx_text(GRAPH.replace("OPERANDS", operands))
    feeds = [feed(np.random.default_rng(0))]
    expected = outputs_of(model, feeds)
    InferShapes().apply(model)
    assert SplitMergedHeads().apply(model).changed == 6
    ops = [node.op_type for node in model.graph]
    kept = [op for op in ops if op in ("Transpose", "MatMul", "Add", "Softmax")]
    assert kept == ["Transpose", "MatMul", "Add", "Softmax", "MatMul"]
    # What is left of the reshapes: the bias's own, and its split.
    assert ops.count("Reshape") == 2
    assert relative_difference(expected, outputs_of(model, feeds)) < 1e-6


@pytest.mark.ort
@pytest.mark.parametrize("operands", ["hidden, fill, product", "hidden, product, fill"])
def test_a_mask_per_head_is_split_as_the_scores_are(graphs, operands: str) -> None:
    import onnx_ir as ir

    from tfc.optimizers.cleaning import Fold
    from tfc.optimizers.executor import outputs_of, relative_difference

    masked = (
        "fill = Constant <value_float = -9.0> () hidden = Cast <to = 9> (bias3) "
        f"scores = Where ({operands}) again = Shape (scores) same = Reshape (scores, again)"
    )
    text = GRAPH.replace("scores = Add (OPERANDS)", masked).replace(
        "(scores)\n  y3", "(same)\n  y3"
    )
    # Exporters say how long the merged axis is; inference tells it for a fixed batch only.
    model = ir.from_onnx_text(text.replace("batch", "3"))
    given = feed(np.random.default_rng(0))
    feeds = [{**given, "bias": (given["bias"] > 0).astype(np.float32)}]
    expected = outputs_of(model, feeds)
    Fold().apply(model)
    InferShapes().apply(model)
    assert SplitMergedHeads().apply(model).changed > 0
    chosen = next(node for node in model.graph if node.op_type == "Where")
    assert str(chosen.outputs[0].shape) == "[3,2,sequence,sequence]"
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    assert softmax.inputs[0] is chosen.outputs[0]
    assert relative_difference(expected, outputs_of(model, feeds)) < 1e-6


SEQUENCE_FIRST = """
<ir_version: 11, opset_import: ["" : 23]>
first (float[sequence,batch,8] q, float[sequence,batch,8] k, float[sequence,batch,8] v)
=> (float[sequence,batch,8] y) {
  dim = Constant <value_ints = [4]> ()
  two = Constant <value_ints = [2]> ()
  length = Shape <start = 0, end = 1> (q)
  rows = Shape <start = 1, end = 2> (q)
  merged = Mul (rows, two)
  size = Concat <axis = 0> (length, merged, dim)
  q3 = Reshape (q, size)
  k3 = Reshape (k, size)
  v3 = Reshape (v, size)
  qt = Transpose <perm = [1, 0, 2]> (q3)
  kt = Transpose <perm = [1, 2, 0]> (k3)
  vt = Transpose <perm = [1, 0, 2]> (v3)
  scores = MatMul (qt, kt)
  p = Softmax <axis = -1> (scores)
  y3 = MatMul (p, vt)
  back = Transpose <perm = [1, 0, 2]> (y3)
  width = Constant <value_ints = [8]> ()
  whole = Concat <axis = 0> (length, rows, width)
  y = Reshape (back, whole)
}
"""


@pytest.mark.ort
def test_heads_merged_with_the_batch_behind_the_sequence() -> None:
    import onnx_ir as ir

    from tfc.optimizers.cleaning import Fold
    from tfc.optimizers.executor import outputs_of, relative_difference

    model = ir.from_onnx_text(SEQUENCE_FIRST)
    rng = np.random.default_rng(0)
    feeds = [{name: rng.standard_normal((5, 3, 8)).astype(np.float32) for name in "qkv"}]
    expected = outputs_of(model, feeds)
    Fold().apply(model)
    InferShapes().apply(model)
    assert SplitMergedHeads().apply(model).changed > 0
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    assert str(softmax.inputs[0].shape) == "[batch,2,sequence,sequence]"
    assert relative_difference(expected, outputs_of(model, feeds)) < 1e-6
