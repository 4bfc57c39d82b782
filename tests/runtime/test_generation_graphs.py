"""The decoder over an engine: names, types and shapes of what it hands to the graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch_decoders import (
    END,
    HEADS,
    HIDDEN,
    CausalDecoder,
    Seq2SeqDecoder,
    base_config,
    prompts,
    reference,
)

from tfc.errors import BadArtifact
from tfc.manifest import Signature, TensorSpec
from tfc.runtime.generation import GraphDecoder, encoded, generate, settings_from_config
from tfc.runtime.generation import start_tokens as started

HEAD_DIM = HIDDEN // HEADS
LAYERS = 2
PAST_NAMES = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]


def keys(prefix: str, names: list[str], length: str, heads: int) -> list[TensorSpec]:
    return [TensorSpec(prefix + n, "float32", ["batch", heads, length, HEAD_DIM]) for n in names]


def signature(heads: int, inputs: list[TensorSpec], dtype: str = "int64") -> Signature:
    return Signature(
        [
            TensorSpec("input_ids", dtype, ["batch", "sequence"]),
            *inputs,
            *keys("past_key_values.", PAST_NAMES, "past", heads),
        ],
        [
            TensorSpec("logits", "float32", ["batch", 48]),
            *keys("present_key_values.", PAST_NAMES, "total", heads),
        ],
    )


CAUSAL = signature(1, [TensorSpec("attention_mask", "int32", ["batch", "total"])], "int32")
CROSS = keys("cross_key_values.", PAST_NAMES, "source", HEADS)
ENCODER_MASK = TensorSpec("encoder_attention_mask", "int64", ["batch", "source"])
DECODER = signature(HEADS, [ENCODER_MASK, *CROSS])
ENCODER = Signature(
    [
        TensorSpec("input_ids", "int64", ["batch", "source"]),
        TensorSpec("attention_mask", "int64", ["batch", "source"]),
    ],
    CROSS,
)


class Graph:
    """A graph of the signature; checks what it is given as an engine would."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.calls: list[dict[str, Any]] = []

    def run(self, inputs: Any) -> dict[str, Any]:
        assert set(inputs) == {spec.name for spec in self.signature.inputs}
        axes: dict[Any, int] = {}
        for spec in self.signature.inputs:
            array = inputs[spec.name]
            assert array.dtype == spec.dtype
            assert array.ndim == len(spec.shape)
            for axis, size in zip(spec.shape, array.shape, strict=True):
                assert axes.setdefault(axis, size if isinstance(axis, str) else axis) == size
        if "total" in axes:
            assert axes["total"] == axes["past"] + axes["sequence"]
        self.calls.append(dict(inputs))
        return self.outputs(inputs)

    def outputs(self, inputs: Any) -> dict[str, Any]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def presents(cache: Any) -> dict[str, Any]:
    names = [f"present_key_values.{name}" for name in PAST_NAMES]
    return dict(zip(names, cache, strict=True))


def pasts(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs[f"past_key_values.{name}"] for name in PAST_NAMES)


class LlamaGraph(Graph):
    def outputs(self, inputs: Any) -> dict[str, Any]:
        ids, mask = (inputs[n].astype(np.int64) for n in ("input_ids", "attention_mask"))
        logits, cache = CausalDecoder("llama").step(ids, mask, pasts(inputs))
        return {"logits": logits, **presents(cache)}


class BartEncoder(Graph):
    """Gives its hidden states, cut into heads, as the keys and values of every layer."""

    def outputs(self, inputs: Any) -> dict[str, Any]:
        hidden, _ = Seq2SeqDecoder("bart", inputs["input_ids"], inputs["attention_mask"]).source
        split = hidden.reshape(*hidden.shape[:2], HEADS, HEAD_DIM).transpose(0, 2, 1, 3)
        return {"last_hidden_state": hidden, **{spec.name: split for spec in CROSS}}


class BartGraph(Graph):
    def outputs(self, inputs: Any) -> dict[str, Any]:
        split, mask = inputs["cross_key_values.0.key"], inputs["encoder_attention_mask"]
        hidden = split.transpose(0, 2, 1, 3).reshape(*mask.shape, HIDDEN)
        model = Seq2SeqDecoder("bart", np.full((1, 1), END), np.ones((1, 1), np.int64))
        cache = (np.ascontiguousarray(hidden), mask, *pasts(inputs))
        logits, cache = model.step(inputs["input_ids"], np.ones(0), cache)
        return {"logits": logits.astype(np.float32), **presents(cache[2:])}


