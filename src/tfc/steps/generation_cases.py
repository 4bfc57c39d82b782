"""What an engine that generates and PyTorch are both run on: texts, and what PyTorch says next.

PyTorch goes on from each text, greedily. The engine is then given the same tokens, one by one,
and its scores of each next token are compared with PyTorch's, which come from plain forwards
without a cache. So every score is compared on the same past, and a difference does not grow into
another text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.manifest import DECODER, ENCODER, Manifest, Signature, TensorSpec
from tfc.runtime.backends.base import Runner
from tfc.runtime.generation import GraphDecoder, encoded, settings_from_config, start_tokens
from tfc.runtime.padding import Feed
from tfc.runtime.tokenization import ATTENTION_MASK
from tfc.steps.reference import Reference

Array = npt.NDArray[Any]
OnBatch = Callable[[int, int], None]
# So many tokens are compared for each text. PyTorch runs the whole text again for each of them.
TOKENS = 6
# Each text is compared at that many places, so fewer texts tell as much.
MOST_ROWS = 48


@dataclass(frozen=True)
class GenerationCases:
    """Batches of what the model reads, and of the tokens that PyTorch says after it.

    `feeds` are the inputs of the encoder, or the prompts of a model without one, padded.
    """

    feeds: list[Feed]
    manifest: Manifest
    rows: int
    noun: str
    origin: str
    sha256: str
    tokens: list[Array] = field(default_factory=list)

    @property
    def outputs(self) -> list[str]:
        """The names of what is compared."""
        return ["logits"]

    def prepared(self, reference: Reference) -> GenerationCases:
        """The same with the tokens that PyTorch in fp32 says."""
        from tfc.exporter.generation.forced import greedy_tokens

        tokens = [greedy_tokens(reference.module, feed, TOKENS) for feed in self.feeds]
        return dataclasses.replace(self, tokens=tokens)

    def of_reference(self, reference: Reference, on_batch: OnBatch) -> list[Array]:
        """PyTorch's scores `[rows * (tokens + 1), vocabulary]` of each batch."""
        from tfc.exporter.generation.forced import forced_logits

        found = []
        for number, (feed, said) in enumerate(zip(self.feeds, self.tokens, strict=True)):
            on_batch(number, len(self.feeds))
            logits = forced_logits(reference.module, feed, said)
            found.append(logits.reshape(-1, logits.shape[-1]))
        on_batch(len(self.feeds), len(self.feeds))
        return found

    def of_engine(self, runners: dict[str, Runner], on_batch: OnBatch) -> list[Array]:
        """An engine's scores, in the same order."""
        found = []
        for number, (feed, said) in enumerate(zip(self.feeds, self.tokens, strict=True)):
            on_batch(number, len(self.feeds))
            logits = np.stack(self._steps(runners, feed, said), axis=1)
            found.append(logits.reshape(-1, logits.shape[-1]))
        on_batch(len(self.feeds), len(self.feeds))
        return found

    def _steps(self, runners: dict[str, Runner], feed: Feed, said: Array) -> list[Array]:
        decoder = self.manifest.graphs[DECODER].signature
        if ENCODER in runners:
            encoder = self.manifest.graphs[ENCODER].signature
            source = encoded(runners[ENCODER], encoder, feed, decoder)
            settings = settings_from_config(self.manifest.task.generation)
            ids = start_tokens(settings, len(said))
            mask = np.ones_like(ids)
            run = GraphDecoder(runners[DECODER], decoder, source)
        else:
            ids, mask = feed["input_ids"], feed["attention_mask"]
            run = GraphDecoder(runners[DECODER], decoder)
        logits, cache = run.step(ids, mask, None)
        found = [logits]
        for token in said.T:
            mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
            logits, cache = run.step(token[:, None], mask, cache)
            found.append(logits)
        return found


def decoder_feeds(signature: Signature, token_ids: Array) -> list[Feed]:
    """Inputs of a decoder's graph on which passes are judged.

    A prompt of several rows, a step after a past, several tokens after one, and a single row.
    Padding is in the past only: what a padded position itself sees has no meaning, yet its keys
    and values are outputs. Padded prompts are for `tfc verify`, which compares scores. Keys and
    values are random, since any are allowed.

    Args:
        signature: the graph's inputs.
        token_ids: real tokens, from which the inputs take theirs.
    """
    sizes = [(3, 7, 0), (2, 1, 5), (3, 4, 3), (1, 1, 6)]
    return [_decoder_feed(signature, token_ids, *size) for size in sizes]


def _decoder_feed(
    signature: Signature, token_ids: Array, batch: int, sequence: int, past: int
) -> Feed:
    random = np.random.default_rng(past)
    source = 6
    axes = {"batch": batch, "sequence": sequence, "past": past, "total": past + sequence}
    axes["encoder_sequence"] = source
    feed: Feed = {}
    for spec in signature.inputs:
        shape = [axis if isinstance(axis, int) else axes[axis] for axis in spec.shape]
        if spec.name == "input_ids":
            feed[spec.name] = np.resize(token_ids, shape).astype(spec.dtype)
        elif spec.name.endswith("attention_mask"):
            feed[spec.name] = _mask(spec, shape, past)
        else:
            feed[spec.name] = random.standard_normal(shape).astype(spec.dtype)
    return feed


def _mask(spec: TensorSpec, shape: list[int], past: int) -> Array:
    """Row i has i tokens of padding: in the past of a decoder, at the end of its source."""
    mask = np.ones(shape, spec.dtype)
    for row in range(1, shape[0]):
        padding = slice(0, min(row, past)) if spec.name == ATTENTION_MASK else slice(-row, None)
        mask[row, padding] = 0
    return mask
