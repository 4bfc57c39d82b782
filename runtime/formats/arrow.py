"""Rows and predictions as Arrow arrays: what Parquet takes and gives. Imports pyarrow.

A prediction is one column of structs. Embeddings are fixed-size lists of float32 or float16, made
of the arrays as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tfc.errors import BadData
from tfc.runtime.formats.predictions import (
    INTEGER,
    NUMBER,
    RECORD,
    RECORDS,
    SCORES,
    TABLE,
    TEXT,
    TEXTS,
    VECTOR,
    VECTORS,
    Field,
)
from tfc.runtime.predictor import Outcome
from tfc.runtime.rows import json_bytes, json_type, unknown_field

Predictions = Sequence[Mapping[str, Any]]
_SIMPLE = {
    TEXT: pa.string(),
    NUMBER: pa.float64(),
    INTEGER: pa.int64(),
    TEXTS: pa.list_(pa.string()),
    SCORES: pa.map_(pa.string(), pa.float64()),
}


@dataclass(frozen=True)
class ArrowContent:
    """Row `index` of a record batch."""

    batch: Any
    index: int

    def as_dict(self) -> dict[str, Any]:
        """The fields as Python values; bytes of a text that are no UTF-8 as `\\xNN`."""
        names = self.batch.schema.names
        return {name: _value(self.batch.column(i)[self.index]) for i, name in enumerate(names)}

    def as_text(self) -> str:
        """The row as JSON."""
        return json_bytes(self.as_dict()).decode(errors="replace").rstrip("\n")


def prediction_type(fields: Sequence[Field], half: bool) -> Any:
    """The struct of a task's fields; its vectors hold float16 if `half`, else float32."""
    return pa.struct([(field.name, _type(field, half)) for field in fields])


def prediction_array(predictions: Predictions, fields: Sequence[Field], half: bool) -> Any:
    """The predictions as one array of structs."""
    columns = [_column([p.get(field.name) for p in predictions], field, half) for field in fields]
    kind = prediction_type(fields, half)
    return pa.StructArray.from_arrays(columns, fields=list(kind))


def prediction_columns(
    outcomes: Sequence[Outcome], fields: Sequence[Field], half: bool
) -> tuple[Any, Any]:
    """The predictions, and why there is none: of each row one of the two is null."""
    good = [outcome.prediction for outcome in outcomes if outcome.error is None]
    places = iter(range(len(good)))
    taken = [None if outcome.error else next(places) for outcome in outcomes]
    predictions = prediction_array(good, fields, half).take(pa.array(taken, pa.int64()))
    reasons = [None if outcome.error is None else outcome.error.what for outcome in outcomes]
    return predictions, pa.array(reasons, pa.string())


def inferred_schema(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The columns of rows of JSON, in the order in which they first appear.

    A field with values of several types, and one of nulls only, becomes a column of texts.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([(name, _inferred([row.get(name) for row in rows])) for name in names])


def row_problem(fields: Mapping[str, Any], schema: Any) -> BadData | None:
    """Why a row of JSON does not fit columns that earlier rows gave; None if it does."""
    for name, value in fields.items():
        place = schema.get_field_index(name)
        if place < 0:
            return unknown_field(name)
        try:
            pa.array([_fitting(value, schema.field(place).type)], schema.field(place).type)
        except (pa.ArrowException, OverflowError, UnicodeError):
            kind = schema.field(place).type
            return BadData(f"the field '{name}' is {json_type(value)}, and its column is {kind}")
    return None


def all_fit(rows: Sequence[Mapping[str, Any]], schema: Any) -> bool:
    """Whether every row fits the columns; quicker than to ask `row_problem` of each."""
    if any(row.keys() - set(schema.names) for row in rows):
        return False
    try:
        table_of_dicts(rows, schema)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return False
    return True


def table_of_dicts(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    """The rows as columns; each must fit (`row_problem`)."""
    columns = [
        pa.array([_fitting(row.get(field.name), field.type) for row in rows], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def table_of_contents(contents: Sequence[ArrowContent], schema: Any) -> Any:
    """The rows as columns, with the types that they came with."""
    tables, start = [], 0
    while start < len(contents):
        batch, end = contents[start].batch, start + 1
        while end < len(contents) and contents[end].batch is batch:
            end += 1
        indices = pa.array([content.index for content in contents[start:end]])
        tables.append(pa.Table.from_batches([batch]).take(indices).select(schema.names))
        start = end
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _value(scalar: Any) -> Any:
    kind = scalar.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns" and scalar.is_valid:
        # Python's own times have microseconds, and pyarrow gives pandas' where pandas is there.
        return scalar.cast(pa.string()).as_py().replace(" ", "T", 1)
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.cast(pa.binary()).as_py().decode(errors="backslashreplace")


def _type(field: Field, half: bool) -> Any:
    element = pa.float16() if half else pa.float32()
    if field.kind == VECTOR:
        return pa.list_(element) if field.size is None else pa.list_(element, field.size)
    if field.kind == VECTORS:
        vector = pa.list_(element) if field.size is None else pa.list_(element, field.size)
        return pa.list_(vector)
    if field.kind == RECORD:
        return prediction_type(field.parts, half)
    if field.kind in (RECORDS, TABLE):
        records = pa.list_(prediction_type(field.parts, half))
        return records if field.kind == RECORDS else pa.list_(records)
    return _SIMPLE[field.kind]


def _column(values: Sequence[Any], field: Field, half: bool) -> Any:
    kind = _type(field, half)
    if field.kind == RECORD:
        return prediction_array(values, field.parts, half)
    if field.kind == SCORES:
        return pa.array([None if v is None else list(v.items()) for v in values], kind)
    if field.kind not in (VECTOR, VECTORS) or not values:
        return pa.array(values, kind)
    number = np.float16 if half else np.float32
    flat = pa.array(np.concatenate([np.asarray(v, number).ravel() for v in values]))
    if field.size is None:
        return pa.array([np.asarray(v, number).tolist() for v in values], kind)
    vectors = pa.FixedSizeListArray.from_arrays(flat, field.size)
    if field.kind == VECTOR:
        return vectors
    ends = np.cumsum([0, *(len(v) for v in values)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), vectors)


def _inferred(values: Sequence[Any]) -> Any:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeError):
        return pa.string()
    return pa.string() if pa.types.is_null(kind) else kind


def _fitting(value: Any, kind: Any) -> Any:
    """The value; as JSON where it is no text and its column is one of texts."""
    if value is None or isinstance(value, str) or not pa.types.is_string(kind):
        return value
    return json.dumps(value, ensure_ascii=False)
