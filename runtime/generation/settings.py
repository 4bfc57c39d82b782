"""What decides the tokens, besides the model: the fields of a generation config that tfc honours.

A field means what it means in transformers' `GenerationConfig`, and has the default that
`model.generate` gives it. A field that would change the tokens and is not honoured here is
refused, never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tfc.errors import UsageError

EarlyStopping = bool | Literal["never"]

# Fields of published configs that leave the tokens as they are: what `generate` returns beside
# them, how it caches and compiles, what an assistant model would need, who wrote the file, and
# the tables from which a caller of Whisper makes its prompt.
NO_EFFECT = frozenset(
    (
        "transformers_version",
        "_from_model_config",
        "_commit_hash",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "use_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "prefill_chunk_size",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "max_matching_ngram_size",
        "alignment_heads",
        "is_multilingual",
        "lang_to_id",
        "task_to_id",
        "no_timestamps_token_id",
        "prev_sot_token_id",
        "max_initial_timestamp_index",
        "median_filter_width",
    )
)
# The values at which fields that are not honoured do nothing; a field not named here: None, False.
DOES_NOTHING = {
    "diversity_penalty": 0.0,
    "guidance_scale": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "prompt_lookup_num_tokens": 0,
}
PROMPT_FIELDS = ("forced_decoder_ids", "language", "task")


@dataclass(frozen=True)
class GenerationSettings:
    """How tokens are chosen. Greedy search of 20 tokens where nothing is given.

    `max_new_tokens` goes before `max_length`, and `min_new_tokens` before `min_length`; the two
    lengths count the prompt. `early_stopping` and `length_penalty` matter with several beams,
    `temperature` and the fields after it with `do_sample`.

    Raises:
        UsageError: a value is out of its range, or two values contradict each other.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0
    num_return_sequences: int = 1

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    encoder_repetition_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    renormalize_logits: bool = False

    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self) -> None:
        for name, (fits, wanted) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise UsageError(f"{name} is {value}", fix=f"Give {wanted}")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            self._check_not_suppressed(name)
        if self.num_return_sequences > self.num_beams and not self._samples_alone:
            raise UsageError(
                f"{self.num_return_sequences} sequences cannot come of {self.num_beams} beams",
                fix="Give num_return_sequences of at most num_beams, or do_sample without beams",
            )
        if self.exponential_decay_length_penalty is not None and not self.eos_token_id:
            raise UsageError(
                "exponential_decay_length_penalty raises the end token, and there is none",
                fix="Give eos_token_id",
            )

    @property
    def _samples_alone(self) -> bool:
        return self.do_sample and self.num_beams == 1

    def _check_not_suppressed(self, name: str) -> None:
        value = getattr(self, name)
        forced = {value} if isinstance(value, int) else set(value or ())
        if forced and forced <= set(self.suppress_tokens):
            raise UsageError(
                f"every token of {name} is also in suppress_tokens, which leaves none",
                fix=f"Take it out of {name} or of suppress_tokens",
            )


Fits = Callable[[Any], bool]
_POSITIVE: tuple[Fits, str] = (lambda value: value > 0, "a number above 0")
_COUNT: tuple[Fits, str] = (lambda value: value >= 1, "1 or more")
_NOT_NEGATIVE: tuple[Fits, str] = (lambda value: value >= 0, "0 or more")
_SHARE: tuple[Fits, str] = (lambda value: 0 < value <= 1, "a number above 0, up to 1")
_CUTOFF: tuple[Fits, str] = (lambda value: 0 <= value < 1, "a number from 0, below 1")
_NO_EMPTY: tuple[Fits, str] = (all, "sequences of one token or more")
_RANGES: dict[str, tuple[Fits, str]] = {
    "max_new_tokens": _COUNT,
    "max_length": _COUNT,
    "min_new_tokens": _NOT_NEGATIVE,
    "min_length": _NOT_NEGATIVE,
    "num_return_sequences": _COUNT,
    "num_beams": _COUNT,
    "early_stopping": (lambda value: value in (True, False, "never"), "true, false or 'never'"),
    "temperature": _POSITIVE,
    "top_k": _NOT_NEGATIVE,
    "top_p": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "min_p": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "typical_p": _SHARE,
    "epsilon_cutoff": _CUTOFF,
    "eta_cutoff": _CUTOFF,
    "sequence_bias": (lambda value: all(tokens for tokens, _ in value), _NO_EMPTY[1]),
    "encoder_repetition_penalty": _POSITIVE,
    "repetition_penalty": _POSITIVE,
    "no_repeat_ngram_size": _NOT_NEGATIVE,
    "encoder_no_repeat_ngram_size": _NOT_NEGATIVE,
    "bad_words_ids": _NO_EMPTY,
}


def settings_from_config(config: Mapping[str, Any]) -> GenerationSettings:
    """The settings that a generation config (`generation_config.json`, parsed) asks for.

    A field that is absent or null has its default. `eos_token_id` and `forced_eos_token_id` may
    be one token or several.

    Raises:
        UsageError: a field has the wrong type or is out of range, or would change the tokens in
            a way that tfc does not honour.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(GenerationSettings)}
    values = {}
    for name, value in config.items():
        if value is None or name in NO_EFFECT:
            continue
        if name in fields:
            values[name] = _read(name, fields[name], value)
        elif value is not False and value != DOES_NOTHING.get(name):
            raise _not_honoured(name, value)
    return GenerationSettings(**values)


def config_from_settings(settings: GenerationSettings) -> dict[str, Any]:
    """The settings as JSON values; `settings_from_config` reads them back the same."""
    found: dict[str, Any] = _without_tuples(dataclasses.asdict(settings))
    return found


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_tuples(item) for name, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, tuple) else value


def _not_honoured(name: str, value: Any) -> UsageError:
    fix = "Give its tokens as the start of the decoder's prompt" if name in PROMPT_FIELDS else ""
    return UsageError(
        f"the generation config sets {name} to {value!r}, which tfc does not honour",
        fix=fix or f"Take {name} out of the generation config; the text will differ from its own",
    )


def _read(name: str, kind: str, value: Any) -> Any:
    try:
        return _READERS[kind.removesuffix(" | None")](value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} is {value!r} in the generation config", fix=f"Give {error}"
        ) from error


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("an integer")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError("a number")
    return float(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _early_stopping(value: Any) -> EarlyStopping:
    return "never" if value == "never" else _boolean(value)


def _tokens(value: Any) -> tuple[int, ...]:
    """One token, or a list of them."""
    items = _items(value) if isinstance(value, (list, tuple)) else (value,)
    return tuple(_integer(item) for item in items)


def _sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(_integer, _items(tokens))) for tokens in _items(value))


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    pairs = [_pair(item) for item in _items(value)]
    return tuple((tuple(map(_integer, _items(tokens))), _number(bias)) for tokens, bias in pairs)


def _decay(value: Any) -> tuple[int, float]:
    start, factor = _pair(value)
    return _integer(start), _number(factor)


def _pair(value: Any) -> tuple[Any, ...]:
    items = _items(value)
    if len(items) != 2:
        raise ValueError("a list of two values")
    return items


def _items(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("a list")
    return tuple(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _integer,
    "float": _number,
    "bool": _boolean,
    "EarlyStopping": _early_stopping,
    "tuple[int, ...]": _tokens,
    "tuple[tuple[int, ...], ...]": _sequences,
    "tuple[tuple[tuple[int, ...], float], ...]": _biases,
    "tuple[int, float]": _decay,
}
