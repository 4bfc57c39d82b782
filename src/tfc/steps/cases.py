"""What an engine and PyTorch are both run on, and which of their values are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import SAMPLE_FILES, SAMPLES, Artifact
from tfc.errors import UsageError
from tfc.files import sha256_of_file
from tfc.manifest import BATCH, DECODER, ENCODER, MODEL, SEQUENCE, Manifest
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.audio import AudioEncoder
from tfc.runtime.backends.base import Runner
from tfc.runtime.images import ImageEncoder
from tfc.runtime.padding import Feed
from tfc.runtime.tokenization import ATTENTION_MASK, Text
from tfc.steps.generation_cases import MOST_ROWS, TOKENS, GenerationCases
from tfc.steps.reference import Recorded, Reference, recorded_from_artifact
from tfc.tensor_samples import TENSOR_SAMPLES

Array = npt.NDArray[Any]
Call = Callable[[Feed], dict[str, Array]]
OnBatch = Callable[[int, int], None]

# Rows that run at once.
BATCH_ROWS = 16
_SAMPLES = "the samples kept at export"
# Of outputs as wide as a vocabulary, so many tokens of each batch are compared: 200 texts of 64
# tokens and 30,000 values each would be 3 GB.
_WIDE = 4096
_WIDE_TOKENS = 64


@dataclass(frozen=True)
class Cases:
    """Batches of model inputs, and where they are from.

    `axes` are the outputs' axes by name, `rows` counts the inputs, which are `noun` (texts,
    images) of `origin`; `sha256` is the identity of the data. `recorded` are PyTorch's outputs
    where export kept them, and there is no checkpoint to ask.
    """

    feeds: list[Feed]
    axes: dict[str, list[int | str]]
    rows: int
    noun: str
    origin: str
    sha256: str
    recorded: Recorded | None = None

    @property
    def outputs(self) -> list[str]:
        """The names of what is compared."""
        return list(self.axes)

    def prepared(self, reference: Reference | Recorded) -> Cases:
        """Themselves: they need nothing of PyTorch."""
        return self

    def of_reference(self, reference: Reference | Recorded, on_batch: OnBatch) -> list[Array]:
        """PyTorch's values."""
        return self.values_of(reference, on_batch)

    def of_engine(self, runners: dict[str, Runner], on_batch: OnBatch) -> list[Array]:
        """An engine's values."""
        return self.values_of(runners[MODEL].run, on_batch)

    def values_of(self, call: Call, on_batch: OnBatch) -> list[Array]:
        """Run every batch, and keep the values that count: `[n, values]` arrays.

        Of an output per token, those of real tokens; padding has no meaning.
        """
        found: list[Array] = []
        for number, feed in enumerate(self.feeds):
            on_batch(number, len(self.feeds))
            outputs = call(feed)
            found += [real_values(outputs[name], axes, feed) for name, axes in self.axes.items()]
        on_batch(len(self.feeds), len(self.feeds))
        return found


def cases_of(
    artifact: Artifact, data: str | Path | None, column: str, limit: int
) -> Cases | GenerationCases:
    """The first `limit` rows of a data file, or else the samples that export kept.

    Raises:
        UsageError: the artifact has no tokenizer, or reads images or tensors and a data file is
            given.
        BadData: the data file cannot be used.
    """
    manifest = artifact.manifest
    if TENSOR_SAMPLES in manifest.files:
        if data is not None:
            raise UsageError(
                "this artifact takes tensors, not text",
                where=str(artifact.path),
                fix="Leave --data out: it is compared on the samples kept at export",
            )
        return _cases_from_tensors(artifact)
    if manifest.images is not None or manifest.audio is not None:
        if data is not None:
            raise UsageError(
                "an artifact for images or recordings is verified on its own samples",
                fix="Leave --data out",
            )
        return _cases_from_sample_media(artifact)
    generates = DECODER in artifact.manifest.graphs
    limit = min(limit, MOST_ROWS) if generates else limit
    texts, origin, sha256 = _texts_of(artifact, data, column, limit)
    if generates:
        feeds = text_feeds(artifact, [text for text in texts if text])
        if ENCODER not in manifest.graphs and manifest.preprocess is not None:
            feeds = [_with_room(feed, manifest.preprocess.max_length - TOKENS) for feed in feeds]
        rows = sum(len(feed[ATTENTION_MASK]) for feed in feeds)
        return GenerationCases(feeds, artifact.manifest, rows, "texts", origin, sha256)
    feeds = text_feeds(artifact, texts)
    return Cases(feeds, output_axes(artifact), len(texts), "texts", origin, sha256)


