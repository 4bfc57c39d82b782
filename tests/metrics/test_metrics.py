"""The metrics of tasks, against scikit-learn, scipy and counting by hand."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from tfc.errors import BadData, MissingPackage, UsageError
from tfc.manifest import Task
from tfc.metrics import scorer_of
from tfc.metrics.answers import AnswerScorer, exact_match, normalized, word_f1
from tfc.metrics.base import UnknownLabel
from tfc.metrics.bootstrap import RESAMPLES, SEED, paired_differences
from tfc.metrics.classification import ClassificationScorer, LabelTally
from tfc.metrics.correlation import RegressionScorer, ScoreTally, SimilarityScorer
from tfc.metrics.entities import EntityScorer

LABELS = ["cancel", "refund", "other", "never"]


def label_tally(rows: int, seed: int, noise: float) -> tuple[Any, Any, LabelTally]:
    random = np.random.default_rng(seed)
    golds = random.integers(3, size=rows)
    predicted = np.where(random.random(rows) < noise, random.integers(3, size=rows), golds)
    return golds, predicted, LabelTally(golds.tolist(), predicted.tolist(), LABELS)


def test_accuracy_and_macro_f1_are_scikit_learns() -> None:
    golds, predicted, tally = label_tally(60, 1, 0.4)
    for rows in (np.arange(60), np.random.default_rng(0).integers(60, size=60), np.array([3, 3])):
        found = tally.values(rows)
        gold, said = golds[rows], predicted[rows]
        macro = sklearn_metrics.f1_score(
            gold, said, labels=np.unique(gold), average="macro", zero_division=0
        )
        assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(gold, said))
        assert found["macro F1"] == pytest.approx(macro)


def test_the_report_is_scikit_learns() -> None:
    golds, predicted, tally = label_tally(60, 2, 0.4)
    expected = sklearn_metrics.classification_report(
        golds, predicted, target_names=LABELS[:3], output_dict=True
    )
    report = tally.report()
    assert list(report) == LABELS[:3], "a class that is neither labelled nor predicted is left out"
    for label, line in report.items():
        names = {"f1": "f1-score"}
        wanted = {name: expected[label][names.get(name, name)] for name in line}
        assert line == pytest.approx(wanted)


def test_correlations_are_scipys() -> None:
    random = np.random.default_rng(3)
    golds = random.integers(6, size=40).astype(float)
    scores = golds + random.standard_normal(40)
    found = ScoreTally(golds.tolist(), scores.tolist()).values(np.arange(40))
    assert found["Spearman"] == pytest.approx(stats.spearmanr(golds, scores).statistic)
    assert found["Pearson"] == pytest.approx(np.corrcoef(golds, scores)[0, 1])
    assert np.isnan(ScoreTally([1.0, 1.0], [1.0, 2.0]).values(np.arange(2))["Pearson"])


def test_similarity_is_the_cosine() -> None:
    left, right = np.array([3.0, 4.0], np.float32), np.array([4.0, 3.0], np.float32)
    scorer = SimilarityScorer()
    assert scorer.answer([{"embedding": left}, {"embedding": right}]) == pytest.approx(24 / 25)
    assert scorer.answer([{"embedding": left}, {"embedding": 0 * right}]) == 0.0
    with pytest.raises(BadData, match="all labels are 2: nothing can be correlated with them"):
        scorer.check([2.0, 2.0], "pairs.jsonl")


@pytest.mark.parametrize("value", ["0.5", True, None, [1], float("nan")])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(BadData, match="the label is"):
        SimilarityScorer().gold(value)


def entity(start: int, end: int, label: str) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


def test_entities_count_by_exact_span_and_label() -> None:
    scorer = EntityScorer(["O", "B-PER", "I-PER", "LOC"])
    golds = [
        scorer.gold([entity(0, 3, "PER"), entity(5, 9, "B-LOC")]),
        scorer.gold([]),
        scorer.gold([entity(2, 4, "LOC")]),
    ]
    found = [
        [{"entities": [entity(0, 3, "PER"), entity(5, 8, "LOC")]}],  # a right one, a short one
        [{"entities": []}],
        [{"entities": [entity(2, 4, "PER")]}],  # another label
    ]
    tally = scorer.tally(golds, found)
    assert tally.values(np.arange(3)) == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "F1": 1 / 3}
    )
    assert tally.values(np.array([0, 0]))["F1"] == 0.5
    assert tally.values(np.array([1]))["F1"] == 0.0
    per = {"precision": 1 / 2, "recall": 1.0, "f1": 2 / 3, "support": 1.0}
    loc = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2.0}
    report = tally.report()
    assert list(report) == ["LOC", "PER"]
    assert report["LOC"] == loc
    assert report["PER"] == pytest.approx(per)
    assert scorer.answer(found[0]) == [[0, 3, "PER"], [5, 8, "LOC"]]
    assert scorer.change(golds[0], found[0], found[1]) == -0.5
    with pytest.raises(UnknownLabel, match="ORG"):
        scorer.gold([entity(0, 1, "ORG")])
    with pytest.raises(BadData, match="an entity needs start and end, in characters, and a label"):
        scorer.gold([{"start": 0, "label": "PER"}])


def test_answers_are_compared_as_squad_does() -> None:
    assert normalized(" The  Abbey, in a\tcity! ") == "abbey in city"
    assert normalized("Theatre") == "theatre"
    assert exact_match("the abbey", "Abbey.") == 1.0
    assert word_f1("Westminster Abbey in London", "the abbey in Westminster") == pytest.approx(
        6 / 7
    )
    assert word_f1("to to", "to") == pytest.approx(2 / 3), "words count as often as they stand"
    assert (word_f1("", ""), word_f1("", "x"), word_f1("x", "")) == (1.0, 0.0, 0.0)
    scorer = AnswerScorer()
    golds = [scorer.gold(["London", "in London"]), scorer.gold({"text": []})]
    tally = scorer.tally(golds, [[{"answer": "In london"}], [{"answer": "x"}]])
    assert tally.values(np.arange(2)) == {"F1": 0.5, "exact match": 0.5}


def test_labels_by_name_and_by_index() -> None:
    scorer = ClassificationScorer(LABELS)
    assert (scorer.gold("refund"), scorer.gold(2)) == (1, 2)
    for value in ("spam", 4, -1):
        with pytest.raises(UnknownLabel, match=str(value)):
            scorer.gold(value)
    for wrong in (True, 1.0, ["refund"]):
        with pytest.raises(BadData, match="not the name or the index of one"):
            scorer.gold(wrong)


def test_several_labels_per_row_are_counted_as_scikit_learn_does() -> None:
    random = np.random.default_rng(5)
    golds, given = random.random((2, 30, 4)) < 0.4
    golds[:, 3] = given[:, 3] = False
    scorer = scorer_of(Task("text-classification", "multi_label", LABELS))
    wanted = [scorer.gold(np.flatnonzero(row).tolist()) for row in golds]
    found = [[{"labels": [LABELS[i] for i in np.flatnonzero(row)]}] for row in given]
    tally = scorer.tally(wanted, found)
    for rows in (np.arange(30), random.integers(30, size=30)):
        pair, has = (golds[rows], given[rows]), golds[rows].any(axis=0)
        assert tally.values(rows) == pytest.approx(
            {
                "micro F1": sklearn_metrics.f1_score(*pair, average="micro"),
                "macro F1": sklearn_metrics.f1_score(
                    *pair, average="macro", labels=np.flatnonzero(has)
                ),
                "exact match": sklearn_metrics.accuracy_score(*pair),
            }
        )
    report = tally.report()
    assert list(report) == LABELS[:3]
    expected = sklearn_metrics.f1_score(golds, given, average=None, labels=[0, 1, 2])
    assert [line["f1"] for line in report.values()] == pytest.approx(expected.tolist())
    before, after = ({"scores": dict(zip(LABELS, s, strict=True))} for s in ([0.9] * 4, [0.6] * 4))
    assert scorer.change(scorer.gold(LABELS), [before], [after]) == pytest.approx(-0.3)
    assert scorer.change(scorer.gold(["refund"]), [before], [after]) == pytest.approx(0.3)
    with pytest.raises(BadData, match="the label is a text, not a list of labels"):
        scorer.gold("refund")
    with pytest.raises(UnknownLabel, match="spam"):
        scorer.gold(["refund", "spam"])


def test_the_interval_is_that_of_paired_draws() -> None:
    golds, before, reference = label_tally(50, 4, 0.1)
    after = np.where(np.arange(50) < 8, (golds + 1) % 3, before)
    engine = LabelTally(golds.tolist(), after.tolist(), LABELS)
    found = paired_differences(reference, engine, 50)["accuracy"]
    change = (after == golds).astype(float) - (before == golds)
    random = np.random.default_rng(SEED)
    draws = [change[random.integers(50, size=50)].mean() for _ in range(RESAMPLES)]
    assert found.value == pytest.approx(change.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert found.low < found.value < found.high < 0
    same = paired_differences(reference, reference, 50)["macro F1"]
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_tasks_without_metrics_and_packages_that_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="tfc has no metrics for fill-mask of this model"):
        scorer_of(Task("fill-mask"))
    with pytest.raises(UsageError, match=r"text-classification \(regression\)"):
        scorer_of(Task("text-classification", "regression", LABELS))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackage, match=r"'sklearn' is not .*pip install 'tfc\[eval\]'"):
        scorer_of(Task("text-classification", "single_label", LABELS))


def ranked() -> tuple[list[float], list[float], list[str]]:
    """Five queries: two of several rows, one of equal labels, two of one row."""
    random = np.random.default_rng(5)
    queries = ["a"] * 14 + ["b"] * 4 + ["c"] * 3 + ["d", "e"]
    golds = [*map(float, random.integers(4, size=14)), 0.0, 3.0, 1.0, 0.0, *[1.0] * 3, 2.0, 0.0]
    return golds, random.random(23).tolist(), queries


def test_ndcg_is_scikit_learns_over_the_queries_that_can_be_ranked() -> None:
    golds, scores, queries = ranked()
    order = np.random.default_rng(6).permutation(23)
    mixed = [[column[i] for i in order] for column in (golds, scores, queries)]
    tally = ScoreTally(*mixed)
    found = tally.values(np.arange(23))
    assert list(found) == ["nDCG@10", "Spearman", "Pearson"]
    expected = [
        sklearn_metrics.ndcg_score([golds[rows]], [scores[rows]], k=10)
        for rows in (slice(0, 14), slice(14, 18))
    ]
    assert found["nDCG@10"] == pytest.approx(np.mean(expected))
    units = {mixed[2][rows[0]]: rows for rows in tally.units}
    twice = np.concatenate([units["a"], units["d"], units["b"], units["a"]])
    weighted = (2 * expected[0] + expected[1]) / 3
    assert tally.values(twice)["nDCG@10"] == pytest.approx(weighted)
    assert np.isnan(tally.values(units["d"])["nDCG@10"])


def test_draws_take_whole_queries() -> None:
    golds, scores, queries = ranked()
    tally = ScoreTally(golds, scores, queries)
    worse = ScoreTally(golds, [-score for score in scores], queries)
    seen: list[list[int]] = []

    class Noting(ScoreTally):
        def values(self, rows: Any) -> dict[str, float]:
            seen.append(rows.tolist())
            return super().values(rows)

    found = paired_differences(Noting(golds, scores, queries), worse, 23)
    first = seen[1]
    for query in set(queries):
        rows = [place for place, name in enumerate(queries) if name == query]
        assert len({first.count(row) for row in rows}) == 1
    every = np.arange(23)
    change = worse.values(every)["nDCG@10"] - tally.values(every)["nDCG@10"]
    assert found["nDCG@10"].value == pytest.approx(change)
    assert found["nDCG@10"].low <= change <= found["nDCG@10"].high


@pytest.mark.parametrize(
    ("golds", "queries"),
    [([1.0, 2.0, 0.5], ["a", "b", "c"]), ([1.0, -2.0, 0.5], ["a", "a", "a"]), ([1.0, 2.0], [])],
    ids=["a row for each query", "a gain below zero", "no queries"],
)
def test_no_ranking_where_there_is_nothing_to_rank(golds: list[float], queries: list[str]) -> None:
    tally = ScoreTally(golds, [0.1, 0.2, 0.3][: len(golds)], queries)
    assert tally.units is None
    assert list(tally.values(np.arange(len(golds)))) == ["Spearman", "Pearson"]


def test_the_scorer_of_a_reranker_ranks_by_query() -> None:
    found = [[{"score": score}] for score in (0.9, 0.1, 0.5, 0.4)]
    tally = RegressionScorer().tally([1.0, 0.0, 0.0, 1.0], found, ["q", "q", "r", "r"])
    second = 1 / np.log2(3)  # the right one in the second place
    assert tally.values(np.arange(4))["nDCG@10"] == pytest.approx((1 + second) / 2)
