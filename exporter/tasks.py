"""The task table: which transformers class loads a checkpoint, and what its graph gives."""

from __future__ import annotations

from dataclasses import dataclass

from tfc.errors import BadCheckpoint, UsageError
from tfc.exporter.source import Source

TEXT_CLASSIFICATION = "text-classification"
TOKEN_CLASSIFICATION = "token-classification"
FEATURE_EXTRACTION = "feature-extraction"


@dataclass(frozen=True)
class TaskSpec:
    """One task: its name, other names for it, the end of its architectures' names, its loader."""

    name: str
    aliases: tuple[str, ...]
    architecture_suffix: str
    auto_class: str


TASKS: tuple[TaskSpec, ...] = (
    TaskSpec(
        TEXT_CLASSIFICATION,
        ("sequence-classification", "sentiment-analysis"),
        "ForSequenceClassification",
        "AutoModelForSequenceClassification",
    ),
    TaskSpec(
        TOKEN_CLASSIFICATION,
        ("ner",),
        "ForTokenClassification",
        "AutoModelForTokenClassification",
    ),
    TaskSpec(
        FEATURE_EXTRACTION,
        ("sentence-similarity", "embedding"),
        "Model",
        "AutoModel",
    ),
)


def task_names() -> list[str]:
    """The tasks that `--task` takes."""
    return [task.name for task in TASKS]


def task_of(source: Source, asked: str | None) -> TaskSpec:
    """The task that was asked for, or the one that the checkpoint's architecture tells.

    Raises:
        UsageError: no task has the name that was asked for.
        BadCheckpoint: the architecture is of a task that tfc does not take.
    """
    if asked is not None:
        for task in TASKS:
            if asked == task.name or asked in task.aliases:
                return task
        raise UsageError(
            f"there is no task '{asked}'", fix=f"Choose one of: {', '.join(task_names())}"
        )
    if source.modules:
        return next(task for task in TASKS if task.name == FEATURE_EXTRACTION)
    for task in TASKS:
        if source.architecture.endswith(task.architecture_suffix):
            return task
    named = source.architecture or "no architecture in its config.json"
    raise BadCheckpoint(
        f"this checkpoint's task is not supported: {named}",
        where=source.given,
        fix=f"tfc exports {', '.join(task_names())}; choose one of them with --task if it applies",
    )
