"""Inputs on which an engine must agree with PyTorch, or with itself, whatever the data are.

Sizes are the smallest, the best and the largest of the engine's profile, each with fewer rows or
tokens where it would be more than a budget: the largest is then met on either axis. Rows are cut
from real text, of many lengths, the first as long as the batch is wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.manifest import BATCH, DECODER, Engine
from tfc.runtime.assembly import text_encoder_of
from tfc.runtime.backends.base import Profile
from tfc.runtime.padding import Feed, input_name, padded_left, with_holes
from tfc.runtime.tensors import profile_of
from tfc.runtime.tokenization import ATTENTION_MASK, INPUT_IDS, TextEncoder
from tfc.steps.cases import sample_media_feeds, sample_texts
from tfc.tensor_samples import TENSOR_SAMPLES, tensor_samples_from

Array = npt.NDArray[Any]
RIGHT, LEFT, HOLES, ONE = "right padding", "left padding", "holes in the mask", "length 1"
IDENTICAL, PERMUTED, ALONE = "identical rows", "permuted rows", "batch 1 and batch N"
SCRIPTS, EMPTY, UNKNOWN, LONG = "many scripts", "empty text", "unknown tokens", "text too long"
OF_PADDING, OF_ROWS = (RIGHT, LEFT, HOLES, ONE), (IDENTICAL, PERMUTED, ALONE)
OF_TEXTS = (SCRIPTS, EMPTY, UNKNOWN, LONG)

# Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, Chinese, Japanese, Korean, emoji.
_TEXTS = (
    "The parcel was left in the rain, and the box fell apart.",
    "Το δέμα δεν έφτασε ποτέ.",
    "Посылка так и не пришла, верните деньги.",
    "החבילה לא הגיעה.",
    "لم يصل الطرد بعد.",
    "पार्सल अभी तक नहीं आया।",
    "พัสดุยังไม่มาถึง",
    "包裹還沒有到。",
    "荷物がまだ届きません。",
    "소포가 아직 도착하지 않았습니다.",
    "😀👍🏽 👩‍💻 ﬁ ½ \u200b\u0301",
)
# Characters that no vocabulary of words has: for private use, and not assigned.
_STRANGE = ("\ue000 \ue001 \uf8ff", "\U000e0fff \U000f0000", "\U0003fff0 \U0003fff1")
_MOST_ALONE = 4
_FIRST_HOLE = 3  # tokens; with_holes masks every third


@dataclass(frozen=True)
class RelationCase:
    """One relation at one size; `reason` says why there is no input for it.

    Cases with the same input have the same `key`.
    """

    name: str
    size: str = ""
    feed: Feed | None = None
    reason: str = ""
    key: str = ""


def relation_cases(artifact: Artifact, engine: Engine, budget: int) -> list[RelationCase]:
    """The cases of an engine, in the order in which they are reported.

    Args:
        artifact: the artifact.
        engine: the engine, for the sizes that it takes.
        budget: tokens of a batch.
    """
    manifest, profile = artifact.manifest, profile_of(engine)
    if DECODER in manifest.graphs:
        reason = "what a model generates is compared token by token, on padded texts"
        return _none((*OF_PADDING, *OF_ROWS, *OF_TEXTS), reason)
    if TENSOR_SAMPLES in manifest.files:
        reason = "PyTorch's outputs are kept for the samples only"
        return [*_none((*OF_PADDING, *OF_TEXTS), reason), *_rows_of_samples(artifact)]
    if manifest.preprocess is None:
        reason = "the model reads no text"
        feed = sample_media_feeds(artifact)[0]
        return [*_none((*OF_PADDING, *OF_TEXTS), reason), *_row_cases(feed, profile, "", "samples")]
    encoder = text_encoder_of(artifact)
    streams = _streams(encoder, [text for text in sample_texts(artifact) if text])
    names = [spec.name for spec in manifest.signature.inputs]
    sized: list[RelationCase] = []
    for batch, sequence in sizes_of(profile, budget):
        sized += _sized_cases(encoder, names, streams, batch, sequence, profile)
    return [*sized, *_text_cases(encoder, profile, budget)]


def sizes_of(profile: Profile, budget: int) -> list[tuple[int, int]]:
    """Rows and tokens: smallest, best, longest, and most rows, each within the budget."""
    batch, sequence = profile.batch, profile.sequence
    two = min(2, batch.max)
    longest = max(sequence.min, min(sequence.max, budget // two))
    most = min(batch.max, max(batch.min, budget // sequence.min))
    wanted = [
        (batch.min, sequence.min),
        (_within(budget, sequence.opt, batch.opt, batch.min, two), min(sequence.opt, longest)),
        (_within(budget, longest, batch.max, batch.min, two), longest),
        (most, max(sequence.min, min(sequence.opt, budget // most))),
    ]
    return list(dict.fromkeys(wanted))


def _within(budget: int, tokens: int, rows: int, fewest: int, two: int) -> int:
    """As many rows of so many tokens as the budget has, but two, and what the profile asks."""
    return max(fewest, min(rows, max(two, budget // tokens)))


def _none(names: Sequence[str], reason: str) -> list[RelationCase]:
    return [RelationCase(name, reason=reason) for name in names]


def _sized_cases(
    encoder: TextEncoder,
    names: Sequence[str],
    streams: Sequence[_Stream],
    batch: int,
    sequence: int,
    profile: Profile,
) -> Iterator[RelationCase]:
    size = key = f"{batch} x {sequence}"
    feed = _feed(names, streams, batch, sequence)
    if ATTENTION_MASK not in names:
        yield from _none(OF_PADDING, "the graph has no attention mask")
        yield from _row_cases(feed, profile, size, key)
        return
    if sequence > 1:
        by_side = {"right": feed, "left": padded_left(feed)}
        for side, name in (("right", RIGHT), ("left", LEFT)):
            yield RelationCase(name, size, by_side[side], key=f"{side} {size}")
        side = encoder.preprocess.padding_side
        feed = by_side[side]
        if sequence >= _FIRST_HOLE:
            yield RelationCase(HOLES, size, with_holes(feed), key=f"holes {size}")
        key = f"{side} {size}"
    if profile.sequence.min == 1:
        key_of_one = f"one {batch}"
        ones = _feed(names, streams, batch, 1)
        yield RelationCase(ONE, f"{batch} x 1", ones, key=key_of_one)
        feed, key = (feed, key) if sequence > 1 else (ones, key_of_one)
    yield from _row_cases(feed, profile, size, key)


@dataclass(frozen=True)
class _Stream:
    """The tokens of real texts, one after another, as a tokenizer gives them; and its padding."""

    ids: Array
    pad_id: int
    pad_type_id: int


def _streams(encoder: TextEncoder, texts: Sequence[str]) -> list[_Stream]:
    """One of each tokenizer."""
    encoded = [encoder.each(encoding) for encoding in encoder.encode(list(texts))]
    return [
        _Stream(
            np.concatenate([np.asarray(of.ids, np.int64) for of in one]),
            limits.pad_id,
            limits.pad_type_id,
        )
        for limits, one in zip(encoder.limits, zip(*encoded, strict=True), strict=True)
    ]


def _feed(names: Sequence[str], streams: Sequence[_Stream], batch: int, sequence: int) -> Feed:
    """Rows of real tokens, each shorter than the one before, padded right."""
    rows = np.arange(batch)
    lengths = np.maximum(1, sequence - rows * sequence // batch)
    if batch == 1:
        lengths = np.maximum(1, lengths - sequence // 3)
    places = np.arange(sequence)
    mask = (places[None, :] < lengths[:, None]).astype(np.int64)
    found: Feed = {}
    for number, stream in enumerate(streams):
        tokens = stream.ids[(rows[:, None] * 7 + places[None, :]) % len(stream.ids)]
        if sequence > 1:
            tokens[:, 0] = stream.ids[0]  # what every text begins with
        arrays = {
            INPUT_IDS: np.where(mask == 1, tokens, stream.pad_id),
            ATTENTION_MASK: mask,
            "token_type_ids": np.where(mask == 1, 0, stream.pad_type_id),
        }
        found |= {input_name(name, number): array for name, array in arrays.items()}
    return {name: found[name] for name in names}


def _row_cases(feed: Feed, profile: Profile, size: str, key: str) -> Iterator[RelationCase]:
    """What must hold between the rows of a batch."""
    rows = len(next(iter(feed.values())))
    if rows < 2:
        return
    for name in OF_ROWS:
        if name == ALONE and profile.batch.min > 1:
            yield RelationCase(name, size, reason="the engine takes no batch of 1")
        else:
            yield RelationCase(name, size, feed, key=key)


def _rows_of_samples(artifact: Artifact) -> Iterator[RelationCase]:
    """Rows of the largest sample of a module whose inputs and outputs are all batches."""
    signature = artifact.manifest.signature
    specs = [*signature.inputs, *signature.outputs]
    if not all(spec.shape and spec.shape[0] == BATCH for spec in specs):
        yield from _none(OF_ROWS, "not every input and output begins with the axis 'batch'")
        return
    samples = tensor_samples_from(artifact.file(TENSOR_SAMPLES))
    largest = max(samples, key=lambda sample: len(next(iter(sample.inputs.values()))))
    yield from _row_cases(largest.inputs, Profile(), "", "samples")


def _text_cases(encoder: TextEncoder, profile: Profile, budget: int) -> Iterator[RelationCase]:
    """What tokenizers make of texts that data seldom have."""
    longest = encoder.preprocess.max_length
    long = " ".join(_TEXTS) * (1 + longest // 16)
    yield _text_case(SCRIPTS, encoder, _TEXTS, profile)
    yield _text_case(EMPTY, encoder, ["", _TEXTS[0]], profile)
    strange = _only_unknown(encoder)
    if strange is None:
        yield RelationCase(UNKNOWN, reason="no text was found that gives unknown tokens only")
    else:
        yield _text_case(UNKNOWN, encoder, [strange], profile)
    if longest > budget:
        yield RelationCase(LONG, reason=f"{longest} tokens are more than {budget}, for time")
    else:
        yield _text_case(LONG, encoder, [long], profile)


def _text_case(
    name: str, encoder: TextEncoder, texts: Sequence[str], profile: Profile
) -> RelationCase:
    encodings = [one for one in encoder.encode(list(texts)) if len(one)]
    encodings = encodings[: profile.batch.max]
    if len(encodings) < len(texts) and name == EMPTY:
        return RelationCase(name, reason="an empty text has no token")
    while len(encodings) < profile.batch.min:
        encodings = [*encodings, *encodings]
    width = max(len(one) for one in encodings)
    if width > profile.sequence.max:
        return RelationCase(name, reason=f"the engine takes {profile.sequence.max} tokens")
    feed: Feed = dict(encoder.pad(encodings, max(width, profile.sequence.min)))
    rows, tokens = feed[INPUT_IDS].shape
    return RelationCase(name, f"{rows} x {tokens}", feed, key=name)


def _only_unknown(encoder: TextEncoder) -> str | None:
    """A text of which the tokenizer knows nothing; None where it knows all, as of bytes."""
    unknown = encoder.unknown_id
    if unknown is None:
        return None
    for text in _STRANGE:
        (tokens,) = encoder.tokenize([text])
        if tokens.ids and set(tokens.ids) == {unknown}:
            return text
    return None


def alone(feed: Feed) -> list[tuple[int, Feed]]:
    """Some rows of a batch, each in a batch of its own: the first, the last, and some between."""
    rows = len(next(iter(feed.values())))
    places = sorted({round(i) for i in np.linspace(0, rows - 1, min(rows, _MOST_ALONE))})
    return [
        (row, {n: np.ascontiguousarray(a[row : row + 1]) for n, a in feed.items()})
        for row in places
    ]
