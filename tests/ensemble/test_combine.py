"""The formulas of an ensemble against numpy in fp64, for every rule and kind of model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tfc.errors import UsageError
from tfc.exporter.ensemble.combine import TIE_BREAKER, Combined
from tfc.exporter.ensemble.module import Concatenated
from tfc.manifest import Checkpoint, Ensemble, Member
from tfc.runtime.tasks.scores import sigmoid, softmax

WEIGHTS, TEMPERATURES = (0.5, 0.3, 0.2), (1.5, 1.0, 0.5)
ORDERS = ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2])
NO_CHECKPOINT = Checkpoint("", "", "", "", 0)


def combined(
    logits: list[np.ndarray],
    rule: str,
    problem: str,
    normalize: str = "softmax",
    weights: tuple[float, ...] = WEIGHTS,
    temperatures: tuple[float, ...] = (1.0, 1.0, 1.0),
    orders: tuple[list[int], ...] = ORDERS,
) -> np.ndarray:
    members = [
        Member(NO_CHECKPOINT, [], weight, temperature, [])
        for weight, temperature in zip(weights, temperatures, strict=True)
    ]
    module = Combined(Ensemble(rule, normalize, members), problem, orders)
    found: np.ndarray = module(*(torch.from_numpy(each).float() for each in logits)).numpy()
    return found


def members() -> list[np.ndarray]:
    """Logits of three members `[texts, labels]`, each in its own order; some rows steep."""
    random = np.random.default_rng(3)
    scale = np.array([1.0, 3.0, 30.0, 90.0])[:, None]
    return [random.standard_normal((4, 4)) * scale for _ in ORDERS]


def aligned(logits: list[np.ndarray]) -> np.ndarray:
    return np.stack([each[:, order] for each, order in zip(logits, ORDERS, strict=True)])


def mean_of(p: np.ndarray) -> np.ndarray:
    return np.einsum("m,mbl->bl", WEIGHTS, p)


@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
@pytest.mark.parametrize("rule", ["weighted", "max", "vote"])
def test_probabilities_are_combined(rule: str, problem: str) -> None:
    logits = members()
    function = softmax if problem == "single_label" else sigmoid
    x = aligned(logits)
    p = function(x)
    if rule == "weighted":
        expected = mean_of(p)
    elif rule == "max":
        expected = p.max(axis=0)
    elif problem == "single_label":
        share = (x.argmax(axis=-1)[..., None] == np.arange(4)).mean(axis=0)
        expected = (share + TIE_BREAKER * mean_of(p)) / (1 + TIE_BREAKER)
    else:
        expected = ((x >= 0).mean(axis=0) + TIE_BREAKER * mean_of(p)) / (1 + TIE_BREAKER)
    if problem == "single_label":
        expected = expected / expected.sum(axis=-1, keepdims=True)
    found = combined(logits, rule, problem)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(function(found), expected, atol=2e-6)


def test_logits_are_divided_by_their_temperature() -> None:
    logits = members()
    found = combined(logits, "weighted", "single_label", "temperature", temperatures=TEMPERATURES)
    p = softmax(aligned(logits) / np.array(TEMPERATURES)[:, None, None])
    np.testing.assert_allclose(softmax(found), mean_of(p), atol=2e-6)


def test_z_scores_are_averaged() -> None:
    logits = members()
    x = aligned(logits)
    z = (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)
    found = combined(logits, "weighted", "single_label", "zscore")
    np.testing.assert_allclose(found, mean_of(z), atol=1e-4)
    found = combined(logits, "max", "single_label", "zscore")
    np.testing.assert_allclose(found, z.max(axis=0), atol=1e-4)


def test_numbers_are_averaged_as_they_are() -> None:
    scores = [np.array([[0.5], [2.0]]), np.array([[1.5], [-2.0]]), np.array([[0.0], [1.0]])]
    orders = ([0], [0], [0])
    found = combined(scores, "weighted", "regression", "", orders=orders)
    np.testing.assert_allclose(found, [[0.7], [0.6]], atol=1e-6)
    found = combined(scores, "max", "regression", "", orders=orders)
    np.testing.assert_allclose(found, [[1.5], [2.0]], atol=1e-6)


@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_the_mean_decides_a_tie(problem: str) -> None:
    """Two members, two labels, one vote each: the surer member wins."""
    sure, unsure = np.array([[4.0, -4.0]]), np.array([[-0.5, 0.5]])
    for first, second in ((sure, unsure), (unsure, sure)):
        found = combined(
            [first, second],
            "vote",
            problem,
            weights=(0.5, 0.5),
            temperatures=(1.0, 1.0),
            orders=([0, 1], [0, 1]),
        )
        assert found[0, 0] > 0 > found[0, 1] or problem == "single_label"
        assert found.argmax() == 0
        share = (softmax if problem == "single_label" else sigmoid)(found)[0]
        np.testing.assert_allclose(share, 0.5, atol=2 * TIE_BREAKER)


def test_steep_logits_keep_their_order_in_half_precision_ranges() -> None:
    """A label that no member gives any probability to still has a finite logit."""
    logits = [np.array([[60.0, 0.0, -60.0]])] * 3
    orders = ([0, 1, 2],) * 3
    for rule in ("mean", "vote", "max"):
        found = combined(logits, rule, "single_label", orders=orders)
        assert np.isfinite(found).all()
        assert np.abs(found).max() < np.finfo(np.float16).max
        assert list(np.argsort(-found[0])) == [0, 1, 2]


def test_cosines_of_joined_embeddings_are_the_mean_of_the_members_cosines() -> None:
    random = np.random.default_rng(0)
    first, second = random.standard_normal((2, 8)), random.standard_normal((2, 5))
    joined = Concatenated((0.7, 0.3))(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    assert joined.shape == (2, 13)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1)
    cosines = [
        each[0] @ each[1] / np.linalg.norm(each[0]) / np.linalg.norm(each[1])
        for each in (first, second)
    ]
    np.testing.assert_allclose(joined[0] @ joined[1], 0.7 * cosines[0] + 0.3 * cosines[1])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((1, "mean", {}), "an ensemble has two members or more, and one checkpoint was given"),
        ((2, "median", {}), "there is no rule 'median'"),
        ((2, "mean", {"normalize": "rank"}), "there is no normalisation 'rank'"),
        ((2, "weighted", {}), "--ensemble weighted needs a number for each member"),
        ((2, "mean", {"weights": [1, 2]}), "--weights is read with --ensemble weighted only"),
        (
            (2, "weighted", {"weights": [1]}),
            "there are 2 members, and --weights has a number for 1",
        ),
        (
            (2, "weighted", {"weights": [1, -1]}),
            "--weights has -1, and each is to be a number above 0",
        ),
        (
            (2, "weighted", {"weights": [1, float("nan")]}),
            "--weights has nan, and each is to be a number above 0",
        ),
        (
            (2, "mean", {"normalize": "temperature"}),
            "--normalize temperature needs a number for each member",
        ),
        (
            (2, "mean", {"temperatures": [1, 2]}),
            "--temperature is read with --normalize temperature only",
        ),
    ],
)
def test_a_call_that_contradicts_itself(arguments: tuple, what: str) -> None:
    from tfc.ensemble import combination_of

    members, rule, options = arguments
    with pytest.raises(UsageError) as caught:
        combination_of(members, rule, **options)
    assert caught.value.what == what
    assert caught.value.fix


def test_weights_are_shares() -> None:
    from tfc.ensemble import combination_of

    assert combination_of(2, "weighted", weights=[3, 1]).weights == (0.75, 0.25)
    assert combination_of(4, "mean").weights == (0.25,) * 4
