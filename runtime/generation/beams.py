"""Beam search, and beam sampling, with the scores and the stopping of transformers 5.

A row's search ends by itself: once it has, nothing that later steps would find can enter its
result, so that it leaves the batch and the other rows go on.

Of equal scores the first is taken; PyTorch's top-k leaves that open. Scores are equal where the
settings force several tokens at once, or leave a row fewer sequences than are asked for: what is
then returned beside the real ones may differ from what transformers returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfc.runtime.generation.decoder import C, Decoder
from tfc.runtime.generation.numerics import Array, Floats, Integers, largest, log_softmax
from tfc.runtime.generation.processors import Prompt
from tfc.runtime.generation.settings import GenerationSettings
from tfc.runtime.generation.state import Rules, Running, check_choice

# What transformers adds to the score of a beam that must not be chosen. Not -inf: such beams are
# still chosen, in their order, before tokens that are forbidden.
NEVER = np.float32(-1e9)


@dataclass(frozen=True)
class _Hypotheses:
    """Some sequences of each row.

    `tokens` `[rows, n, limit]`, `scores` `[rows, n]` float32, `new` `[rows, n]`: how many tokens
    were found, `ended` `[rows, n]`: whether the sequence is complete.
    """

    tokens: Integers
    scores: Floats
    new: Integers
    ended: Array

    def taken(self, places: Integers) -> _Hypotheses:
        """The sequences `places` `[rows, m]` of each row."""
        each = np.take_along_axis
        return _Hypotheses(
            each(self.tokens, places[:, :, None], axis=1),
            each(self.scores, places, axis=1),
            each(self.new, places, axis=1),
            each(self.ended, places, axis=1),
        )

    def rows(self, rows: Integers) -> _Hypotheses:
        """The sequences of some of the rows."""
        return _Hypotheses(self.tokens[rows], self.scores[rows], self.new[rows], self.ended[rows])

    def and_those(self, other: _Hypotheses) -> _Hypotheses:
        """These sequences and then the others, of the same rows."""
        return _Hypotheses(
            np.concatenate([self.tokens, other.tokens], axis=1),
            np.concatenate([self.scores, other.scores], axis=1),
            np.concatenate([self.new, other.new], axis=1),
            np.concatenate([self.ended, other.ended], axis=1),
        )


def beam_search(
    decoder: Decoder[C],
    prompt: Prompt,
    settings: GenerationSettings,
    generators: Sequence[np.random.Generator],
) -> Integers:
    """Beam search (`tfc.runtime.generation.search.generate`).

    Args:
        decoder: runs the model.
        prompt: what to go on from.
        settings: how tokens are chosen; `num_beams` is at least 2.
        generators: what each row draws with, where `do_sample` is set.

    Returns:
        `[rows * num_return_sequences, total]`, the best sequence of a row first.
    """
    rules = Rules.of(settings, prompt)
    beams = settings.num_beams
    open_beams, found = _start(prompt, settings)
    best = found
    rows = np.arange(len(prompt.tokens))
    running = Running.start(decoder, rules, beams)
    for length in range(prompt.length, prompt.limit):
        rules.check(running.logits, np.repeat(rows, beams))
        scores = _accumulated(rules, running.logits, open_beams, rows, length)
        drawn = [generators[row] for row in rows.tolist()] if settings.do_sample else []
        following, origins = _following(rules, open_beams, scores, length, drawn)
        best = _with_ended(best, following, settings)
        found = _put(found, best, rows)
        open_beams, origins = _still_open(following, origins, beams)
        stays = np.flatnonzero(_can_improve(rules, open_beams, best, length + 1))
        if not len(stays) or length + 1 == prompt.limit:
            break
        rows, best, open_beams = rows[stays], best.rows(stays), open_beams.rows(stays)
        flat = (stays[:, None] * beams + origins[stays]).reshape(-1)
        tokens = open_beams.tokens[:, :, : length + 1].reshape(len(flat), -1)
        running = running.step(tokens, flat)
    return _returned(found, prompt, settings.num_return_sequences)


def _start(prompt: Prompt, settings: GenerationSettings) -> tuple[_Hypotheses, _Hypotheses]:
    """(the open beams, the complete ones): the first of a row is open, and none is complete."""
    shape = (len(prompt.tokens), settings.num_beams)
    # As transformers has it: a padding token 0 is taken for none, and the end token fills.
    fill = -1
    if settings.eos_token_id:
        fill = settings.pad_token_id or settings.eos_token_id[0]
    tokens = np.full((*shape, prompt.limit), fill, np.int64)
    tokens[:, :, : prompt.length] = prompt.tokens[:, None]
    new, ended = np.zeros(shape, np.int64), np.zeros(shape, bool)
    scores = np.full(shape, NEVER)
    first = scores.copy()
    first[:, 0] = 0  # the beams are still the same: tokens are taken from the first alone
    return _Hypotheses(tokens, first, new, ended), _Hypotheses(tokens, scores, new, ended)


def _accumulated(
    rules: Rules, logits: Floats, beams: _Hypotheses, rows: Integers, length: int
) -> Floats:
    """The score of each beam with each token after it: `[rows, beams, vocabulary]`."""
    shape = beams.scores.shape
    tokens = beams.tokens[:, :, :length].reshape(len(logits), length)
    scores = rules.process(tokens, log_softmax(logits), np.repeat(rows, shape[1]))
    return scores.reshape(*shape, -1) + beams.scores[:, :, None]


def _following(
    rules: Rules,
    beams: _Hypotheses,
    scores: Floats,
    length: int,
    generators: Sequence[np.random.Generator],
) -> tuple[_Hypotheses, Integers]:
    """The best beams of one token more, and the beam that each comes from: `[rows, n]`.

    n leaves as many beams open as there were, even if every beam is followed by every end.
    """
    rows, beam_count, vocabulary = scores.shape
    flat = scores.reshape(rows, -1)
    check_choice(flat)
    wanted = max(2, 1 + len(rules.ends)) * beam_count
    places = largest(_perturbed(flat, generators) if generators else flat, wanted)
    origins, chosen = places // vocabulary, places % vocabulary
    found = beams.taken(origins)
    found.tokens[:, :, length] = chosen
    last = length + 1 == rules.prompt.limit
    ended = np.isin(chosen, rules.ends) | last
    return _Hypotheses(
        found.tokens, np.take_along_axis(flat, places, axis=1), found.new + 1, ended
    ), origins


def _perturbed(scores: Floats, generators: Sequence[np.random.Generator]) -> Array:
    """Scores whose n largest are a draw of n without replacement (the Gumbel top-k trick).

    Source: Kool et al., Stochastic Beams and Where to Find Them.
    """
    noise = [generator.gumbel(size=scores.shape[1]) for generator in generators]
    found: Array = scores + np.stack(noise)
    return found


def _with_ended(
    best: _Hypotheses, following: _Hypotheses, settings: GenerationSettings
) -> _Hypotheses:
    """The best complete sequences, with those that have just ended.

    Only the first `num_beams` of what follows may be complete; the others stand by for them.
    """
    beams = settings.num_beams
    ended = following.ended & (np.arange(following.ended.shape[1]) < beams)
    length = int(following.new[0, 0])
    scores = following.scores / np.float32(length**settings.length_penalty)
    scores += np.where(ended, np.float32(0), NEVER)
    new = _Hypotheses(following.tokens, scores, following.new, ended)
    both = best.and_those(new)
    return both.taken(largest(both.scores, beams))


def _still_open(
    following: _Hypotheses, origins: Integers, beams: int
) -> tuple[_Hypotheses, Integers]:
    """The best beams to go on with, and where they come from."""
    scores = following.scores + np.where(following.ended, NEVER, np.float32(0))
    places = largest(scores, beams)
    still = _Hypotheses(following.tokens, scores, following.new, following.ended)
    return still.taken(places), np.take_along_axis(origins, places, axis=1)


def _can_improve(rules: Rules, beams: _Hypotheses, best: _Hypotheses, length: int) -> Array:
    """Whether an open beam may yet enter the complete ones of its row: `[rows]` bool.

    The guess of the best score to come divides by today's length, or, where nothing is to be
    stopped early and length is rewarded, by the longest.
    """
    settings = rules.settings
    if settings.early_stopping == "never" and settings.length_penalty > 0:
        length = rules.prompt.limit
    divisor = np.float32((length - rules.prompt.length) ** settings.length_penalty)
    hope = beams.scores[:, :1] / divisor
    worst = np.where(best.ended, best.scores.min(axis=1, keepdims=True), NEVER)
    can: Array = (hope > worst).any(axis=1)
    if settings.early_stopping is True:
        can &= ~best.ended.all(axis=1)
    return can


def _put(found: _Hypotheses, best: _Hypotheses, rows: Integers) -> _Hypotheses:
    """`found` of all rows, with `best` in the place of `rows`."""
    if len(rows) == len(found.scores):
        return best
    for whole, part in (
        (found.tokens, best.tokens),
        (found.scores, best.scores),
        (found.new, best.new),
        (found.ended, best.ended),
    ):
        whole[rows] = part
    return found


def _returned(found: _Hypotheses, prompt: Prompt, count: int) -> Integers:
    width = prompt.length + int(found.new[:, :count].max())
    return found.tokens[:, :count, :width].reshape(len(prompt.tokens) * count, width)
