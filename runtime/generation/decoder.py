"""What runs one step of generation: a protocol, and its form over an engine's graph.

A graph is called with the new tokens and the keys and values of those before them (the cache),
and gives the scores of the next token and the cache with the new tokens in it::

    input_ids               [batch, sequence]          logits                     [batch, vocab]
    attention_mask          [batch, past + sequence]   present_key_values.{i}.*   like the inputs
    past_key_values.{i}.*   [batch, heads, past, head_dim]

The decoder of an encoder-decoder model takes, instead of the mask, what the encoder gave, which
stays the same from step to step: `cross_key_values.{i}.*` and `encoder_attention_mask`, with the
batch as their first axis too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from tfc.errors import BadArtifact
from tfc.manifest import Signature, TensorSpec
from tfc.runtime.backends.base import Arrays, Runner
from tfc.runtime.generation.numerics import Array, Floats, Integers
from tfc.runtime.tokenization import INPUT_IDS

ATTENTION_MASK = "attention_mask"
ENCODER_MASK = "encoder_attention_mask"
LOGITS = "logits"
PAST, PRESENT, CROSS = "past_key_values.", "present_key_values.", "cross_key_values."

C = TypeVar("C")


class Decoder(Protocol[C]):
    """Runs one step for a batch of sequences; `C` is its cache, of which only it knows the form.

    For an encoder-decoder model it stands for one batch of encoder outputs.
    """

    def step(
        self, input_ids: Integers, attention_mask: Integers, cache: C | None
    ) -> tuple[Floats, C]:
        """Run the new tokens.

        Args:
            input_ids: `[batch, sequence]`: the prompt, then one token at a time.
            attention_mask: `[batch, total]`: 1 for tokens, 0 for padding, of all until now.
            cache: what the step before gave; None at the start.

        Returns:
            The scores of the token after the last, `[batch, vocab]`, and the cache.
        """

    def reorder(self, cache: C, indices: Integers) -> C:
        """The cache of a batch made of the rows `indices` `[new batch]` of the batch before."""


@dataclass(frozen=True)
class GraphCache:
    """The keys and values of `past`, and what the encoder gave for the same rows.

    `origins` `[batch]` is the encoder's row that each row goes on from: beams of one row share
    what the encoder gave, so it is copied only when the rows themselves change.
    """

    past: Arrays
    source: Arrays
    origins: Integers


class GraphDecoder:
    """A `Decoder` over a loaded engine.

    Args:
        runner: the engine of a decoder graph.
        signature: the graph's inputs and outputs.
        source: for an encoder-decoder model, what `encoded` gave for the batch.

    Raises:
        BadArtifact: the graph lacks an input or output that generation needs.
    """

    def __init__(self, runner: Runner, signature: Signature, source: Arrays | None = None) -> None:
        self._runner = runner
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._past = {name: spec for name, spec in self._inputs.items() if name.startswith(PAST)}
        self._source = {} if source is None else source
        _check_names(signature, self._source)
        for spec in self._past.values():
            _check_sizes(spec)

    def step(
        self, input_ids: Integers, attention_mask: Integers, cache: GraphCache | None
    ) -> tuple[Floats, GraphCache]:
        """Run the new tokens (`Decoder.step`)."""
        if cache is None:
            cache = self._start(len(input_ids))
        inputs: dict[str, Array] = {INPUT_IDS: self._cast(INPUT_IDS, input_ids)}
        if ATTENTION_MASK in self._inputs:
            inputs[ATTENTION_MASK] = self._cast(ATTENTION_MASK, attention_mask)
        outputs = self._runner.run({**inputs, **cache.past, **cache.source})
        past = {name: outputs[PRESENT + name.removeprefix(PAST)] for name in self._past}
        logits = outputs[LOGITS].astype(np.float32, copy=False)
        return logits, GraphCache(past, cache.source, cache.origins)

    def reorder(self, cache: GraphCache, indices: Integers) -> GraphCache:
        """The cache of other rows (`Decoder.reorder`)."""
        if np.array_equal(indices, np.arange(len(cache.origins))):
            return cache
        origins = cache.origins[indices]
        same = np.array_equal(origins, cache.origins)
        source = cache.source if same else _taken(cache.source, indices)
        return GraphCache(_taken(cache.past, indices), source, origins)

    def _start(self, batch: int) -> GraphCache:
        past = {name: _empty(spec, batch) for name, spec in self._past.items()}
        source = {name: self._cast(name, array) for name, array in self._source.items()}
        return GraphCache(past, source, np.arange(batch))

    def _cast(self, name: str, array: Array) -> Array:
        return array.astype(self._inputs[name].dtype, copy=False)


def encoded(runner: Runner, signature: Signature, inputs: Arrays, decoder: Signature) -> Arrays:
    """Run the encoder: what the decoder's graph takes of a batch, for `GraphDecoder`.

    Args:
        runner: the engine of the encoder's graph.
        signature: its inputs and outputs.
        inputs: by input name: `input_ids` and `attention_mask` `[batch, source length]` of
            text, `input_features` of speech.
        decoder: the inputs and outputs of the decoder's graph.
    """
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}
    outputs = runner.run({name: inputs[name].astype(dtypes[name], copy=False) for name in dtypes})
    found = {name: array for name, array in outputs.items() if name.startswith(CROSS)}
    if any(spec.name == ENCODER_MASK for spec in decoder.inputs):
        found[ENCODER_MASK] = inputs[ATTENTION_MASK]
    return found


def _check_names(signature: Signature, source: Arrays) -> None:
    inputs = {spec.name for spec in signature.inputs}
    outputs = {spec.name for spec in signature.outputs}
    past = {name for name in inputs if name.startswith(PAST)}
    needed = {LOGITS, *(PRESENT + name.removeprefix(PAST) for name in past)} - outputs
    if needed:
        raise _bad_graph(f"has no output '{min(needed)}'")
    if INPUT_IDS not in inputs or not past:
        raise _bad_graph("lacks the input of the tokens, or of those before them")
    unknown = inputs - past - {INPUT_IDS, ATTENTION_MASK, *source}
    if unknown:
        raise _bad_graph(f"has an input '{min(unknown)}' that nothing is given for")
    if set(source) - inputs:
        raise _bad_graph(f"has no input '{min(set(source) - inputs)}', which the encoder gives")


def _check_sizes(spec: TensorSpec) -> None:
    if len(spec.shape) != 4 or not all(isinstance(spec.shape[axis], int) for axis in (1, 3)):
        raise _bad_graph(f"does not say how many heads '{spec.name}' has, and of what size")


def _bad_graph(what: str) -> BadArtifact:
    return BadArtifact(
        f"the decoder's graph {what}",
        fix="Export the checkpoint again with: tfc export --overwrite",
    )


def _empty(spec: TensorSpec, batch: int) -> Array:
    """Keys or values of no token: `[batch, heads, 0, head_dim]`; named axes are batch and past."""
    _, heads, _, head_dim = spec.shape
    return np.zeros((batch, int(heads), 0, int(head_dim)), spec.dtype)


def _taken(arrays: Arrays, indices: Integers) -> Arrays:
    return {name: np.take(array, indices, axis=0) for name, array in arrays.items()}
