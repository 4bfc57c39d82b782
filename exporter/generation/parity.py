"""Do the graphs say, token by token, what the checkpoint says about the whole sequence?

The reference is the model's plain forward, without a cache, on each row alone and unpadded: it
shares neither the cache, nor the padding, nor the positions with the graphs. The graphs take the
same rows as a batch, padded, with garbage where the padding is: a prompt first, then the rest in
steps. The logits after every call must be the reference's at that position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tfc.exporter.comparison import (
    ExportParity,
    check_within_tolerance,
    outputs_of,
    session_from_onnx,
    worse,
)
from tfc.exporter.generation.cache import PAST, PRESENT
from tfc.exporter.generation.graphs import DECODER, ENCODER
from tfc.exporter.generation.seq2seq import SPEECH_INPUT, feature_shape
from tfc.runtime.padding import Feed

Array = npt.NDArray[Any]
# Long enough to leave the exact buckets of T5's positions (128) and any tiny model's limit, short
# enough for a large model on a CPU.
_LONGEST = 160
_SEED = 20


@dataclass(frozen=True)
class Scenario:
    """Rows of these lengths, taken in calls of these many tokens.

    The first call is the prompt, of which row `i` has `paddings[i]` tokens of padding: on the left
    of a decoder's rows, on the right of an encoder's, whose longest row has `source` tokens.
    """

    paddings: tuple[int, ...]
    calls: tuple[int, ...]
    source: int = 9


def scenarios_of(longest: int) -> tuple[Scenario, ...]:
    """Batches of one and of several, prompts of one and of many, steps of one and of several."""
    return (
        Scenario((0,), (1, 1, 1)),
        Scenario((0,), (7, 1, 1), source=1),
        Scenario((0, 3, 5), (6, 1, 1, 1)),
        Scenario((2, 0), (3, 4, 1, 2)),
        Scenario((0, 4), (longest - 2, 1, 1), source=longest),
    )


def check_generation(model: Any, graphs: Mapping[str, Path | bytes], where: str) -> ExportParity:
    """Run every scenario through the graphs and compare the logits after every call.

    Args:
        model: the checkpoint's model.
        graphs: the files, or the bytes, of what `graphs_from_model` gave.
        where: the checkpoint's name, for the message.

    Raises:
        CheckFailed: the largest difference is above `RELATIVE_TOLERANCE` of the logits' scale, or
            a graph does not run.
    """
    sessions = {name: session_from_onnx(graph, where) for name, graph in graphs.items()}
    random = np.random.default_rng(_SEED)
    parity = ExportParity(0.0, 0.0, 0)
    for scenario in scenarios_of(longest_of(model)):
        if ENCODER in sessions:
            trial = _seq2seq_trial(model, sessions[ENCODER], scenario, random, where)
        else:
            trial = _causal_trial(model, scenario, random)
        for done, logits in _called(sessions[DECODER], trial, scenario.calls, where):
            parity = worse(parity, trial.expected[:, done - 1], logits)
    check_within_tolerance(parity, where)
    return parity


def longest_of(model: Any) -> int:
    """The longest sequence to try: the model's own limit, or enough to see far positions."""
    names = ("max_position_embeddings", "max_target_positions")
    limits = [getattr(model.config, name, None) for name in names]
    return min([_LONGEST, *(int(limit) for limit in limits if limit)])


def logits_of_row(model: Any, **row: Array) -> Array:
    """The plain forward of one row: logits `[length, vocabulary]` of all its positions."""
    inputs = {name: torch.from_numpy(array[None]) for name, array in row.items()}
    with torch.no_grad():
        output = model(**inputs, use_cache=False, return_dict=True)
    logits: Array = output.logits[0].numpy()
    return logits


@dataclass(frozen=True)
class _Trial:
    """A batch, what the decoder is given with each call, and the logits `[batch, width, …]`."""

    ids: Array
    expected: Array
    fixed: Feed
    mask: Array | None = None


def _causal_trial(model: Any, scenario: Scenario, random: np.random.Generator) -> _Trial:
    """Rows padded on the left."""
    width = sum(scenario.calls)
    ids = _random_ids(model, random, (len(scenario.paddings), width))
    mask = np.ones_like(ids)
    rows = []
    for index, padding in enumerate(scenario.paddings):
        mask[index, :padding] = 0
        logits = logits_of_row(model, input_ids=ids[index, padding:])
        rows.append(np.pad(logits, ((padding, 0), (0, 0)), constant_values=np.nan))
    return _Trial(ids, np.stack(rows), {}, mask)


def _seq2seq_trial(
    model: Any, encoder: Any, scenario: Scenario, random: np.random.Generator, where: str
) -> _Trial:
    """Sources padded on the right, and what the encoder's graph makes of them."""
    batch = len(scenario.paddings)
    ids = _random_ids(model, random, (batch, sum(scenario.calls)))
    source, rows = _sources(model, scenario, random)
    expected = [
        logits_of_row(model, **row, decoder_input_ids=ids[index]) for index, row in enumerate(rows)
    ]
    fixed = _named_outputs(encoder, source, where)
    if "attention_mask" in source:
        fixed["encoder_attention_mask"] = source["attention_mask"]
    return _Trial(ids, np.stack(expected), fixed)


def _sources(
    model: Any, scenario: Scenario, random: np.random.Generator
) -> tuple[Feed, list[Feed]]:
    """The encoder's batch, and each of its rows alone."""
    batch = len(scenario.paddings)
    if model.main_input_name == SPEECH_INPUT:
        features = random.standard_normal((batch, *feature_shape(model)), dtype=np.float32)
        return {SPEECH_INPUT: features}, [{SPEECH_INPUT: row} for row in features]
    ids = _random_ids(model, random, (batch, scenario.source))
    mask = np.ones_like(ids)
    rows: list[Feed] = []
    for index, padding in enumerate(scenario.paddings):
        mask[index, scenario.source - padding :] = 0
        rows.append({"input_ids": ids[index, : scenario.source - padding]})
    return {"input_ids": ids, "attention_mask": mask}, rows


def _called(
    decoder: Any, trial: _Trial, calls: tuple[int, ...], where: str
) -> Iterator[tuple[int, Array]]:
    """How many tokens are done, and the last one's logits `[batch, vocabulary]`, call by call."""
    past = _no_past(decoder, len(trial.ids))
    done = 0
    for tokens in calls:
        new = trial.ids[:, done : done + tokens]
        done += tokens
        masks = {} if trial.mask is None else {"attention_mask": trial.mask[:, :done]}
        feed = {"input_ids": new, **masks, **trial.fixed, **past}
        present = _named_outputs(decoder, feed, where)
        logits = present.pop("logits")
        past = {name.replace(PRESENT, PAST): tensor for name, tensor in present.items()}
        yield done, logits if all(np.isfinite(p).all() for p in past.values()) else logits * np.nan


def _named_outputs(session: Any, feed: Feed, where: str) -> Feed:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, outputs_of(session, feed, where), strict=True))


def _no_past(decoder: Any, batch: int) -> Feed:
    """Keys and values of no token, in the layout that the graph declares."""
    return {
        value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
        for value in decoder.get_inputs()
        if value.name.startswith(f"{PAST}.")
    }


def _random_ids(model: Any, random: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Any ids but that of padding: M2M100 counts its positions without it, whatever the mask."""
    ids: Array = random.integers(0, model.get_input_embeddings().weight.shape[0], shape)
    padding = model.config.pad_token_id
    return np.where(ids == padding, 1 if padding == 0 else 0, ids)
