"""Read from a Whisper-class generation config with which tokens a transcript begins.

The decoder is told what to do by its first tokens: start, language, transcribe or translate, no
timestamps. Published checkpoints keep the tables of these tokens in `generation_config.json`
(`lang_to_id`, `task_to_id`, `no_timestamps_token_id`), older ones the tokens themselves
(`forced_decoder_ids`, pairs of place and token).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfc.errors import BadCheckpoint
from tfc.manifest import Speech

# What this module reads, so that the rest of the config is about the choice of tokens only.
PROMPT_FIELDS = (
    "forced_decoder_ids",
    "language",
    "task",
    "lang_to_id",
    "task_to_id",
    "no_timestamps_token_id",
    "return_timestamps",
    "is_multilingual",
)


def speech_of(config: Mapping[str, Any], where: str) -> Speech:
    """What the decoder's first tokens are made of.

    Raises:
        BadCheckpoint: the config asks for timestamps, or its tables are not tables of tokens.
    """
    if config.get("return_timestamps"):
        raise BadCheckpoint(
            "its generation config asks for timestamps, which tfc does not decode",
            where=where,
            fix="Set return_timestamps to false in generation_config.json",
        )
    languages = {_bare(name): int(i) for name, i in (config.get("lang_to_id") or {}).items()}
    tasks = {str(name): int(i) for name, i in (config.get("task_to_id") or {}).items()}
    language, task = config.get("language"), config.get("task")
    no_timestamps = config.get("no_timestamps_token_id")
    return Speech(
        languages=languages,
        tasks=tasks,
        language=_bare(str(language)) if language else "",
        task=str(task or ""),
        no_timestamps=int(no_timestamps) if no_timestamps is not None else None,
        forced=_forced(config) if not language and not task else [],
    )


def _forced(config: Mapping[str, Any]) -> list[int | None]:
    """The tokens of `forced_decoder_ids` from place 1 on; None where the language is open."""
    pairs = dict(config.get("forced_decoder_ids") or [])
    found: list[int | None] = []
    while len(found) + 1 in pairs:
        token = pairs[len(found) + 1]
        found.append(int(token) if token is not None else None)
    return found


def _bare(token: str) -> str:
    """`<|en|>` → `en`."""
    return token.lower().removeprefix("<|").removesuffix("|>")