def _with_room(feed: Feed, longest: int) -> Feed:
    """The end of each prompt, so that the tokens to be said are within what the model reads."""
    return {
        name: np.ascontiguousarray(array[:, -max(1, longest) :]) for name, array in feed.items()
    }


def _texts_of(
    artifact: Artifact, data: str | Path | None, column: str, limit: int
) -> tuple[Sequence[Text], str, str]:
    if data is None:
        return sample_texts(artifact)[:limit], _SAMPLES, artifact.sha256(SAMPLES)
    from tfc.runtime.jobs import texts_from_jsonl

    path = Path(data)
    return texts_from_jsonl(path, column, limit), str(path), sha256_of_file(path)


def text_feeds(artifact: Artifact, texts: Iterable[Text]) -> list[Feed]:
    """Model inputs of the texts, in batches of similar length.

    Raises:
        UsageError: the artifact has no tokenizer.
    """
    encoder = text_encoder_of(artifact)
    encodings = sorted(encoder.encode(list(texts)), key=len)
    return [
        dict(encoder.pad(encodings[i : i + BATCH_ROWS]))
        for i in range(0, len(encodings), BATCH_ROWS)
    ]


def sample_media_feeds(artifact: Artifact) -> list[Feed]:
    """The images or recordings that export kept, in one batch, and two of noise."""
    feed: Feed = dict(_media_batch(artifact.manifest, _sample_media(artifact)))
    (array,) = feed.values()
    noise = np.random.default_rng(0).standard_normal(array[:2].shape, dtype=np.float32)
    return [feed, dict.fromkeys(feed, noise)]


def _media_batch(manifest: Manifest, files: list[Path]) -> dict[str, Array]:
    if manifest.audio is not None:
        recordings = AudioEncoder(manifest.audio)
        return dict(recordings.batch(recordings.encode(files)))
    assert manifest.images is not None
    images = ImageEncoder(manifest.images)
    return dict(images.batch(images.encode(files)))


def sample_texts(artifact: Artifact) -> list[str]:
    """The texts that export kept."""
    lines = artifact.file(SAMPLES).read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["text"]) for line in lines]


def _cases_from_sample_media(artifact: Artifact) -> Cases | GenerationCases:
    manifest, files = artifact.manifest, _sample_media(artifact)
    feeds = sample_media_feeds(artifact)
    rows = sum(len(array) for feed in feeds for array in feed.values())
    sha256 = hashlib.sha256("".join(map(sha256_of_file, files)).encode()).hexdigest()
    if manifest.audio is not None:
        return GenerationCases(feeds, manifest, rows, "recordings", _SAMPLES, sha256)
    return Cases(feeds, output_axes(artifact), rows, "images", _SAMPLES, sha256)


def _cases_from_tensors(artifact: Artifact) -> Cases:
    """The samples of a module, with what PyTorch gave for them at export."""
    recorded = recorded_from_artifact(artifact)
    feeds = [sample.inputs for sample in recorded.samples]
    sha256 = artifact.sha256(TENSOR_SAMPLES)
    axes = output_axes(artifact)
    return Cases(feeds, axes, len(feeds), "inputs", _SAMPLES, sha256, recorded)


def _sample_media(artifact: Artifact) -> list[Path]:
    names = [n for n in artifact.manifest.files if n.startswith(f"{SAMPLE_FILES}/")]
    return [artifact.file(name) for name in sorted(names)]


def output_axes(artifact: Artifact) -> dict[str, list[int | str]]:
    """The axes of each output by name."""
    return {spec.name: spec.shape for spec in artifact.manifest.signature.outputs}


def real_values(output: Array, axes: list[int | str], feed: Feed) -> Array:
    """Of an output per token, the values of real tokens: what padding says has no meaning."""
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
