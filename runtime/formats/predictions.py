"""What the predictions of a task hold, field by field: the columns that CSV and Parquet need.

They follow from the model alone, not from what was predicted, so that every shard of a job and
every job of a model have the same. JSON lines need none of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tfc.errors import UsageError
from tfc.manifest import Signature
from tfc.manifest import Task as TaskRecord

TEXT, NUMBER, INTEGER, TEXTS, SCORES = "text", "number", "integer", "texts", "scores"
VECTOR, VECTORS, RECORDS, TABLE = "vector", "vectors", "records", "table"
RECORD = "record"


@dataclass(frozen=True)
class Field:
    """One field of a prediction.

    Attributes:
        name: its key.
        kind: ``text``, ``number``, ``integer``, ``texts``; ``scores``: text → number; ``vector``
            `[size]` and ``vectors`` `[tokens, size]` of floats; ``record``: `parts`;
            ``records``: a list of them;
            ``table``: a list of lists of them.
        size: of a vector; None where the model does not tell.
        parts: the fields of a record.
    """

    name: str
    kind: str
    size: int | None = None
    parts: tuple[Field, ...] = ()


_PLACES = (Field("start", INTEGER), Field("end", INTEGER))
_ANSWER = (Field("answer", TEXT), Field("score", NUMBER), *_PLACES)
_ENTITY = (Field("label", TEXT), Field("score", NUMBER), *_PLACES, Field("text", TEXT))
_TOKEN = (
    Field("token_str", TEXT),
    Field("token", INTEGER),
    Field("score", NUMBER),
    Field("sequence", TEXT),
)
_BEST = (Field("label", TEXT), Field("score", NUMBER), Field("scores", SCORES))
# `answers` and `texts` are null where a job asks for one only.
_WRITTEN = (Field("text", TEXT), Field("texts", TEXTS))
_BY_TASK = {
    "zero-shot-classification": _BEST,
    "token-classification": (Field("entities", RECORDS, parts=_ENTITY),),
    "question-answering": (*_ANSWER, Field("answers", RECORDS, parts=_ANSWER)),
    "fill-mask": (Field("masks", TABLE, parts=_TOKEN),),
    "text-generation": _WRITTEN,
    "text2text-generation": _WRITTEN,
    "automatic-speech-recognition": _WRITTEN,
}
_BY_PROBLEM = {
    "single_label": _BEST,
    "multi_label": (Field("labels", TEXTS), Field("scores", SCORES)),
    "regression": (Field("score", NUMBER),),
}
_EMBEDDINGS = {
    "embedding": ("embedding", VECTOR),
    "last_hidden_state": ("token_embeddings", VECTORS),
}


def prediction_fields(task: TaskRecord, signature: Signature) -> tuple[Field, ...]:
    """The fields of every prediction of a model.

    Raises:
        UsageError: the model takes tensors only.
    """
    if task.name in _BY_TASK:
        return _BY_TASK[task.name]
    if task.heads:
        return tuple(
            Field(name, RECORD, parts=prediction_fields(head, signature))
            for name, head in task.heads.items()
        )
    if task.name in ("text-classification", "image-classification"):
        several = task.problem == "regression" and len(task.labels) > 1
        return (Field("scores", SCORES),) if several else _BY_PROBLEM[task.problem]
    outputs = {spec.name: spec.shape[-1] for spec in signature.outputs}
    for output, (name, kind) in _EMBEDDINGS.items():
        if task.name.endswith("feature-extraction") and output in outputs:
            size = outputs[output]
            return (Field(name, kind, size if isinstance(size, int) else None),)
    raise UsageError(
        f"the predictions of {task.name} have no columns",
        fix="Write JSON lines: give the output a name that ends with .jsonl",
    )
