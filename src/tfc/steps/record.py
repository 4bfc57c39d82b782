"""What the steps share: versions, the options of a step, the inputs that passes are judged on."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable

from tfc.artifact import SAMPLES, Artifact
from tfc.runtime.padding import Feed, padded_left, with_holes
from tfc.tensor_samples import TENSOR_SAMPLES, tensor_samples_from

# Called with (what is under way, done, total).
OnProgress = Callable[[str, int, int], None]

# Graph passes are judged on this many texts and tokens each, which keeps a large model quick.
_PROBE_TEXTS = 6
_PROBE_TOKENS = 48


def no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def versions_of(*packages: str) -> dict[str, str]:
    """The installed versions of these packages, and of tfc."""
    found = {}
    for package in ("tfc", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def onnxruntime_version() -> dict[str, str]:
    """The version of ONNX Runtime under whichever name it is installed."""
    found = versions_of("onnxruntime-gpu", "onnxruntime")
    return {name: version for name, version in found.items() if name != "tfc"}


def sample_texts(artifact: Artifact) -> list[str]:
    """The texts that export kept."""
    lines = artifact.file(SAMPLES).read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["text"]) for line in lines]


def probe_feeds(artifact: Artifact, graph: str) -> list[Feed]:
    """Inputs of a graph on which passes are judged.

    For text: real texts padded right, left, with holes; a full row; a single token. For a module
    that takes tensors: the samples that export kept.
    """
    if TENSOR_SAMPLES in artifact.manifest.files:
        return [sample.inputs for sample in tensor_samples_from(artifact.file(TENSOR_SAMPLES))]
    from tfc.steps.cases import text_encoder_of

    encoder = text_encoder_of(artifact)
    texts = [text for text in sample_texts(artifact) if text][:_PROBE_TEXTS]
    right = encoder.pad(encoder.encode(texts))
    right = {name: array[:, :_PROBE_TOKENS] for name, array in right.items()}
    full = {name: array[:1, :8] for name, array in right.items()}
    single = {name: array[:1, :1] for name, array in right.items()}
    return [right, padded_left(right), with_holes(right), full, single]
