"""Models made to leave what fp16 holds: naive conversion breaks them, ours keeps a few nodes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import tfc
from tfc.build_cache import BuildCache
from tfc.errors import ContractNotReached
from tfc.onnx_files import save_onnx
from tfc.optimizers.attention_products import all_attention_products
from tfc.optimizers.executor import outputs_of
from tfc.optimizers.graph import constant
from tfc.optimizers.precision import repair
from tfc.optimizers.precision.half import half_from_fp32
from tfc.optimizers.precision.intermediate import values_of
from tfc.optimizers.precision.ranges import HALF_LIMIT, overflowing
from tfc.steps.optimize import optimize, optimized_file
from tfc.steps.precision import convert
from tfc.steps.precision_notes import pin_notes
from tfc.steps.probes import probe_feeds

pytestmark = pytest.mark.ort
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)
SOURCE = optimized_file("tensorrt", "model")
LAYER = "bert.encoder.layer.0"


@pytest.fixture
def artifact(tiny_artifact: Path) -> tfc.Artifact:
    opened = tfc.Artifact.open(tiny_artifact)
    optimize(opened, "tensorrt")
    return opened


def spoil(artifact: tfc.Artifact, changes: dict[tuple[str, str], Any]) -> ir.Model:
    """Change the constant that a node of an operator and module reads, in the optimized graph."""
    model = ir.load(artifact.file(SOURCE))
    for (op_type, module), change in changes.items():
        node = next(
            n
            for n in model.graph
            if n.op_type == op_type and n.metadata_props.get("tfc.module") == f"{LAYER}.{module}"
        )
        value = node.inputs[1]
        array = change(np.asarray(constant(value)).copy()).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
    with artifact.change() as change_of:
        save_onnx(model, change_of.path(SOURCE))
    return model


def converted(artifact: tfc.Artifact, cache: BuildCache | None = None) -> Any:
    """The record of the fp16 conversion."""
    name = convert(artifact, "tensorrt", "model", "fp16", weights_only=False, cache=cache)
    return artifact.manifest.step(f"precision:{name}")


def test_ffn_activations_beyond_the_range(artifact: tfc.Artifact) -> None:
    model = spoil(artifact, {("MatMul", "intermediate.dense"): lambda w: w * 3e4})
    naive, _ = half_from_fp32(model)
    outputs = outputs_of(naive, probe_feeds(artifact, "model"))
    assert not all(np.isfinite(found["logits"]).all() for found in outputs)
    step = converted(artifact)
    assert step.result["gate"]["error"] <= step.result["gate"]["allowed"]
    assert f"{LAYER}.intermediate.dense" in step.result["overflows_in"]
    assert len(step.result["kept"]) <= 8
    (note,) = pin_notes(step)
    assert note.startswith(f"kept in fp32 because fp16 overflows: {LAYER}.intermediate.dense, ")
    assert note.endswith(" % of the FLOPs on tokens")


def test_inputs_of_a_norm_beyond_the_range(artifact: tfc.Artifact) -> None:
    model = spoil(artifact, {("MatMul", "attention.output.dense"): lambda w: w * 1e6})
    naive, _ = half_from_fp32(model)
    outputs = outputs_of(naive, probe_feeds(artifact, "model"))
    assert not all(np.isfinite(found["logits"]).all() for found in outputs)
    step = converted(artifact)
    assert step.result["gate"]["error"] <= step.result["gate"]["allowed"]
    assert f"{LAYER}.attention.output.LayerNorm" in step.result["overflows_in"]
    assert len(step.result["kept"]) <= 8


def test_what_a_norm_takes_away_is_found_by_measuring(artifact: tfc.Artifact) -> None:
    """A mean of 3000 under the norm: no value overflows, and the range analysis finds nothing."""
    spoil(artifact, {("Add", "output.dense"): lambda b: b + 3000})
    step = converted(artifact)
    assert step.result["overflows_in"] == []
    pins = step.result["pins"]
    assert {pin["module"] for pin in pins} == {f"{LAYER}.output.LayerNorm"}
    assert step.result["kept"] == ["node_linear_5", "add_2", "norm_2"]
    assert step.result["rounds"] == 3
    assert step.result["fp32_share"] == 0
    (note,) = pin_notes(step)
    assert note == (
        f"kept in fp32 after comparing with the fp32 graph: {LAYER}.output.LayerNorm "
        f"({pins[0]['why']}); in fp32: 0 % of the FLOPs on tokens"
    )


def test_another_checkpoint_begins_with_what_this_one_needed(
    artifact: tfc.Artifact, tmp_path: Path
) -> None:
    """Same graph, other weights: one round instead of three, and measured on these weights."""
    cache = BuildCache(tmp_path / "cache", 10**9)
    spoil(artifact, {("Add", "output.dense"): lambda b: b + 3000})
    first = converted(artifact, cache)
    spoil(artifact, {("MatMul", "intermediate.dense"): lambda w: w * 1.5})
    second = converted(artifact, cache)
    assert (first.result["rounds"], second.result["rounds"]) == (3, 1)
    assert second.result["pins_tried_first"] == len(first.result["pins"])
    assert second.result["pins"] == first.result["pins"]
    assert first.result["gate"] != second.result["gate"]
    (plan,) = (tmp_path / "cache" / "plans").iterdir()
    plan.write_text('[{"value": "no such value"}, 3]')
    spoil(artifact, {("Add", "output.dense"): lambda b: b + 50})
    assert converted(artifact, cache).result["pins_tried_first"] == 0


def test_a_gate_that_is_not_reached(
    artifact: tfc.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "MAX_ROUNDS", 1)
    spoil(artifact, {("Add", "output.dense"): lambda b: b + 3000})
    with pytest.raises(ContractNotReached) as caught:
        converted(artifact)
    assert caught.value.exit_code == 3
    assert caught.value.what.startswith("the fp16 graph's logits is off by ")
    assert "rounding its matrix products to fp16 gives " in caught.value.what
    assert caught.value.fix == "Build in fp32: leave --fp16 out, or try --bf16"
    assert "tensorrt.fp16" not in str(list(artifact.manifest.files))


def larger_queries_and_keys(weight: np.ndarray) -> np.ndarray:
    """Of the packed projection `[hidden, q k v]`, the first two thirds times 600."""
    factors = np.repeat([600, 600, 1], weight.shape[1] // 3)
    return weight * factors


def test_attention_scores_beyond_the_range(artifact: tfc.Artifact) -> None:
    """Queries and keys fit, and their products do not."""
    model = spoil(artifact, {("MatMul", "attention.self.query"): larger_queries_and_keys})
    block, module = all_attention_products(model)[0], f"{LAYER}.attention.self"
    name = str(block.scores.outputs[0].name)
    feeds = probe_feeds(artifact, "model", exact=False)
    factors = [str(value.name) for value in block.scores.inputs if value is not None]
    query, key = (values_of(model, factors, feeds)[0][factor] for factor in factors)
    with np.errstate(over="ignore"):
        naive = (query @ key).astype(np.float16)
    assert max(np.abs(query).max(), np.abs(key).max()) < HALF_LIMIT
    assert np.isinf(naive).any()
    assert list(overflowing(model, feeds).items()) == [(name, module)]
    step = converted(artifact)
    assert step.result["overflows_in"] == [module]
    kept = [n for n in model.graph if n.name in step.result["kept"]]
    assert [n.op_type for n in kept] == [
        "MatMul", "Add", "Reshape", "Transpose", "Split", "Transpose", "MatMul", "MatMul",
    ]  # fmt: skip
    assert all(str(n.metadata_props["tfc.module"]).startswith(module) for n in kept)
    assert step.result["gate"]["error"] <= step.result["gate"]["allowed"]
    # Scores as large as that are lost in queries and keys of 11 bits as well. Of two layers the
    # second computes one position only, so this is half of all there is.
    assert step.result["fp32_share"] == pytest.approx(0.497, abs=1e-3)


@needs_rtx
@pytest.mark.rtx
def test_an_attention_in_fp32_has_no_fused_kernel_to_wait_for(artifact: tfc.Artifact) -> None:
    spoil(artifact, {("MatMul", "attention.self.query"): larger_queries_and_keys})
    built = tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx")
    assert built.engine.audit["wanted"]["fused_attention"] == 1
    assert built.engine.audit["fused_attention"] == 1
    assert built.notes[0] == f"kept in fp32 because fp16 overflows: {LAYER}.attention.self"
    assert built.notes[1].startswith("kept in fp32 after comparing with the fp32 graph: ")
