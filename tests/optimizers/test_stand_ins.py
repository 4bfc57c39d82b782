"""Weights that stay in their file while passes are judged on stand-ins for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tfc.optimizers.computed import Computed, computed
from tfc.optimizers.executor import outputs_of, relative_difference
from tfc.optimizers.graph import add_constant, add_weight, constant
from tfc.optimizers.passes import PassResult
from tfc.optimizers.pipeline import optimize
from tfc.optimizers.probes import ledger_feeds
from tfc.optimizers.stages import Selection
from tfc.optimizers.stand_ins import stand_ins_of, with_real_weights, with_stand_ins
from tfc.steps.optimize_file import optimize_file

pytestmark = pytest.mark.ort

# Matrices of this width have 1 MiB in fp32, and are large enough to get a stand-in.
WIDE = 512
MATRIX = f"float[{WIDE},{WIDE}]"
BLOCK = f"""g (float[batch,sequence,{WIDE}] x, {MATRIX} wq, float[{WIDE}] bq, {MATRIX} wk,
  {MATRIX} wv, {MATRIX} wo) => (float[batch,sequence,{WIDE}] y) {{
  shape = Constant<value_ints=[0,0,8,64]>()
  q0 = MatMul(x, wq)
  q1 = Add(q0, bq)
  q2 = Reshape(q1, shape)
  q = Transpose<perm=[0,2,1,3]>(q2)
  turned = Transpose<perm=[1,0]>(wk)
  k0 = MatMul(x, turned)
  k1 = Reshape(k0, shape)
  k = Transpose<perm=[0,2,3,1]>(k1)
  v0 = MatMul(x, wv)
  v1 = Reshape(v0, shape)
  v = Transpose<perm=[0,2,1,3]>(v1)
  s = MatMul(q, k)
  eight = Constant<value_float=8.0>()
  d = Div(s, eight)
  p = Softmax(d)
  o = MatMul(p, v)
  o1 = Transpose<perm=[0,2,1,3]>(o)
  flat = Constant<value_ints=[0,0,{WIDE}]>()
  o2 = Reshape(o1, flat)
  y = MatMul(o2, wo)
}}"""


# The turned weight of k; and q, scaled, k and v side by side.
DESCRIBED = {"onnxruntime": ["turned"], "tensorrt": ["node_1.packed.weight"]}


@pytest.fixture
def block(graphs, tmp_path: Path) -> Path:
    """The block with its weights in a file beside it."""
    small = {name: 0.05 * graphs.normal(WIDE, WIDE) for name in ("wq", "wk", "wv", "wo")}
    model = graphs.model(BLOCK, **small, bq=(WIDE,))
    ir.save(model, tmp_path / "block.onnx", external_data="block.onnx.data")
    return tmp_path / "block.onnx"


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weights that were read from their file so far."""
    read: list[str] = []
    load = ir.ExternalTensor.numpy

    def numpy(self: ir.ExternalTensor) -> np.ndarray:
        if self.size > WIDE:
            read.append(str(self.name))
        return load(self)

    monkeypatch.setattr(ir.ExternalTensor, "numpy", numpy)
    return read


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_graph_is_rewritten_without_its_weights(
    block: Path, unread: list[str], tmp_path: Path, target: str
) -> None:
    model = with_stand_ins(ir.load(block), limit=1)
    assert sorted(str(each.name) for each in stand_ins_of(model)) == ["wk", "wo", "wq", "wv"]
    graph, report = optimize(model, target, ledger_feeds(model))
    assert unread == []
    assert report.summary() == "attention 1/1, add+LayerNorm 0/0"
    assert report.as_json()["stand_in_bytes"] == 4 << 20
    assert report.reverted == []
    described = [
        n for n, v in graph.graph.initializers.items() if isinstance(v.const_value, Computed)
    ]
    assert described == DESCRIBED[target]
    ir.save(graph, tmp_path / "out.onnx", external_data="out.onnx.data")
    feed = {"x": np.random.default_rng(0).normal(size=(2, 5, WIDE)).astype(np.float32)}
    expected, got = (outputs_of(ir.load(p), [feed]) for p in (block, tmp_path / "out.onnx"))
    assert relative_difference(expected, got) < 2e-6


