"""The first tokens of a transcript: start, language, what to do, no timestamps.

As transformers' Whisper makes them: a language that is named is taken, with `transcribe` unless
another task is named; a language that is left open is the one whose token the model finds the
likeliest after the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfc.errors import UsageError
from tfc.manifest import Speech
from tfc.runtime.generation.decoder import Decoder
from tfc.runtime.generation.numerics import Integers

_DEFAULT_TASK = "transcribe"


def speech_start(
    decoder: Decoder[Any], start: Integers, speech: Speech, language: str | None, task: str | None
) -> Integers:
    """What the decoder begins with, `[batch, tokens]`.

    Args:
        decoder: runs the model on the recordings of the batch; used where a language is open.
        start: `[batch, 1]`, the first token.
        speech: the model's tables of tokens.
        language: a code such as `de`; None is the model's own.
        task: `transcribe` or `translate`; None is the model's own.

    Raises:
        UsageError: the model does not know the language or the task.
    """
    named = language or speech.language
    wanted = task or speech.task or (_DEFAULT_TASK if named and speech.tasks else "")
    forced = [] if language or task else list(speech.forced)
    columns: list[Integers] = [start]
    if named:
        columns.append(_constant(start, _token(speech.languages, named, "language")))
    elif speech.languages and (not forced or forced[0] is None):
        columns.append(_detected(decoder, start, speech))
    elif forced and forced[0] is not None:
        columns.append(_constant(start, forced[0]))
    columns += [_constant(start, token) for token in forced[1:] if token is not None]
    if wanted:
        columns.append(_constant(start, _token(speech.tasks, wanted, "task")))
    last = speech.no_timestamps
    if last is not None and not (columns[-1] == last).all():
        columns.append(_constant(start, last))
    return np.concatenate(columns, axis=1)


def _detected(decoder: Decoder[Any], start: Integers, speech: Speech) -> Integers:
    """The likeliest language of each row, `[batch, 1]`."""
    logits, _ = decoder.step(start, np.ones_like(start), None)
    ids = np.array(sorted(speech.languages.values()))
    return np.asarray(ids[logits[:, ids].argmax(axis=1)][:, None])


def _constant(start: Integers, token: int) -> Integers:
    return np.full_like(start, token)


def _token(table: Mapping[str, int], name: str, what: str) -> int:
    if name not in table:
        raise UsageError(
            f"this model knows no {what} '{name}'",
            fix=f"It knows: {', '.join(sorted(table)) or 'none, it has one only'}",
        )
    return table[name]
