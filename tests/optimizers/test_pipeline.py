"""The pipeline: contract, ledger, names, and graphs of several exporters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from checkpoints import save_tiny_checkpoint

import tfc.optimizers.pipeline as pipeline
from tfc.errors import ContractNotReached, UsageError
from tfc.optimizers.graph import add_constant
from tfc.optimizers.passes import PassResult
from tfc.optimizers.stages import TARGETS, Selection

pytestmark = pytest.mark.ort

ONE_BLOCK = """g (float[batch,2,sequence,4] q, float[batch,2,sequence,4] k,
  float[batch,2,sequence,4] v) => (float[batch,2,sequence,4] y) {
  kt = Transpose<perm=[0,1,3,2]>(k)
  s = MatMul(q, kt)
  %s
  p = Softmax(z)
  y = MatMul(p, v)
}"""


def encoder_feeds() -> list[dict[str, np.ndarray]]:
    """Random ids; padding right, left and in holes."""
    rng = np.random.default_rng(0)
    mask = np.ones((3, 12), np.int64)
    mask[0, 5:] = 0
    mask[1, :4] = 0
    mask[2, 2::3] = 0
    ids = rng.integers(5, 1000, mask.shape)
    return [{"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}]


def exported(folder: Path, opset: int, attention: str) -> ir.Model:
    """A tiny BERT straight from torch's exporter, as a user may bring it."""
    import warnings

    import torch
    import transformers

    checkpoint = save_tiny_checkpoint(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        checkpoint, attn_implementation=attention
    ).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.model(input_ids, attention_mask, token_type_ids).logits

    example = torch.ones((2, 7), dtype=torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=160)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits().eval(),
            (example, example.clone(), example.clone()),  # one tensor thrice would be one input
            dynamo=True,
            opset_version=opset,
            input_names=["input_ids", "attention_mask", "token_type_ids"],
            output_names=["logits"],
            dynamic_shapes=(axes, axes, axes),
            verbose=False,
        )
    return program.model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("opset", [18, 20, 23])
def test_every_form_of_the_exporter_is_fused(tmp_path: Path, opset: int, attention: str) -> None:
    model = exported(tmp_path / "c", opset, attention)
    for target in TARGETS:
        graph, report = pipeline.optimize(model, target, encoder_feeds())
        assert report.summary() == "attention 2/2, add+LayerNorm 4/4"
        assert report.reverted == []
        assert [v.name for v in graph.graph.outputs] == ["logits"]
        ops = [node.op_type for node in graph.graph]
        assert ops.count("Softmax" if target == "tensorrt" else "Attention") == 2
        assert "GatherND" not in ops
        if target == "onnxruntime":
            assert ops.count("Sum") == ops.count("LayerNormalization") - 1 == 4
        elif target == "onnxruntime-cuda":
            assert ops.count("SkipLayerNormalization") == 4
            assert "Softmax" not in ops
        else:
            assert {node.domain for node in graph.graph} == {""}
            assert ops.count("Split") == 2


def test_a_missed_fusion_is_an_error_that_names_the_site(graphs) -> None:
    model = graphs.model(ONE_BLOCK % "z = Tanh(s)")
    feeds = [graphs.feed(model)]
    with pytest.raises(ContractNotReached) as caught:
        pipeline.optimize(model, "tensorrt", feeds)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(
        "the fusion contract does not hold: attention 0/1, add+LayerNorm 0/0 (nearest misses: "
    )
    assert "Tanh stands between the scores and the softmax" in str(caught.value)
    _, report = pipeline.optimize(model, "tensorrt", feeds, allow_missed=True)
    assert report.as_json()["fusions"]["attention"] == {"found": 0, "expected": 1}


def test_the_config_may_expect_more_than_the_graph_shows(graphs) -> None:
    model = graphs.model(ONE_BLOCK % "z = Identity(s)")
    with pytest.raises(ContractNotReached, match="attention 1/2"):
        pipeline.optimize(model, "tensorrt", [graphs.feed(model)], fusion_sites={"attention": 2})


@dataclass(frozen=True)
class Liar:
    """A pass that changes what the graph computes."""

    name: str = "speed up"
    stage: str = "clean"

    def apply(self, model: ir.Model) -> PassResult:
        node = next(n for n in model.graph if n.op_type == "MatMul")
        factor = add_constant(model, "factor", np.float32(1.001) * np.ones((), np.float32))
        scaled = ir.node("Mul", [node.outputs[0], factor])
        for use in list(node.outputs[0].uses()):
            use.node.replace_input_with(use.idx, scaled.outputs[0])
        model.graph.insert_after(node, [scaled])
        return PassResult(1)


@dataclass(frozen=True)
class Breaker:
    """A pass that leaves a graph that no runtime loads."""

    name: str = "break"
    stage: str = "clean"

    def apply(self, model: ir.Model) -> PassResult:
        node = next(n for n in model.graph if n.op_type == "Transpose")
        node.attributes["perm"] = ir.AttrInt64s("perm", [0, 0, 0, 0])
        return PassResult(1)


@pytest.mark.parametrize("culprit", [Liar(), Breaker()], ids=["wrong numbers", "invalid graph"])
def test_a_pass_that_breaks_the_graph_is_undone_and_named(graphs, culprit) -> None:
    model = graphs.model(ONE_BLOCK % "z = Identity(s)")
    feeds = [graphs.feed(model)]
    chosen = Selection(extra=(culprit,))
    graph, report = pipeline.optimize(model, "tensorrt", feeds, selection=chosen)
    assert report.reverted == [culprit.name]
    assert report.summary() == "attention 1/1, add+LayerNorm 0/0"
    assert graphs.ops(graph) == ["Transpose", "MatMul", "Softmax", "MatMul"]


def test_the_given_model_is_not_changed(graphs) -> None:
    model = graphs.model(ONE_BLOCK % "z = Identity(s)")
    before = str(model)
    pipeline.optimize(model, "onnxruntime", [graphs.feed(model)])
    assert str(model) == before


def test_an_unknown_target(graphs) -> None:
    model = graphs.model(ONE_BLOCK % "z = Identity(s)")
    with pytest.raises(UsageError, match="there is no target 'abacus'"):
        pipeline.optimize(model, "abacus", [])
