"""Which rules the settings ask for, in the order in which transformers 5 applies them.

The order is that of `GenerationMixin._get_logits_processor`. It matters: a token that is forced
can still be suppressed afterwards, and a temperature comes before a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from tfc.errors import UsageError
from tfc.runtime.generation import constraints, warpers
from tfc.runtime.generation.numerics import Floats, Integers
from tfc.runtime.generation.settings import GenerationSettings


class Processor(Protocol):
    """One rule: scores → scores."""

    def __call__(self, tokens: Integers, scores: Floats, rows: Integers) -> Floats:
        """New scores `[sequences, vocabulary]` (`tfc.runtime.generation.constraints`)."""


@dataclass(frozen=True)
class Prompt:
    """What generation goes on from.

    `tokens` `[rows, length]` are padded on the left, by `padding` `[rows]` tokens each; `source`
    `[rows, source length]` is what the `encoder_*` settings compare with, None where there is no
    such text. `limit` is the most tokens that a sequence may have, its prompt included.
    """

    tokens: Integers
    padding: Integers
    source: Integers | None
    limit: int

    @property
    def length(self) -> int:
        """The tokens of each row, padding included."""
        return int(self.tokens.shape[1])


@dataclass(frozen=True)
class Processors:
    """Rules, one after the other."""

    rules: Sequence[Processor]

    def __call__(self, tokens: Integers, scores: Floats, rows: Integers) -> Floats:
        """New scores `[sequences, vocabulary]` (`tfc.runtime.generation.constraints`)."""
        # Where rules forbid every token there is no probability; the search refuses such scores.
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for rule in self.rules:
                scores = rule(tokens, scores, rows)
        return scores


def processors_from_settings(settings: GenerationSettings, prompt: Prompt) -> Processors:
    """The rules of `settings` for rows that go on from `prompt`.

    Raises:
        UsageError: an `encoder_*` setting is given, and the prompt has no source text.
    """
    rules = [*_penalties(settings, prompt), *_lengths(settings, prompt)]
    if settings.do_sample:
        rules += _warpers(settings)
    if settings.renormalize_logits:
        rules.append(warpers.normalised)
    return Processors(rules)


def check_vocabulary(settings: GenerationSettings, vocabulary: int) -> None:
    """Refuse tokens that the settings force or bias and that the model cannot write.

    Raises:
        UsageError: a token is not below `vocabulary`.
    """
    named: dict[str, Sequence[int | None]] = {
        "forced_bos_token_id": [settings.forced_bos_token_id],
        "forced_eos_token_id": settings.forced_eos_token_id,
        "bad_words_ids": [token for word in settings.bad_words_ids for token in word],
        "sequence_bias": [token for tokens, _ in settings.sequence_bias for token in tokens],
    }
    for name, tokens in named.items():
        wrong = [token for token in tokens if token is not None and not 0 <= token < vocabulary]
        if wrong:
            raise UsageError(
                f"{name} has the token {wrong[0]}, and the model has {vocabulary} tokens",
                fix=f"Take it out of {name}",
            )


def _penalties(settings: GenerationSettings, prompt: Prompt) -> list[Processor]:
    """What depends on the tokens that stand already."""
    rules: list[Processor] = []
    if settings.sequence_bias:
        biases = list(dict(settings.sequence_bias).items())
        rules.append(partial(constraints.sequence_bias, biases=biases))
    if settings.encoder_repetition_penalty != 1:
        source = _source(prompt, "encoder_repetition_penalty")
        penalty = settings.encoder_repetition_penalty
        rules.append(
            partial(constraints.encoder_repetition_penalty, penalty=penalty, source=source)
        )
    if settings.repetition_penalty != 1:
        penalty, padding = settings.repetition_penalty, prompt.padding
        rules.append(partial(constraints.repetition_penalty, penalty=penalty, padding=padding))
    if size := settings.no_repeat_ngram_size:
        rules.append(partial(constraints.no_repeated_ngram, size=size))
    if size := settings.encoder_no_repeat_ngram_size:
        source = _source(prompt, "encoder_no_repeat_ngram_size")
        rules.append(partial(constraints.no_encoder_ngram, size=size, source=source))
    if settings.bad_words_ids:
        ends = {(token,) for token in settings.eos_token_id}  # an end alone is no bad word
        words = [word for word in dict.fromkeys(settings.bad_words_ids) if word not in ends]
        biases = [(word, -np.inf) for word in words]
        rules.append(partial(constraints.sequence_bias, biases=biases))
    return rules


def _lengths(settings: GenerationSettings, prompt: Prompt) -> list[Processor]:
    """What depends on how many tokens stand, and the tokens that are never written."""
    rules: list[Processor] = []
    forced_at, suppressed_at = constraints.forced_at, constraints.suppressed_at
    first, ends = settings.forced_bos_token_id, settings.eos_token_id
    shortest = settings.min_length
    if settings.min_new_tokens is not None:
        shortest = settings.min_new_tokens + prompt.length
    if shortest and ends:
        rules.append(partial(constraints.min_length, length=shortest, ends=ends))
    if first is not None:
        rules.append(partial(forced_at, length=1, only=[first]))
    if last := settings.forced_eos_token_id:
        rules.append(partial(forced_at, length=prompt.limit - 1, only=last))
    if settings.remove_invalid_values:
        rules.append(constraints.only_finite)
    if settings.exponential_decay_length_penalty is not None:
        start, factor = settings.exponential_decay_length_penalty
        start += prompt.length
        rules.append(partial(constraints.length_decay, start=start, factor=factor, ends=ends))
    if settings.suppress_tokens:
        rules.append(partial(suppressed_at, suppressed=settings.suppress_tokens, length=None))
    if suppressed := settings.begin_suppress_tokens:
        # A forced first token is not what begins the text: the one after it does.
        begin = prompt.length + (prompt.length == 1 and first is not None)
        rules.append(partial(suppressed_at, suppressed=suppressed, length=begin))
    return rules


def _warpers(settings: GenerationSettings) -> list[Processor]:
    """What only sampling does."""
    # Beams that all end at once would leave nothing to go on with: one token more stays.
    keep = 1 if settings.num_beams == 1 else max(2, len(settings.eos_token_id) + 1)
    rules: list[Processor] = []
    if settings.temperature != 1:
        rules.append(partial(warpers.temperature, temperature=settings.temperature))
    if settings.top_k:
        rules.append(partial(warpers.top_k, k=settings.top_k, keep=keep))
    if settings.top_p < 1:
        rules.append(partial(warpers.top_p, p=settings.top_p, keep=keep))
    if settings.min_p is not None:
        rules.append(partial(warpers.min_p, p=settings.min_p, keep=keep))
    if settings.typical_p < 1:
        rules.append(partial(warpers.typical, p=settings.typical_p, keep=keep))
    if settings.epsilon_cutoff:
        rules.append(partial(warpers.epsilon_cutoff, epsilon=settings.epsilon_cutoff, keep=keep))
    if settings.eta_cutoff:
        rules.append(partial(warpers.eta_cutoff, epsilon=settings.eta_cutoff, keep=keep))
    return rules


def _source(prompt: Prompt, name: str) -> Integers:
    if prompt.source is None:
        raise UsageError(
            f"{name} compares with the tokens of the source, and there are none",
            fix=f"Take {name} out of the generation config",
        )
    return prompt.source
