"""Sampling: what is drawn from equals what transformers draws from, and a seed gives one text."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from tfc.errors import UsageError
from tfc.runtime.generation import (
    GenerationSettings,
    generate,
    settings_from_config,
    warpers,
)
from tfc.runtime.generation.numerics import log_softmax, softmax
from tfc.runtime.generation.processors import Prompt, processors_from_settings

# float32 scores of a few units, after at most three operations that round.
CLOSE = 1e-6
NEW = 5
WARPERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "temperature": {"temperature": 0.35, "top_k": 0},
    "hot": {"temperature": 2.5, "top_k": 0},
    "top-1": {"top_k": 1},
    "top-5": {"top_k": 5},
    "top-k-beyond-the-vocabulary": {"top_k": 500},
    "top-p": {"top_p": 0.8, "top_k": 0},
    "small-top-p": {"top_p": 0.05, "top_k": 0},
    "no-top-p": {"top_p": 0.0, "top_k": 0},
    "min-p": {"min_p": 0.1, "top_k": 0},
    "min-p-1": {"min_p": 1.0, "top_k": 0},
    "typical": {"typical_p": 0.5, "top_k": 0},
    "very-typical": {"typical_p": 0.95, "top_k": 0},
    "epsilon": {"epsilon_cutoff": 0.03, "top_k": 0},
    "eta": {"eta_cutoff": 0.05, "top_k": 0},
    "all": {
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "typical_p": 0.9,
        "epsilon_cutoff": 1e-3,
        "eta_cutoff": 1e-3,
        "renormalize_logits": True,
    },
    "after-constraints": {
        "top_k": 6,
        "top_p": 0.9,
        "repetition_penalty": 1.5,
        "suppress_tokens": [3, 4, 5],
        "bad_words_ids": [[7], [8, 9]],
        "min_new_tokens": 3,
        "typical_p": 0.8,
        "eta_cutoff": 0.01,
    },
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("chosen", WARPERS.values(), ids=WARPERS)
def test_the_distribution_is_that_of_transformers(chosen: dict[str, Any], beams: int) -> None:
    torch = pytest.importorskip("torch")
    from torch_decoders import prompts, reference

    tokens, mask = prompts("gpt2", 1, [4, 9, 2])
    asked = {"do_sample": True, "max_new_tokens": NEW, "num_beams": beams, **chosen}
    torch.manual_seed(0)
    wanted = reference(
        "gpt2",
        tokens,
        mask,
        **asked,
        eos_token_id=[2, 5],
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    settings = settings_from_config({**asked, "eos_token_id": [2, 5]})
    length = tokens.shape[1]
    padding = mask.argmax(axis=1)
    process = processors_from_settings(settings, Prompt(tokens, padding, None, length + NEW))
    rows = np.repeat(np.arange(3), beams)
    steps = len(wanted.scores) if beams == 1 else 1  # of beams, only the prompts are known
    for step in range(steps):
        logits = wanted.logits[step].numpy()
        stands = wanted.sequences[:, : length + step].numpy() if step else tokens[rows]
        found = process(stands, logits if beams == 1 else log_softmax(logits), rows)
        np.testing.assert_allclose(found, wanted.scores[step].numpy(), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("keep", [1, 3])
def test_equal_and_forbidden_scores_are_cut_as_transformers_cuts_them(keep: int) -> None:
    """Probabilities of exactly 1/4 and 1/2: sums that meet the bounds."""
    torch = pytest.importorskip("torch")
    logits_process = pytest.importorskip("transformers.generation.logits_process")
    out = -math.inf
    rows = [[0, 0, 0, 0, out, out], [0, out, 0, out, out, out], [out, out, out, 5, out, out]]
    scores = np.array([*rows, [1, 2, 2, 3, 3, 1]], np.float32)
    for warper, name, values in (
        (warpers.top_k, "TopKLogitsWarper", {"k": ("top_k", [1, 2, 6])}),
        (warpers.top_p, "TopPLogitsWarper", {"p": ("top_p", [0.25, 0.5, 0.75])}),
        (warpers.min_p, "MinPLogitsWarper", {"p": ("min_p", [0.5, 1.0])}),
        (warpers.typical, "TypicalLogitsWarper", {"p": ("mass", [0.25, 0.5, 0.9])}),
        (warpers.epsilon_cutoff, "EpsilonLogitsWarper", {"epsilon": ("epsilon", [0.25, 0.3])}),
        (warpers.eta_cutoff, "EtaLogitsWarper", {"epsilon": ("epsilon", [0.25, 0.5])}),
    ):
        ((own, (theirs, numbers)),) = values.items()
        for number in numbers:
            rule = getattr(logits_process, name)(**{theirs: number}, min_tokens_to_keep=keep)
            expected = rule(None, torch.from_numpy(scores)).numpy()
            found = warper(np.zeros(0), scores, np.zeros(0), keep=keep, **{own: number})
            np.testing.assert_array_equal(found, expected, f"{name} {number}")


class Table:
    """A model whose scores depend on the last token alone; its cache is a count of the tokens."""

    def __init__(self, vocabulary: int, spread: float = 2.0) -> None:
        random = np.random.default_rng(5)
        self.table = random.normal(0, spread, (vocabulary, vocabulary)).astype(np.float32)

    def step(self, input_ids: Any, attention_mask: Any, cache: Any) -> tuple[Any, Any]:
        past = np.zeros(len(input_ids), int) if cache is None else cache
        assert (past + input_ids.shape[1] == attention_mask.shape[1]).all()
        return self.table[input_ids[:, -1]], past + input_ids.shape[1]

    def reorder(self, cache: Any, indices: Any) -> Any:
        return cache[indices]


SAMPLED = GenerationSettings(do_sample=True, max_new_tokens=12, eos_token_id=(2,), pad_token_id=0)
PROMPTS = np.array([[3, 4], [5, 6], [7, 8], [5, 6]])


def test_tokens_are_drawn_by_their_probability() -> None:
    draws = 20_000
    settings = GenerationSettings(
        do_sample=True, max_new_tokens=1, top_k=4, num_return_sequences=draws
    )
    model = Table(10)
    found = generate(model, np.array([[1, 2]]), settings, seed=1)
    shares = np.bincount(found[:, -1], minlength=10) / draws
    scores = model.table[2][None]
    scores = np.where(scores < np.sort(scores)[0, -4], -np.inf, scores)
    expected = softmax(scores)[0]
    # Five standard deviations of a share: one run in a million exceeds them by chance.
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_a_seed_gives_one_text_however_rows_are_batched(beams: int) -> None:
    settings = GenerationSettings(
        do_sample=True,
        num_beams=beams,
        num_return_sequences=2,
        max_new_tokens=12,
        eos_token_id=(2,),
        pad_token_id=9,
    )
    model = Table(30)
    whole = generate(model, PROMPTS, settings, seed=7)
    assert np.array_equal(whole, generate(model, PROMPTS, settings, seed=7))
    assert not np.array_equal(whole, generate(model, PROMPTS, settings, seed=8))
    for row in (3, 1, 0):
        alone = generate(model, PROMPTS[row : row + 1], settings, seed=7, rows=[row])
        together = whole[2 * row : 2 * row + 2]
        assert np.array_equal(together[:, : alone.shape[1]], alone)
        assert (together[:, alone.shape[1] :] == 9).all()


def test_equal_prompts_and_copies_are_drawn_apart() -> None:
    settings = GenerationSettings(do_sample=True, max_new_tokens=12, num_return_sequences=2)
    found = generate(Table(30), PROMPTS, settings, seed=3).tolist()
    assert found[2][:2] == found[3][:2] == found[6][:2] == [5, 6]
    assert len({tuple(row) for row in (found[2], found[3], found[6], found[7])}) == 4


def test_sampling_never_writes_what_is_cut_off() -> None:
    model = Table(30)
    settings = GenerationSettings(do_sample=True, max_new_tokens=200, top_k=2)
    found = generate(model, PROMPTS, settings, seed=0)
    best = np.argsort(-model.table, axis=1)[:, :2]
    for row in found:
        for last, token in itertools.pairwise(row[1:]):
            assert token in best[last]


def test_sampling_with_the_likeliest_alone_is_greedy() -> None:
    greedy = generate(Table(30), PROMPTS, GenerationSettings(max_new_tokens=9))
    sampled = GenerationSettings(max_new_tokens=9, do_sample=True, top_k=1)
    assert np.array_equal(greedy, generate(Table(30), PROMPTS, sampled, seed=11))


def test_beams_are_drawn_without_replacement() -> None:
    """Two beams of one token: the pair {a, b} has the chance p_a·p_b·(1/(1-p_a) + 1/(1-p_b))."""
    draws = 3000
    model = Table(3, spread=1.0)
    settings = GenerationSettings(
        do_sample=True, num_beams=2, num_return_sequences=2, max_new_tokens=1, top_k=0
    )
    prompt = np.full((draws, 1), 1)
    pairs = np.sort(generate(model, prompt, settings, seed=2)[:, -1].reshape(draws, 2), axis=1)
    p = softmax(model.table[1][None])[0].astype(float)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        expected = p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b]))
        share = np.mean((pairs == [a, b]).all(axis=1))
        assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / draws)


def test_every_prompt_has_its_row_number() -> None:
    with pytest.raises(UsageError, match="3 row numbers are given for 4 prompts"):
        generate(Table(30), PROMPTS, SAMPLED, rows=[0, 1, 2])


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="the seed is -1"):
        generate(Table(30), PROMPTS, SAMPLED, seed=-1)
