"""What an engine and PyTorch are both run on, and which of their values are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.manifest import BATCH, SEQUENCE
from tfc.runtime.padding import Feed
from tfc.runtime.tokenization import ATTENTION_MASK, Text, TextEncoder
from tfc.steps.reference import Recorded

Array = npt.NDArray[Any]
Call = Callable[[Feed], dict[str, Array]]

_BATCH = 16
# Of outputs as wide as a vocabulary, so many tokens of each batch are compared: 200 texts of 64
# tokens and 30,000 values each would be 3 GB.
_WIDE = 4096
_WIDE_TOKENS = 64


@dataclass(frozen=True)
class Cases:
    """Batches of model inputs; `axes` are the outputs' axes by name, `rows` counts the inputs."""

    feeds: list[Feed]
    axes: dict[str, list[int | str]]
    rows: int

    def vectors(self, call: Call, on_batch: Callable[[int, int], None]) -> list[Array]:
        """Run every batch, and keep the values that count: `[n, values]` arrays.

        Of an output per token, those of real tokens; padding has no meaning.
        """
        found: list[Array] = []
        for number, feed in enumerate(self.feeds):
            on_batch(number, len(self.feeds))
            outputs = call(feed)
            found += [_kept(outputs[name], axes, feed) for name, axes in self.axes.items()]
        on_batch(len(self.feeds), len(self.feeds))
        return found


def cases_from_texts(artifact: Artifact, texts: Iterable[Text]) -> Cases:
    """The texts in batches of similar length.

    Raises:
        UsageError: the artifact has no tokenizer.
    """
    encoder = text_encoder_of(artifact)
    encodings = sorted(encoder.encode(list(texts)), key=len)
    feeds: list[Feed] = [
        dict(encoder.pad(encodings[i : i + _BATCH])) for i in range(0, len(encodings), _BATCH)
    ]
    return Cases(feeds, _output_axes(artifact), len(encodings))


def cases_from_samples(artifact: Artifact, recorded: Recorded) -> Cases:
    """The samples of a module that takes tensors."""
    feeds = [sample.inputs for sample in recorded.samples]
    return Cases(feeds, _output_axes(artifact), len(feeds))


def text_encoder_of(artifact: Artifact) -> TextEncoder:
    """The artifact's tokenizer, for the inputs of its graph.

    Raises:
        UsageError: it has none.
    """
    manifest = artifact.manifest
    if manifest.preprocess is None:
        raise UsageError(
            "this artifact takes tensors, not text",
            where=str(artifact.path),
            fix="Compare its engines with Session.run on your own tensors",
        )
    names = [spec.name for spec in manifest.signature.inputs]
    return TextEncoder(artifact.file(manifest.preprocess.tokenizer), manifest.preprocess, names)


def _output_axes(artifact: Artifact) -> dict[str, list[int | str]]:
    return {spec.name: spec.shape for spec in artifact.manifest.signature.outputs}


def _kept(output: Array, axes: list[int | str], feed: Feed) -> Array:
    if axes[:2] != [BATCH, SEQUENCE] or ATTENTION_MASK not in feed:
        return output
    real = feed[ATTENTION_MASK].astype(bool)
    if output.ndim == 2:  # one value per token, which compete with each other in a row
        least = np.where(real, output, np.inf).min(axis=1, keepdims=True)
        return np.asarray(np.where(real, output, least))
    tokens: Array = output[real]
    if tokens.shape[-1] < _WIDE or len(tokens) <= _WIDE_TOKENS:
        return tokens
    chosen = np.random.default_rng(len(tokens)).choice(len(tokens), _WIDE_TOKENS, replace=False)
    return np.asarray(tokens[chosen])
