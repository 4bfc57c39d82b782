"""Inputs of a graph on which its passes are judged, by what the graph reads."""

from __future__ import annotations

import numpy as np

from tfc.artifact import Artifact, graph_file
from tfc.files import DATA_SUFFIX
from tfc.manifest import DECODER
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.padding import Feed, padded_left, padded_right, with_holes
from tfc.runtime.tokenization import INPUT_IDS
from tfc.steps.cases import sample_media_feeds, sample_texts, text_feeds
from tfc.steps.generation_cases import decoder_feeds
from tfc.tensor_samples import TENSOR_SAMPLES, tensor_samples_from

# The texts of a batch, and the tokens of each that are kept.
_TEXTS, _TOKENS = 4, 48
# A graph of that many bytes (BERT-base has 440 MB) gets fewer and shorter texts: what tells one
# mask, scale or operand from another are the kinds of padding, which stay, not their number.
_LARGE = 256 << 20
_FEW_TEXTS, _FEW_TOKENS = 2, 16


def probe_feeds(artifact: Artifact, graph: str, *, exact: bool = True) -> list[Feed]:
    """Inputs for one graph of the artifact; what is padded is padded in every way.

    Without `exact`, for a change that rounds, texts are padded on the tokenizer's own side only.
    A model that reads its answer from the first token gives one without meaning where that is
    padding: exact passes must keep even that, rounding need not. How large values get is best
    seen on many tokens, so a large graph gets as many as a small one.
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
    if exact and _bytes_of(artifact, graph) >= _LARGE:
        return _text_probes(artifact, _FEW_TEXTS, _FEW_TOKENS, exact)
    return _text_probes(artifact, _TEXTS, _TOKENS, exact)


def _bytes_of(artifact: Artifact, graph: str) -> int:
    name, files = graph_file(graph), artifact.manifest.files
    return sum(files[n].bytes for n in (name, name + DATA_SUFFIX) if n in files)


def _text_probes(artifact: Artifact, number: int, tokens: int, exact: bool) -> list[Feed]:
    """One batch of real texts padded right, left and with holes; and a single token."""
    encoder = text_encoder_of(artifact)
    texts = [text for text in sample_texts(artifact) if text][:number]
    batch = encoder.pad(encoder.encode(texts))
    on_left = encoder.preprocess.padding_side == "left"
    right = {n: a[:, :tokens] for n, a in (padded_right(batch) if on_left else batch).items()}
    left = padded_left(right)
    own, other = (left, right) if on_left else (right, left)
    kinds = [own, *([other] if exact else []), with_holes(own)]
    together = {name: np.concatenate([kind[name] for kind in kinds]) for name in right}
    return [together, {name: array[:1, :1] for name, array in right.items()}]
