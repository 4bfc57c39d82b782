"""One token after the other for each row: the likeliest (greedy search), or one that is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfc.runtime.generation.decoder import C, Decoder
from tfc.runtime.generation.numerics import Array, Floats, Integers, softmax
from tfc.runtime.generation.processors import Prompt
from tfc.runtime.generation.settings import GenerationSettings
from tfc.runtime.generation.state import Rules, Running, check_choice


def one_by_one(
    decoder: Decoder[C],
    prompt: Prompt,
    settings: GenerationSettings,
    generators: Sequence[np.random.Generator],
) -> Integers:
    """Greedy search, or sampling with `do_sample` (`tfc.runtime.generation.search.generate`).

    A sequence that has ended leaves the batch.

    Args:
        decoder: runs the model.
        prompt: what to go on from.
        settings: how tokens are chosen.
        generators: what to draw with: `num_return_sequences` for each row of the prompt.

    Returns:
        `[rows * num_return_sequences, total]`.
    """
    rules = Rules.of(settings, prompt)
    copies = settings.num_return_sequences
    found = _room(prompt, settings, copies)
    rows = np.repeat(np.arange(len(prompt.tokens)), copies)
    going = np.arange(len(rows))
    running = Running.start(decoder, rules, copies)
    for length in range(prompt.length, prompt.limit):
        rules.check(running.logits, rows[going])
        scores = rules.process(found[going, :length], running.logits, rows[going])
        chosen = _chosen(scores, settings, [generators[place] for place in going.tolist()])
        found[going, length] = chosen
        stays = np.flatnonzero(~np.isin(chosen, rules.ends))
        going = going[stays]
        if not len(going) or length + 1 == prompt.limit:
            break
        running = running.step(found[going, : length + 1], stays)
    return found[:, : length + 1]


def _room(prompt: Prompt, settings: GenerationSettings, copies: int) -> Integers:
    """The prompts, and the padding that the new tokens take the place of."""
    fill = settings.pad_token_id
    if fill is None:
        fill = settings.eos_token_id[0] if settings.eos_token_id else 0
    found = np.full((len(prompt.tokens) * copies, prompt.limit), fill, np.int64)
    found[:, : prompt.length] = np.repeat(prompt.tokens, copies, axis=0)
    return found


def _chosen(
    scores: Floats, settings: GenerationSettings, generators: Sequence[np.random.Generator]
) -> Integers:
    """One token for each row: `[sequences]`."""
    check_choice(scores)
    if not settings.do_sample:
        best: Integers = scores.argmax(axis=1)
        return best
    sums = softmax(scores).cumsum(axis=1, dtype=np.float64)
    drawn = [_drawn(row, one) for row, one in zip(sums, generators, strict=True)]
    return np.array(drawn, np.int64)


def _drawn(sums: Array, generator: np.random.Generator) -> int:
    """A token, by the running sums of the probabilities: never one of probability 0."""
    place = np.searchsorted(sums, generator.random() * sums[-1], side="right")
    last = np.searchsorted(sums, sums[-1])  # the product may round up to the whole
    return int(min(place, last))
