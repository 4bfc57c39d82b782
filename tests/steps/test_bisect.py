"""`tfc verify --bisect` names what was planted: pass, module and node, with a sub-graph of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

import tfc
from tfc.cli.verify import command
from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tfc.steps.bisection.report import Found
from tfc.steps.verification.report import VerifyResult

pytestmark = pytest.mark.ort

ENGINE = "onnxruntime-fp32"
OPTIMIZED = "optimized/onnxruntime/model.onnx"
INT64 = ir.DataType.INT64
# Wrong beyond 60 tokens; what passes are judged on has 48.
PASS = '''
import numpy as np
import onnx_ir as ir

class NearPositions:
    """Positions beyond 60 become 60."""

    name = "near positions"
    anchors = ("Gather",)
    stage = "lower"

    def match(self, node):
        near = any(v.name == "near" for v in node.inputs[1].producer().inputs) if (
            node.inputs[1].producer() is not None) else True
        table = node.inputs[0]
        return None if near or "position_embeddings" not in table.name else node

    def rewrite(self, model, node):
        most = ir.tensor(np.array(60), name="near")
        most = ir.Value(name="near", const_value=most, type=ir.TensorType(most.dtype),
                        shape=ir.Shape(()))
        model.graph.register_initializer(most)
        clip = ir.node("Min", [node.inputs[1], most], name="clip_positions")
        clip.outputs[0].dtype = node.inputs[1].dtype
        clip.outputs[0].shape = node.inputs[1].shape
        node.graph.insert_before(node, [clip])
        node.replace_input_with(1, clip.outputs[0])

PASSES = (NearPositions(),)
'''


def node_of(model: ir.Model, module: str, op_type: str) -> ir.Node:
    """The node of an operator in a module."""
    return next(
        node
        for node in model.graph
        if node.op_type == op_type and node.metadata_props.get("tfc.module", "").endswith(module)
    )


def plant(folder: Path, file: str, fault: Callable[[ir.Model], None]) -> tfc.Artifact:
    """Change a graph of the artifact, hash and all."""
    artifact = tfc.Artifact.open(folder)
    model = ir.load(artifact.file(file))
    fault(model)
    with artifact.change() as change:
        ir.save(model, change.path(file))
    return artifact


def altered_weight(model: ir.Model) -> None:
    weight = node_of(model, "layer.1.output.dense", "MatMul").inputs[1]
    array = weight.const_value.numpy().copy()
    array[:, 3] *= 1.5
    weight.const_value = ir.tensor(array, name=weight.name)


def wrong_epsilon(model: ir.Model) -> None:
    norm = node_of(model, "layer.0.output.LayerNorm", "LayerNormalization")
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-2)


def the_place(result: VerifyResult) -> Found:
    (bisection,) = result.bisections
    assert bisection.found is not None, bisection
    return bisection.found


def polygraphy(result: VerifyResult) -> subprocess.CompletedProcess[str]:
    """Run the printed command in the printed folder."""
    (bisection,) = result.bisections
    reproducer = bisection.reproducer
    assert reproducer is not None
    assert reproducer.shown
    program = Path(sys.executable).with_name("polygraphy")
    return subprocess.run(
        [program, *reproducer.command.split()[1:]],
        cwd=result.artifact.path / reproducer.folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_right_engine_has_no_place(tiny_artifact: Path) -> None:
    result = tfc.verify(tiny_artifact, bisect=True)
    (found,) = result.bisections
    assert found.outcome == "nothing found"
    assert [(stage.name, stage.fails) for stage in found.stages] == [
        ("export", False),
        ("optimize", False),
        ("engine", False),
    ]
    assert found.modules[-1].module == "classifier"
    assert not found.modules[-1].gap.beyond


def test_a_wrong_export_is_held_against_pytorchs_modules(tiny_artifact: Path) -> None:
    artifact = plant(tiny_artifact, "model.onnx", altered_weight)
    (found,) = tfc.verify(artifact, bisect=True).bisections
    assert found.outcome == "nothing found"
    assert "model.onnx was written again since" in found.notes[0]
    tfc.build_engine(artifact, backend="onnxruntime")
    place = the_place(tfc.verify(artifact, bisect=True))
    assert (place.stage, place.module) == ("export", "bert.encoder.layer.1.output.dense")
    assert place.nodes == ("node_MatMul_128", "node_linear_11")
    assert place.local is not None
    assert place.local.max_abs > 0.1


def test_a_changed_graph_is_told_from_a_wrong_pass(tiny_artifact: Path) -> None:
    artifact = plant(tiny_artifact, OPTIMIZED, altered_weight)
    tfc.build_engine(artifact, backend="onnxruntime")
    result = tfc.verify(artifact, bisect=True)
    assert result.failed == [ENGINE]
    place = the_place(result)
    assert (place.stage, place.step) == ("optimize", "optimize")
    assert place.module == "bert.encoder.layer.1.output.dense"
    assert (place.node, place.layer) == ("node_MatMul_128", 1)
    assert place.changed.startswith("the weight ")
    assert place.local is not None
    assert place.local.beyond
    assert "is not what the passes make" in result.bisections[0].notes[0]
    assert result.bisections[0].stages[1].from_module == "bert.encoder.layer.1.output.dense"
    report = json.loads((tiny_artifact / "reports/verify.json").read_text())["bisect"][ENGINE]
    assert report["first"]["node"] == "node_MatMul_128"
    done = polygraphy(result)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Difference exceeds tolerance" in done.stdout


def test_the_first_of_two_faults_is_named(tiny_artifact: Path) -> None:
    def both(model: ir.Model) -> None:
        altered_weight(model)
        wrong_epsilon(model)

    place = the_place(
        tfc.verify(plant(tiny_artifact, f"engines/{ENGINE}/model.onnx", both), bisect=True)
    )
    assert place.stage == "engine file"
    assert place.module == "bert.encoder.layer.0.output.LayerNorm"
    assert place.op_type == "LayerNormalization"
    assert place.changed.startswith("its epsilon was ")


def test_what_is_printed(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_artifact.parent)
    plant(Path("tiny"), f"engines/{ENGINE}/model.onnx", altered_weight)
    done = CliRunner().invoke(command, ["tiny", "--bisect", "--no-relations"])
    assert done.exit_code == 1, done.output
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    text = " ".join(done.stdout.split())
    assert "the engine's file, in the module bert.encoder.layer.1.output.dense (layer 1)" in text
    assert "MatMul node_MatMul_128: the weight val_141 has other values" in text
    assert f"cd tiny/reports/bisect/{ENGINE}" in lines
    assert any(line.startswith("polygraphy run subgraph.onnx --onnxrt ") for line in lines)
    again = CliRunner().invoke(command, ["tiny", "--bisect", "--no-relations", "--json"])
    report = json.loads(again.stdout)["bisect"][ENGINE]
    assert report["first"]["module"] == "bert.encoder.layer.1.output.dense"
    assert report["reproducer"]["shown"] is True


def test_a_pass_that_is_wrong_on_the_users_data_only(tiny_artifact: Path, tmp_path: Path) -> None:
    passes = tmp_path / "my_passes.py"
    passes.write_text(PASS, encoding="utf-8")
    data = tmp_path / "data.jsonl"
    rows = [{"text": "hello"}, {"text": "where is my parcel " * 20}]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    artifact = tfc.Artifact.open(tiny_artifact)
    built = tfc.build_engine(artifact, backend="onnxruntime", passes=[str(passes)])
    ledger = built.artifact.manifest.step("optimize:onnxruntime").result["passes"]
    assert [e["changed"] for e in ledger if e["name"] == "near positions"] == [1]
    result = tfc.verify(artifact, data=data, bisect=True)
    place = the_place(result)
    assert (place.stage, place.step) == ("optimize", "near positions")
    assert (place.node, place.op_type) == ("clip_positions", "Min")
    assert place.module == "bert.embeddings.position_embeddings"
    assert place.changed == "it is not in the graph before"
    assert result.bisections[0].inputs.startswith("row 2 of batch 1 of 1 of ")
    reproducer = result.bisections[0].reproducer
    assert reproducer is not None
    assert reproducer.shown


def mask_as_lengths(model: ir.Model) -> None:
    """The mask becomes the lengths of rows that are padded right."""
    old = next(
        v for node in model.graph for v in node.outputs if node.name == "attention_mask_bool"
    )
    mask = old.producer().inputs[0]
    axis = ir.Value(name="axis", const_value=ir.tensor(np.array([1])), type=ir.TensorType(INT64))
    model.graph.register_initializer(axis)
    length = ir.node("ReduceSum", [mask, axis], {"keepdims": 1}, name="lengths")
    zero = ir.node("Sub", [mask, mask])
    ones = ir.node("Add", [zero.outputs[0], axis])
    scalar = ir.node("Squeeze", [axis])
    places = ir.node("CumSum", [ones.outputs[0], scalar.outputs[0]])
    keep = ir.node("LessOrEqual", [places.outputs[0], length.outputs[0]], name="within_length")
    keep.outputs[0].dtype, keep.outputs[0].shape = ir.DataType.BOOL, old.shape
    made = [length, zero, ones, scalar, places, keep]
    model.graph.insert_before(old.producer(), made)
    ir.convenience.replace_all_uses_with(old, keep.outputs[0])
    model.graph.remove(old.producer(), safe=True)


def test_a_fault_that_only_a_relation_shows(tiny_artifact: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "hello"}\n{"text": "Where is my parcel?"}\n', encoding="utf-8")
    artifact = plant(tiny_artifact, f"engines/{ENGINE}/model.onnx", mask_as_lengths)
    result = tfc.verify(artifact, data=data, bisect=True)
    (found,) = result.verdicts
    assert found.reason.startswith("relation left padding at ")
    place = the_place(result)
    assert (place.stage, place.node) == ("engine file", "lengths")
    assert "of the relations that fail" in result.bisections[0].inputs


class FusingWrongly(OnnxRuntimeBackend):
    """A stand-in for a fault in a runtime's own fusions: MatMul+Add+Gelu with the bias lost.

    It fuses as runtimes do: only where nothing else reads what is in between.
    """

    def load(self, engine: Path, threads: int | None = None, streams: int = 1) -> Any:
        """Load a graph with the first such pattern of layer 1 fused."""
        model = ir.load(engine)
        for gelu in [n for n in model.graph if n.op_type == "Gelu"]:
            add = gelu.inputs[0].producer()
            if add is None or add.op_type != "Add" or add.inputs[0].producer() is None:
                continue
            hidden = [gelu.inputs[0], add.inputs[0]]
            if "layer.1." in gelu.metadata_props["tfc.module"] and not any(
                value.is_graph_output() for value in hidden
            ):
                gelu.replace_input_with(0, add.inputs[0])
        ir.save(model, engine.with_name("fused.onnx"))
        return super().load(engine.with_name("fused.onnx"), threads, streams)


def test_a_fault_that_hides_when_it_is_watched(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = FusingWrongly()
    monkeypatch.setattr("tfc.steps.bisection.engine.backend", lambda name: wrong)
    monkeypatch.setattr("tfc.runtime.engine.backend", lambda name: wrong)
    result = tfc.verify(tiny_artifact, bisect=True)
    place = the_place(result)
    assert (place.stage, place.told_by) == ("engine", "sub-graph")
    assert place.module == "bert.encoder.layer.1.intermediate.dense"
    assert place.nodes == ("node_MatMul_126", "node_linear_10", "node_gelu_1")
    (bisection,) = result.bisections
    assert "with its inner values as outputs the engine is right" in bisection.notes[0]
    assert bisection.reproducer is not None
    assert not bisection.reproducer.shown  # ONNX Runtime itself is right


RARE = 29145  # zebra
FFN = "bert.encoder.layer.0.intermediate.dense"


def overflow_of_a_rare_token(weights: dict[str, np.ndarray]) -> None:
    """One neuron of layer 0's feed-forward overflows in fp16 for one token, not for others."""
    weights["bert.embeddings.word_embeddings.weight"][RARE] = 100 * np.eye(64)[7]
    weights[f"{FFN}.weight"][0] = 11_900 * np.eye(64)[7]
    weights[f"{FFN}.bias"][0] = 0
    weights["bert.encoder.layer.0.output.dense.weight"][:, 0] *= 1e-4


