"""What the searches share: the running batch, with its mask and its cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import numpy as np

from tfc.errors import CheckFailed, UsageError
from tfc.runtime.generation.decoder import C, Decoder
from tfc.runtime.generation.numerics import Array, Floats, Integers
from tfc.runtime.generation.processors import (
    Processors,
    Prompt,
    check_vocabulary,
    processors_from_settings,
)
from tfc.runtime.generation.settings import GenerationSettings


@dataclass(frozen=True)
class Rules:
    """The settings with the rules made of them, for one prompt.

    `ends` are the end tokens.
    """

    settings: GenerationSettings
    prompt: Prompt
    process: Processors
    ends: Integers

    @classmethod
    def of(cls, settings: GenerationSettings, prompt: Prompt) -> Rules:
        """Make the rules of `settings` for `prompt`."""
        process = processors_from_settings(settings, prompt)
        return cls(settings, prompt, process, np.array(settings.eos_token_id, np.int64))

    def check(self, logits: Floats, rows: Integers) -> None:
        """Refuse logits `[sequences, vocabulary]`, of the prompt's `rows`, that are no scores."""
        bad = (np.isnan(logits) | np.isposinf(logits)).any(axis=1)
        if bad.any() and not self.settings.remove_invalid_values:
            raise CheckFailed(
                "the engine gives scores that are not finite numbers",
                where=f"row {rows[bad][0]}",
                fix="Check the engine with: tfc verify; then build one in a higher precision",
            )


@dataclass(frozen=True)
class Running(Generic[C]):
    """The sequences that have not ended: the scores of their next token, and their cache.

    `padding` `[sequences]` is the number of padding tokens at their start.
    """

    decoder: Decoder[C]
    logits: Floats
    cache: C
    padding: Integers

    @classmethod
    def start(cls, decoder: Decoder[C], rules: Rules, copies: int) -> Running[C]:
        """Run the prompt once, and go on with `copies` sequences of each row."""
        prompt = rules.prompt
        mask = _mask(prompt.padding, prompt.length)
        logits, cache = decoder.step(prompt.tokens, mask, None)
        check_vocabulary(rules.settings, logits.shape[1])
        running = cls(decoder, logits, cache, prompt.padding)
        if copies == 1:
            return running
        each = np.repeat(np.arange(len(logits)), copies)
        cache = decoder.reorder(cache, each)
        return cls(decoder, logits[each], cache, prompt.padding[each])

    def step(self, tokens: Integers, origins: Integers) -> Running[C]:
        """Go on with the sequences `origins` of these, that now have the tokens `[n, length]`."""
        cache = self.cache
        if not np.array_equal(origins, np.arange(len(self.logits))):
            cache = self.decoder.reorder(cache, origins)
        padding = self.padding[origins]
        mask = _mask(padding, tokens.shape[1])
        logits, cache = self.decoder.step(tokens[:, -1:], mask, cache)
        return Running(self.decoder, logits, cache, padding)


def check_choice(scores: Array) -> None:
    """Refuse scores `[sequences, n]` that are -inf for every token, or not numbers."""
    if not np.isfinite(scores.max(axis=1)).all():
        raise UsageError(
            "the generation config forbids every token",
            fix="Take out suppressed, forced or bad tokens",
        )


def _mask(padding: Integers, length: int) -> Integers:
    return (np.arange(length) >= padding[:, None]).astype(np.int64)
