"""Inputs of a graph on which its passes are judged, by what the graph reads."""

from __future__ import annotations

import numpy as np

from tfc.artifact import Artifact
from tfc.manifest import DECODER
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.padding import Feed, padded_left, with_holes
from tfc.runtime.tokenization import INPUT_IDS
from tfc.steps.cases import sample_media_feeds, sample_texts, text_feeds
from tfc.steps.generation_cases import decoder_feeds
from tfc.tensor_samples import TENSOR_SAMPLES, tensor_samples_from

# Few and short texts keep the judging of a large model quick.
_TEXTS = 6
_TOKENS = 48


def probe_feeds(artifact: Artifact, graph: str, *, other_side: bool = True) -> list[Feed]:
    """Inputs for one graph of the artifact; what is padded is padded in every way.

    Without `other_side` texts are padded on the tokenizer's own side only. A model that reads its
    answer from the first token gives one without meaning where that is padding: exact passes
    must keep even that, rounding need not.
    """
    manifest = artifact.manifest
    if TENSOR_SAMPLES in manifest.files:
        return [sample.inputs for sample in tensor_samples_from(artifact.file(TENSOR_SAMPLES))]
    if graph == DECODER:
        feeds = text_feeds(artifact, sample_texts(artifact)[:_TEXTS])
        ids = np.concatenate([feed[INPUT_IDS].ravel() for feed in feeds])
        return decoder_feeds(manifest.graphs[DECODER].signature, ids)
    if manifest.images is not None or manifest.audio is not None:
        feeds = sample_media_feeds(artifact)
        return [*feeds, {name: array[:1] for name, array in feeds[0].items()}]
    return _text_probes(artifact, other_side)


def _text_probes(artifact: Artifact, other_side: bool) -> list[Feed]:
    """Real texts padded right, left, with holes; a full row; a single token."""
    encoder = text_encoder_of(artifact)
    texts = [text for text in sample_texts(artifact) if text][:_TEXTS]
    right = encoder.pad(encoder.encode(texts))
    right = {name: array[:, :_TOKENS] for name, array in right.items()}
    full = {name: array[:1, :8] for name, array in right.items()}
    single = {name: array[:1, :1] for name, array in right.items()}
    own, other = right, padded_left(right)
    if encoder.preprocess.padding_side == "left":
        own, other = other, own
    return [own, *([other] if other_side else []), with_holes(own), full, single]