@pytest.mark.rtx
def test_an_overflow_of_fp16_in_the_graph_of_a_plan_that_does_not_run_here(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    import tfc.steps.verification.verify as room

    original = room.reference_from_artifact

    def changed(*given: Any, **options: Any) -> Any:
        reference = original(*given, **options)
        parameters = dict(reference.module.model.named_parameters())
        with torch.no_grad():
            overflow_of_a_rare_token({n: p.numpy() for n, p in parameters.items()})
        return reference

    def fault(model: ir.Model) -> None:
        weights = {}
        values = {}
        for name in (FFN, "bert.encoder.layer.0.output.dense"):
            values[f"{name}.weight"] = node_of(model, name, "MatMul").inputs[1]
            weights[f"{name}.weight"] = values[f"{name}.weight"].const_value.numpy().T.copy()
        for name in ("bert.embeddings.word_embeddings.weight", f"{FFN}.bias"):
            values[name] = model.graph.initializers[name]
            weights[name] = values[name].const_value.numpy().copy()
        overflow_of_a_rare_token(weights)
        for name, value in values.items():
            turned = weights[name].T if name.endswith("dense.weight") else weights[name]
            value.const_value = ir.tensor(np.ascontiguousarray(turned), name=value.name)

    monkeypatch.setattr(room, "reference_from_artifact", changed)
    artifact = plant(tiny_artifact, "model.onnx", fault)
    tfc.build_engine(artifact, backend="tensorrt-rtx", precision="fp16")
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "hello"}\n{"text": "a zebra"}\n', encoding="utf-8")
    result = tfc.verify(artifact, engines=["tensorrt-rtx-fp16"], data=data, bisect=True)
    place = the_place(result)
    assert place.stage == "precision"
    assert (place.module, place.layer) == (FFN, 0)
    assert place.op_type == "MatMul"
    assert place.local is not None
    assert place.local.max_abs == float("inf")
    assert not result.bisections[0].stages[-1].ran
    assert polygraphy(result).returncode == 1


