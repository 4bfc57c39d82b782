"""Runs the graphs of a model that generates, batch by batch, until its texts are done."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from tfc.manifest import DECODER, ENCODER, Graph, Speech
from tfc.runtime.backends.base import Runner
from tfc.runtime.feeding import Feed
from tfc.runtime.generation import (
    GenerationSettings,
    GraphDecoder,
    encoded,
    generate,
    start_tokens,
)
from tfc.runtime.generation.numerics import Array, Integers
from tfc.runtime.generation.speech import speech_start
from tfc.runtime.tasks.generation import TOKENS, DecodingOptions, SpeechOptions
from tfc.runtime.tokenization import ATTENTION_MASK, INPUT_IDS


class GenerationRunner:
    """Decodes batches. See `tfc.runtime.feeding.BatchRunner`.

    Args:
        runners: the loaded graphs.
        graphs: their inputs and outputs.
        settings: how tokens are chosen.
        options: those of the call. A row's draws depend on the seed and on the row's content.
        positions: the most tokens that the model reads, where something limits it.
        speech: the first tokens of a transcript.
        most_rows: the most sequences to run at once; a row of several beams counts as so many.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        graphs: Mapping[str, Graph],
        settings: GenerationSettings,
        options: DecodingOptions,
        positions: int | None,
        most_rows: int,
        speech: Speech | None = None,
    ) -> None:
        self._runners = runners
        self._graphs = graphs
        self._settings = settings
        self._options = options
        self._speech = speech
        self._positions = positions
        self._most_rows = max(1, most_rows // (settings.num_beams * settings.num_return_sequences))

    def run(self, feed: Feed) -> Sequence[Mapping[str, Array]]:
        """The new tokens of each row: `[sequences, tokens]`, padded on the right."""
        found: list[Mapping[str, Array]] = []
        copies = self._settings.num_return_sequences
        for start in range(0, len(feed.places), self._most_rows):
            rows = slice(start, min(start + self._most_rows, len(feed.places)))
            arrays = {name: array[rows] for name, array in feed.arrays.items()}
            ids = self._with_encoder(arrays) if ENCODER in self._runners else self._alone(arrays)
            found += [{TOKENS: ids[i : i + copies]} for i in range(0, len(ids), copies)]
        return found

    def _with_encoder(self, arrays: Mapping[str, Array]) -> Integers:
        decoder = self._graphs[DECODER].signature
        encoder = self._graphs[ENCODER].signature
        source = encoded(self._runners[ENCODER], encoder, arrays, decoder)
        first = next(iter(arrays.values()))
        run = GraphDecoder(self._runners[DECODER], decoder, source)
        start = start_tokens(self._settings, len(first))
        if isinstance(self._options, SpeechOptions) and self._speech is not None:
            asked = self._options
            start = speech_start(run, start, self._speech, asked.language, asked.task)
        found = generate(
            run,
            start,
            self._settings,
            source=arrays.get(INPUT_IDS),
            seed=self._options.seed,
            rows=_numbers(first, arrays.get(ATTENTION_MASK)),
        )
        return found[:, start.shape[1] :]

    def _alone(self, arrays: Mapping[str, Array]) -> Integers:
        prompt = arrays[INPUT_IDS]
        found = generate(
            GraphDecoder(self._runners[DECODER], self._graphs[DECODER].signature),
            prompt,
            self._settings,
            attention_mask=arrays[ATTENTION_MASK],
            source=prompt,
            positions=self._positions,
            seed=self._options.seed,
            rows=_numbers(prompt, arrays[ATTENTION_MASK]),
        )
        return found[:, prompt.shape[1] :]


def _numbers(rows: Array, mask: Array | None = None) -> list[int]:
    """A number for each row, from what it holds, whatever its padding and its place in a job."""
    kept = rows if mask is None else [row[real != 0] for row, real in zip(rows, mask, strict=True)]
    return [zlib.crc32(np.ascontiguousarray(row).tobytes()) for row in kept]
