"""The graphs of an artifact with fewer tokens, and the proof that they say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import CheckFailed
from tfc.manifest import DECODER
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.padding import Feed
from tfc.runtime.tokenization import INPUT_IDS
from tfc.steps.generation_cases import decoder_feeds
from tfc.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx_ir as ir

# Of the corpus so many texts, evenly spread, of at most so many tokens, are run.
PROOF_TEXTS = 32
_PROOF_TOKENS = 64
_BATCH = 8
# Rows are moved and not computed with; only a product with fewer columns may be summed in another
# order, which moves its last bits. A token in another's place is off by the size of the output.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Cut:
    """A graph after the cut, the bytes of its vocabulary's weights, and the largest difference.

    `difference` is a share of each output's largest value, and 0 where all bits are the same.
    """

    model: ir.Model
    bytes_before: int
    bytes_after: int
    difference: float
    texts: int


def cut_graph(
    model: ir.Model, vocabulary: Vocabulary, feeds: Sequence[Feed], outputs: Sequence[str]
) -> Cut:
    """Cut one graph and run it beside the whole one.

    Args:
        model: the graph; it is changed.
        vocabulary: what is kept.
        feeds: inputs of the whole graph, with kept tokens only.
        outputs: the outputs that have the vocabulary as their last axis.

    Raises:
        UsageError: the graph reads token ids in a way that is not known.
        CheckFailed: it says something else.
    """
    from tfc.optimizers.executor import outputs_of, relative_difference
    from tfc.optimizers.vocabulary import trim_vocabulary

    expected = [
        {name: _at(array, name, outputs, vocabulary) for name, array in each.items()}
        for each in outputs_of(model, feeds)
    ]
    done = trim_vocabulary(model, vocabulary.old, [INPUT_IDS], outputs)
    found = outputs_of(model, [_with_new_ids(feed, vocabulary) for feed in feeds])
    difference = relative_difference(expected, found)
    if not difference <= TOLERANCE:
        raise CheckFailed(
            f"the graph with fewer tokens says something else: off by {difference:.1e} of its "
            f"outputs' scale, where {TOLERANCE:.0e} is allowed",
            fix="Leave --trim-vocab out, and report this model",
        )
    texts = sum(len(next(iter(feed.values()))) for feed in feeds)
    return Cut(model, done.bytes_before, done.bytes_after, difference, texts)


def proof_feeds(artifact: Artifact, graph: str, texts: Sequence[str]) -> list[Feed]:
    """Inputs of a graph from texts of the corpus, evenly spread, with padding."""
    step = max(1, len(texts) // PROOF_TEXTS)
    encoder = text_encoder_of(artifact)
    encodings = encoder.encode(list(texts[::step][:PROOF_TEXTS]))
    batches = [encodings[i : i + _BATCH] for i in range(0, len(encodings), _BATCH)]
    padded = [
        encoder.pad([e for e in batch if len(e)]) for batch in batches if any(map(len, batch))
    ]
    on_left = encoder.preprocess.padding_side == "left"
    part = slice(-_PROOF_TOKENS, None) if on_left else slice(0, _PROOF_TOKENS)
    feeds: list[Feed] = [{name: array[:, part] for name, array in feed.items()} for feed in padded]
    if graph != DECODER:
        return feeds
    ids = np.concatenate([feed[INPUT_IDS].ravel() for feed in feeds])
    return decoder_feeds(artifact.manifest.graphs[DECODER].signature, ids)


def _at(
    array: npt.NDArray[Any], name: str, outputs: Sequence[str], vocabulary: Vocabulary
) -> npt.NDArray[Any]:
    """An output at the tokens that stay."""
    if name not in outputs:
        return array
    return np.asarray(array[..., vocabulary.old[vocabulary.old < array.shape[-1]]])


def _with_new_ids(feed: Feed, vocabulary: Vocabulary) -> Feed:
    if INPUT_IDS not in feed:
        return feed
    return {**feed, INPUT_IDS: np.searchsorted(vocabulary.old, feed[INPUT_IDS])}