def wrong_past(model: ir.Model) -> None:
    """The values of layer 1 that are in the cache count a tenth more: a prompt has none."""
    past = next(v for v in model.graph.inputs if v.name == "past_key_values.1.value")
    factor = ir.tensor(np.array(1.1, np.float32), name="factor")
    more = ir.Value(name="factor", const_value=factor, type=ir.TensorType(factor.dtype))
    model.graph.register_initializer(more)
    product = ir.node("Mul", [past, more], name="wrong_past")
    product.outputs[0].dtype, product.outputs[0].shape = past.dtype, past.shape
    for use in list(past.uses()):
        if use.node is not product:
            use.node.replace_input_with(use.idx, product.outputs[0])
    model.graph.insert_before(model.graph[0], [product])


def wrong_encoder(model: ir.Model) -> None:
    weight = node_of(model, "encoder.layers.0.fc1", "MatMul").inputs[1]
    array = weight.const_value.numpy().copy()
    array[:, 3] *= 1.5
    weight.const_value = ir.tensor(array, name=weight.name)


def no_padding(model: ir.Model) -> None:
    """The mask of the encoder keeps everything."""
    keep = next(node for node in model.graph if node.name == "attention_mask_bool").outputs[0]
    always = ir.node("Equal", [keep, keep], name="always")
    always.outputs[0].dtype, always.outputs[0].shape = keep.dtype, keep.shape
    for use in list(keep.uses()):
        if use.node is not always:
            use.node.replace_input_with(use.idx, always.outputs[0])
    model.graph.insert_after(keep.producer(), [always])


GENERATING = {
    "a token with a cache": ("gpt2", "decoder", wrong_past, "wrong_past", "the decoder on token "),
    "the encoder": ("bart", "encoder", wrong_encoder, "node_MatMul_82", "the encoder on row "),
    "padding": ("bart", "encoder", no_padding, "always", "the encoder on row "),
}


@pytest.mark.parametrize("case", GENERATING)
def test_the_graph_and_the_call_of_a_model_that_generates(
    generator: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    family, graph, fault, node, call = GENERATING[case]
    folder = Path(shutil.copytree(generator(family) / "artifact", tmp_path / "a"))
    artifact = plant(folder, f"engines/{ENGINE}/{graph}.onnx", fault)
    result = tfc.verify(artifact, bisect=True)
    place = the_place(result)
    assert (place.stage, place.node) == ("engine file", node)
    (bisection,) = result.bisections
    assert bisection.graph == graph
    assert bisection.inputs.startswith(call)
    assert bisection.inputs.endswith(", with its padding") == (case == "padding")
    assert [stage.fails for stage in bisection.stages] == [False, False, True, True]
    assert bisection.reproducer is not None
    assert bisection.reproducer.shown
