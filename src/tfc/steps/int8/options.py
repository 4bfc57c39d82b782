"""What a caller says of an int8 build."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from tfc.errors import UsageError
from tfc.steps.int8.forms import AUTO, CPU_FORMS
from tfc.steps.int8.rows import RowSource

INT8 = "int8"
METHODS = ("min-max", "percentile", "entropy", "mse")
# Those that `auto` compares. `entropy` takes half a second for each activation, and clips outliers
# that a transformer's output stands on: perf/int8.py has it last in every comparison.
COMPARED = ("min-max", "percentile", "mse")
# Half a point: what a classifier may lose before anyone asks why.
DEFAULT_MAX_DROP = 0.005


@dataclass(frozen=True)
class Int8Options:
    """How int8 is calibrated, and what it may cost.

    Attributes:
        rows: the data.
        method: how ranges are chosen: one of `METHODS`, or `auto` for the one that changes the
            output least.
        max_drop: how far the task's main metric may fall, or where rows have no labels the
            agreement with fp32: 0.005 is half a point.
        form: for ONNX Runtime's CPU provider `dynamic`, `static`, or `auto` for the faster one.
    """

    rows: RowSource
    method: str = AUTO
    max_drop: float = DEFAULT_MAX_DROP
    form: str = AUTO


def int8_options(
    calib: str | Path | None,
    *,
    method: str | None,
    max_drop: float | None,
    form: str | None,
    columns: tuple[str | None, str | None, str | None],
    limit: int | None,
) -> Int8Options:
    """The options as a caller gives them: None is the default, `columns` text, pair and label.

    Raises:
        UsageError: there is no data, or no such method or form, or the budget is no share.
    """
    if calib is None:
        raise UsageError(
            "int8 needs real text to find the ranges of its activations, and none was given",
            fix="Name a file of JSON lines like those that the model will read: --calib data.jsonl."
            " Random tokens are no substitute: their ranges do not fit",
        )
    method, form = method or AUTO, form or AUTO
    for kind, value, known in (("method", method, METHODS), ("form", form, CPU_FORMS)):
        if value not in (AUTO, *known):
            raise UsageError(
                f"int8 has no {kind} '{value}'", fix=f"Choose one of: {', '.join((AUTO, *known))}"
            )
    budget = DEFAULT_MAX_DROP if max_drop is None else max_drop
    if not 0 <= budget < 1:
        raise UsageError(f"max_drop {budget} is not possible", fix="Give a share: 0.005 is 0.5 %")
    text, pair, label = columns
    rows = RowSource(Path(calib), text, pair, label)
    rows = rows if limit is None else dataclasses.replace(rows, limit=limit)
    return Int8Options(rows, method, budget, form)
