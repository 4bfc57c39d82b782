"""Graphs that generate say, token by token, what the plain model says about the whole sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from generators import VOCABULARY, tiny_generator

from tfc.errors import BadCheckpoint, CheckFailed
from tfc.exporter.generation import graphs_from_model
from tfc.exporter.generation.parity import check_generation, scenarios_of
from tfc.exporter.to_onnx import BATCH, Axis, GraphInput, onnx_from_module, signature_of

pytestmark = pytest.mark.ort


def shapes_of(graph: ir.Model) -> dict[str, list[int | str]]:
    signature = signature_of(graph)
    return {spec.name: spec.shape for spec in [*signature.inputs, *signature.outputs]}


def bytes_of(graphs: dict[str, ir.Model]) -> dict[str, bytes]:
    protos = {name: ir.to_proto(graph) for name, graph in graphs.items()}
    for proto in protos.values():
        onnx.checker.check_model(proto, full_check=True)
    return {name: proto.SerializeToString(deterministic=True) for name, proto in protos.items()}


@functools.cache
def exported(family: str) -> tuple[Any, dict[str, bytes]]:
    """A model and its graphs; what changes them changes a copy."""
    model = tiny_generator(family)
    return model, bytes_of(graphs_from_model(model))


def graphs_of(family: str) -> dict[str, ir.Model]:
    graphs = exported(family)[1]
    return {name: ir.from_proto(onnx.load_from_string(graph)) for name, graph in graphs.items()}


def test_one_graph_for_prompt_and_steps() -> None:
    graphs = graphs_of("llama")
    assert list(graphs) == ["decoder"]
    past: list[int | str] = ["batch", 2, "past", 8]
    present: list[int | str] = ["batch", 2, "total", 8]
    assert shapes_of(graphs["decoder"]) == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "total"],
        "past_key_values.0.key": past,
        "past_key_values.0.value": past,
        "past_key_values.1.key": past,
        "past_key_values.1.value": past,
        "logits": ["batch", VOCABULARY],
        "present_key_values.0.key": present,
        "present_key_values.0.value": present,
        "present_key_values.1.key": present,
        "present_key_values.1.value": present,
    }


def test_cross_attention_is_projected_by_the_encoder() -> None:
    graphs = graphs_of("bart")
    cross: list[int | str] = ["batch", 2, "encoder_sequence", 16]
    encoder, decoder = shapes_of(graphs["encoder"]), shapes_of(graphs["decoder"])
    names = [f"cross_key_values.{i}.{part}" for i in (0, 1) for part in ("key", "value")]
    source: list[int | str] = ["batch", "encoder_sequence"]
    assert encoder == {"input_ids": source, "attention_mask": source, **dict.fromkeys(names, cross)}
    assert {name: decoder[name] for name in names} == dict.fromkeys(names, cross)
    assert decoder["encoder_attention_mask"] == source
    assert decoder["past_key_values.1.key"] == ["batch", 2, "past", 16]
    assert decoder["present_key_values.1.key"] == ["batch", 2, "total", 16]
    assert decoder["logits"] == ["batch", VOCABULARY]
    # Nothing of the decoder but the two projections of each layer is in the encoder's graph.
    modules = {node.metadata_props["tfc.module"] for node in graphs["encoder"].graph}
    assert {m for m in modules if m.startswith("model.decoder")} == {
        f"model.decoder.layers.{i}.encoder_attn{part}"
        for i in (0, 1)
        for part in ("", ".k_proj", ".v_proj")
    }
    in_decoder = {node.metadata_props["tfc.module"] for node in graphs["decoder"].graph}
    assert not {m for m in in_decoder if m.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))}


def test_a_recording_has_as_many_frames_as_the_config_says() -> None:
    graphs = graphs_of("whisper")
    assert shapes_of(graphs["encoder"])["input_features"] == ["batch", 8, 40]
    assert shapes_of(graphs["encoder"])["cross_key_values.0.key"] == ["batch", 2, 20, 16]
    assert "encoder_attention_mask" not in shapes_of(graphs["decoder"])


def test_nodes_know_their_module() -> None:
    modules = {node.metadata_props["tfc.module"] for node in graphs_of("llama")["decoder"].graph}
    assert {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"} <= modules


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_the_same_export_gives_the_same_bytes(family: str) -> None:
    assert bytes_of(graphs_from_model(tiny_generator(family))) == exported(family)[1]


def swap(graph: ir.Model, one: str, other: str) -> None:
    first, second = graph.graph.initializers[one], graph.graph.initializers[other]
    first.const_value, second.const_value = second.const_value, first.const_value


def swapped_biases(graphs: dict[str, ir.Model]) -> None:
    name = "model.decoder.layers.{}.fc1.bias"
    swap(graphs["decoder"], name.format(0), name.format(1))


def swapped_cross_values(graphs: dict[str, ir.Model]) -> None:
    name = "model.decoder.layers.{}.encoder_attn.v_proj.bias"
    swap(graphs["encoder"], name.format(0), name.format(1))


def damaged_last_position(graphs: dict[str, ir.Model]) -> None:
    """Only the last token of the longest sequence that the model takes can show it."""
    table = graphs["decoder"].graph.initializers["model.decoder.embed_positions.weight"]
    assert table.const_value is not None
    values = table.const_value.numpy().copy()
    values[-1, 0] += 1
    table.const_value = ir.tensor(values, name=table.name)


def damaged_second_step(graphs: dict[str, ir.Model]) -> None:
    """The keys of the second layer are given back as those of the first."""
    outputs = graphs["decoder"].graph.outputs
    one, other = (str(value.name) for value in (outputs[1], outputs[3]))
    outputs[1].name, outputs[3].name = "swapped", one
    outputs[1].name = other


@pytest.mark.parametrize(
    "damage", [swapped_biases, swapped_cross_values, damaged_last_position, damaged_second_step]
)
def test_a_wrong_graph_is_caught(damage: Callable[[dict[str, ir.Model]], None]) -> None:
    graphs = graphs_of("bart")
    damage(graphs)
    with pytest.raises(CheckFailed, match="the exported graph differs from the checkpoint by"):
        check_generation(exported("bart")[0], bytes_of(graphs), where="bart")


def test_a_graph_that_onnx_runtime_refuses() -> None:
    with pytest.raises(CheckFailed, match="ONNX Runtime refuses the exported graph"):
        check_generation(exported("llama")[0], {"decoder": b"no graph"}, where="llama")


def test_an_axis_that_the_exporter_fixes_is_refused() -> None:
    """`int` of a length makes it a constant, and the exporter says nothing."""
    import torch

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(int(x.shape[1]))

    axes = {0: BATCH, 1: Axis("sequence")}
    with pytest.raises(BadCheckpoint) as caught:
        onnx_from_module(Fixed(), [GraphInput("x", torch.ones(2, 5), axes)], ["y"])
    assert caught.value.what == "torch.onnx cannot export Fixed: sequence of x becomes 5"


def test_scenarios_cover_the_edges() -> None:
    scenarios = scenarios_of(48)
    assert {len(s.paddings) for s in scenarios} == {1, 2, 3}
    assert {s.calls[0] for s in scenarios} >= {1, 46}
    assert any(max(s.calls[1:]) > 1 for s in scenarios)
    assert all(s.calls[0] > max(s.paddings) for s in scenarios)


def test_a_model_without_keys_and_values_is_refused() -> None:
    model = tiny_generator("llama")
    original = model.forward

    def without_cache(**inputs: Any) -> Any:
        output = original(**inputs)
        output.past_key_values = None
        return output

    model.forward = without_cache
    with pytest.raises(BadCheckpoint) as caught:
        graphs_from_model(model)
    assert caught.value.what == (
        "layer 0 of LlamaForCausalLM keeps no keys and values of [batch, heads, length, head_dim]: "
        "it has no such cache"
    )
