"""Metrics of tasks on labelled rows: what a prediction is worth, and what an engine costs of it.

========================  ==========================  ==========================================
task                      a row's label               metrics, the first is the main one
========================  ==========================  ==========================================
text-classification       the name or the index of    accuracy, macro F1; precision, recall, F1
                          one of the model's labels   and support by class
… of several labels       a list of names or indices  micro F1, macro F1, exact match; by class
… of one number           a number                    nDCG@10 where rows share their first text
                                                      (a query); Spearman, Pearson
token-classification      a list of entities:         F1, precision, recall of entities whose
                          start, end, label           span and label are right; by label
question-answering        a list of answers           F1, exact match, as SQuAD counts them
feature-extraction        a number for two texts      as of one number, of the cosine
text2text-generation,     a text, or a list of texts  BLEU; ROUGE-1, ROUGE-2, ROUGE-L
text-generation           that would do
========================  ==========================  ==========================================
"""

from __future__ import annotations

from tfc.errors import UsageError
from tfc.manifest import Task
from tfc.metrics.answers import AnswerScorer
from tfc.metrics.base import Scorer
from tfc.metrics.classification import ClassificationScorer
from tfc.metrics.correlation import RegressionScorer, SimilarityScorer
from tfc.metrics.entities import EntityScorer
from tfc.metrics.multi_label import MultiLabelScorer
from tfc.metrics.texts import WrittenScorer
from tfc.runtime.tasks import GENERATION_TASKS
from tfc.runtime.tasks.classification import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from tfc.runtime.tasks.embedding import NO_POOLING


def scorer_of(task: Task) -> Scorer:
    """What reads the labels of a task and counts.

    Raises:
        UsageError: there are no metrics for such a model.
        MissingPackage: they need a package that is not installed.
    """
    if task.name == "text-classification" and task.problem == SINGLE_LABEL:
        return ClassificationScorer(task.labels)
    if task.name == "text-classification" and task.problem == MULTI_LABEL:
        return MultiLabelScorer(task.labels)
    if task.name == "text-classification" and task.problem == REGRESSION and len(task.labels) < 2:
        return RegressionScorer()
    if task.name == "token-classification":
        return EntityScorer(task.labels)
    if task.name == "question-answering":
        return AnswerScorer()
    if task.name == "feature-extraction" and task.pooling != NO_POOLING:
        return SimilarityScorer()
    if task.name in GENERATION_TASKS:
        return WrittenScorer()
    kind = f" ({task.problem})" if task.problem else ""
    raise UsageError(
        f"tfc has no metrics for {task.name}{kind} of this model",
        fix="Leave --label-column out: outputs are compared without it",
    )