def test_a_file_is_optimized_and_keeps_its_weights_beside_it(
    block: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tfc.onnx_files

    monkeypatch.setattr(tfc.onnx_files, "EXTERNAL_FROM_BYTES", 0)
    report = optimize_file(block, tmp_path / "new/out.onnx", "tensorrt", stand_ins_from=1)
    assert report.stand_ins == 4 << 20
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["out.onnx", "out.onnx.data"]
    feed = {"x": np.ones((1, 3, WIDE), np.float32)}
    out = ir.load(tmp_path / "new/out.onnx")
    assert relative_difference(outputs_of(ir.load(block), [feed]), outputs_of(out, [feed])) < 2e-6


def test_in_its_folder_the_result_reads_the_same_weights(block: Path) -> None:
    output = block.with_name("out.onnx")
    optimize_file(block, output, "tensorrt", stand_ins_from=1)
    files = {v.name: v.const_value.location for v in ir.load(output).graph.initializers.values()
             if isinstance(v.const_value, ir.ExternalTensor)}  # fmt: skip
    assert files == {
        "wo": "block.onnx.data",
        "node_1.packed.weight": "out.onnx.data",
        "node_1.packed.bias": "out.onnx.data",
    }
    # q, scaled, k and v in fp32, and their bias; wo is not among them.
    assert output.with_name("out.onnx.data").stat().st_size < 3.1 * (1 << 20)
    feed = {"x": np.ones((1, 3, WIDE), np.float32)}
    expected, got = (outputs_of(ir.load(path), [feed]) for path in (block, output))
    assert relative_difference(expected, got) < 2e-6


def test_below_the_limit_the_weights_are_themselves(block: Path) -> None:
    model = ir.load(block)
    assert with_stand_ins(model) is model


def test_all_paddings_are_in_one_short_batch(graphs, tmp_path: Path) -> None:
    text = f"""g (float[batch,sequence,{WIDE}] x, int64[batch,sequence] attention_mask, {MATRIX} w)
      => (float[batch,sequence,{WIDE}] y) {{
        h = MatMul(x, w)
        keep = Cast<to=1>(attention_mask)
        axis = Constant<value_ints=[2]>()
        wide = Unsqueeze(keep, axis)
        y = Mul(h, wide)
    }}"""
    model = graphs.model(text, w=(WIDE, WIDE))
    assert len(ledger_feeds(model)) == 5
    ir.save(model, tmp_path / "m.onnx", external_data="m.onnx.data")
    batch, row = ledger_feeds(with_stand_ins(ir.load(tmp_path / "m.onnx"), limit=1))
    assert batch["attention_mask"].tolist() == [
        [1, 1, 0, 1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert row["attention_mask"].shape == (1, 8)


class Shrink:
    """A pass that writes what it saw in a weight into the graph."""

    name = "shrink"
    stage = "clean"

    def apply(self, model: ir.Model) -> PassResult:
        node = next(n for n in model.graph if n.op_type == "MatMul")
        array = constant(node.inputs[1])
        largest = add_constant(model, "largest", np.abs(array).max())
        scaled = ir.node("Mul", [node.inputs[0], largest])
        model.graph.insert_before(node, [scaled])
        node.replace_input_with(0, ir.node("Div", [scaled.outputs[0], largest]).outputs[0])
        model.graph.insert_before(node, [node.inputs[0].producer()])
        return PassResult(1)


def test_a_pass_that_looks_at_a_stand_in_is_undone(block: Path) -> None:
    model = with_stand_ins(ir.load(block), limit=1)
    chosen = Selection(extra=(Shrink(),))
    graph, report = optimize(model, "tensorrt", ledger_feeds(model), selection=chosen)
    assert report.reverted == ["shrink"]
    (entry,) = (entry for entry in report.entries if entry.reverted)
    assert entry.error.startswith("it computed 'largest' after looking at weights that have")
    assert "largest" not in graph.graph.initializers


def test_what_is_computed_is_the_same_at_once_and_later(graphs, block: Path) -> None:
    source = ir.load(block).graph.initializers["wq"].const_value
    model = with_stand_ins(ir.load(block), limit=1)
    stand_in = model.graph.initializers["wq"].const_value
    places = ir.tensor(np.arange(WIDE)[::-1].copy())

    def chain(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        scaled = computed("Mul", [tensor], factor=0.3)
        turned = computed("Transpose", [scaled], perm=[1, 0])
        return computed("Concat", [computed("Gather", [turned, places], axis=-1), tensor], axis=0)

    add_weight(model, "later", chain(stand_in))
    later = model.graph.initializers["later"].const_value
    assert isinstance(later, Computed)
    assert not np.array_equal(later.numpy(), chain(source).numpy())
    with_real_weights(model)
    now, later = chain(source), model.graph.initializers["later"].const_value
    assert not isinstance(now, Computed)
    assert isinstance(later, Computed)
    assert later.shape == now.shape
    np.testing.assert_array_equal(later.numpy(), now.numpy())


def test_half_precision_weights_get_them_too(graphs, tmp_path: Path) -> None:
    text = f"""g (float16[batch,1024] x, float16[1024,{WIDE}] w) => (float16[batch,{WIDE}] y) {{
        h = MatMul(x, w)
        y = Identity(h)
    }}"""
    model = graphs.model(text, w=graphs.normal(1024, WIDE).astype(np.float16))
    ir.save(model, tmp_path / "half.onnx", external_data="half.onnx.data")
    model = with_stand_ins(ir.load(tmp_path / "half.onnx"), limit=1)
    (stand_in,) = stand_ins_of(model)
    np.testing.assert_array_equal(stand_in.in_fp32().numpy(), stand_in.numpy().astype(np.float32))
    feed = {"x": graphs.normal(2, 1024).astype(np.float16)}
    (found,) = outputs_of(model, [feed])
    expected = feed["x"].astype(np.float32) @ stand_in.in_fp32().numpy()
    np.testing.assert_allclose(found["y"], expected, atol=1e-2)