SETTINGS: list[dict[str, Any]] = [
    {},
    {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": [2, 5, 11]},
]


@pytest.mark.parametrize("asked", SETTINGS)
def test_a_decoder_only_graph(asked: dict[str, Any]) -> None:
    asked = {"max_new_tokens": 8, **asked}
    tokens, mask = prompts("llama", 0, [5, 3, 7])
    settings = settings_from_config({**base_config("llama"), **asked})
    graph = LlamaGraph(CAUSAL)
    found = generate(GraphDecoder(graph, CAUSAL), tokens, settings, attention_mask=mask)
    np.testing.assert_array_equal(found, reference("llama", tokens, mask, **asked))
    assert graph.calls[0]["past_key_values.0.key"].shape == (3, 1, 0, HEAD_DIM)
    assert [call["input_ids"].shape[1] for call in graph.calls] == [7] + [1] * 7


@pytest.mark.parametrize("asked", SETTINGS)
def test_an_encoder_and_a_decoder_graph(asked: dict[str, Any]) -> None:
    asked = {"max_new_tokens": 8, **asked}
    tokens, mask = prompts("bart", 0, [5, 3, 7])
    settings = settings_from_config({**base_config("bart"), **asked})
    inputs = {"input_ids": tokens, "attention_mask": mask, "not_taken": mask}
    source = encoded(BartEncoder(ENCODER), ENCODER, inputs, DECODER)
    graph = BartGraph(DECODER)
    found = generate(GraphDecoder(graph, DECODER, source), started(settings, 3), settings)
    np.testing.assert_array_equal(found, reference("bart", tokens, mask, **asked))
    # What the encoder gave is copied once for the beams, not at every step.
    crosses = {id(call["cross_key_values.1.value"]) for call in graph.calls}
    assert len({len(call["input_ids"]) for call in graph.calls}) >= len(crosses)


def test_an_encoder_of_speech_gives_no_mask() -> None:
    class Speech(Graph):
        def outputs(self, inputs: Any) -> dict[str, Any]:
            return {"cross_key_values.0.key": inputs["input_features"]}

    takes = Signature([TensorSpec("input_features", "float32", ["batch", 80, "frames"])], [])
    decoder = dataclasses.replace(DECODER, inputs=[DECODER.inputs[0], *CROSS[:1]])
    features = np.ones((2, 80, 3000), np.float64)
    found = encoded(Speech(takes), takes, {"input_features": features}, decoder)
    assert list(found) == ["cross_key_values.0.key"]


def without(signature: Signature, name: str) -> Signature:
    return Signature(
        [spec for spec in signature.inputs if spec.name != name],
        [spec for spec in signature.outputs if spec.name != name],
    )


def test_graphs_that_cannot_generate_are_refused() -> None:
    no_past = Signature(CAUSAL.inputs[:2], CAUSAL.outputs)
    unknown = dataclasses.replace(
        CAUSAL, inputs=[*CAUSAL.inputs, TensorSpec("position_ids", "int64", ["batch", 1])]
    )
    unsized = Signature(
        [*CAUSAL.inputs[:2], TensorSpec("past_key_values.0.key", "float32", ["batch", "h", 1, 2])],
        CAUSAL.outputs,
    )
    source = {spec.name: np.zeros(0) for spec in [ENCODER_MASK, *CROSS]}
    for graph, given, message in (
        (without(CAUSAL, "logits"), None, "has no output 'logits'"),
        (without(CAUSAL, "present_key_values.1.key"), None, "no output 'present_key_values.1.key"),
        (without(CAUSAL, "input_ids"), None, "lacks the input of the tokens"),
        (no_past, None, "lacks the input of the tokens"),
        (unknown, None, "has an input 'position_ids' that nothing is given for"),
        (unsized, None, "does not say how many heads 'past_key_values.0.key' has"),
        (DECODER, None, "has an input 'cross_key_values.0.key' that nothing is given for"),
        (CAUSAL, source, "has no input 'cross_key_values.0.key', which the encoder gives"),
    ):
        with pytest.raises(BadArtifact, match=message):
            GraphDecoder(Graph(graph), graph, given)
