"""Inputs of a graph on which its passes are judged, by what the graph reads."""

from __future__ import annotations

import numpy as np

from tfc.artifact import Artifact
from tfc.manifest import DECODER
from tfc.runtime.padding import Feed, padded_left, with_holes
from tfc.runtime.tokenization import INPUT_IDS
from tfc.steps.cases import sample_media_feeds, sample_texts, text_encoder_of, text_feeds
from tfc.steps.generation_cases import decoder_feeds
from tfc.tensor_samples import TENSOR_SAMPLES, tensor_samples_from

# Few and short texts keep the judging of a large model quick.
_TEXTS = 6
_TOKENS = 48


def probe_feeds(artifact: Artifact, graph: str) -> list[Feed]:
    """Inputs for one graph of the artifact; what is padded is padded in every way."""
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
    return _text_probes(artifact)


def _text_probes(artifact: Artifact) -> list[Feed]:
    """Real texts padded right, left, with holes; a full row; a single token."""
    encoder = text_encoder_of(artifact)
    texts = [text for text in sample_texts(artifact) if text][:_TEXTS]
    right = encoder.pad(encoder.encode(texts))
    right = {name: array[:, :_TOKENS] for name, array in right.items()}
    full = {name: array[:1, :8] for name, array in right.items()}
    single = {name: array[:1, :1] for name, array in right.items()}
    return [right, padded_left(right), with_holes(right), full, single]
