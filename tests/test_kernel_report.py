"""The list of compiled kernels as a file, and in numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tfc.errors import BadArtifact
from tfc.kernel_report import (
    KernelRecord,
    KernelReport,
    report_from_json,
    report_to_json,
    summary_of,
)


def record(kind: str, layer: int | None = None, **fields: Any) -> KernelRecord:
    values = {"reads": ["fp16"], "writes": ["fp16"], "bytes": 64, **fields}
    return KernelRecord(f"a {kind}", "kgen", kind, layer=layer, **values)


LAYER_OF_3 = ("gemm", "attention", "norm")
RECORDS = [
    record("bookkeeping"),
    record("mask", reads=["int64"], writes=["fp16", "int32"]),
    *(record(kind, layer) for layer in (0, 1, 2) for kind in LAYER_OF_3),
    record("wait", 1),
    record("wait", 2),
    record("layout", 2),
    record("gemm", reads=["fp16"], writes=["fp32"], product="fp32", nodes=["fc"], modules=["head"]),
]
REPORT = KernelReport("tensorrt-rtx", "fp16", {"encoder": RECORDS, "decoder": []})


def test_a_report_is_read_as_it_was_written() -> None:
    text = report_to_json(REPORT)
    assert report_from_json(text, "here") == REPORT
    # One kernel in a line, so that two lists can be compared with diff.
    assert sum(line.startswith('{"name"') for line in text.splitlines()) == len(RECORDS)


def test_the_numbers_of_a_graph() -> None:
    summary = summary_of(RECORDS)
    assert (summary.kernels, summary.waits) == (12, 2)
    assert (summary.layers, summary.layer_waits) == ([3, 3, 4], [0, 1, 1])
    assert (summary.per_layer, summary.waits_per_layer, summary.typical_layer) == (3, 1, 1)
    assert summary.outside == {"gemm": 1, "mask": 1}
    assert summary.kinds == {"gemm": 4, "attention": 3, "norm": 3, "layout": 1, "mask": 1}
    assert summary.precisions == {"fp16": 11, "fp32": 1}
    assert summary.bytes == 12 * 64


def test_one_size_that_is_not_told_leaves_all_untold() -> None:
    assert summary_of([*RECORDS, record("gemm", bytes=None)]).bytes is None


def test_a_graph_without_layers() -> None:
    summary = summary_of([record("gemm")])
    assert (summary.layers, summary.per_layer, summary.typical_layer) == ([], None, None)
    assert summary_of([]).kernels == 0


@pytest.mark.parametrize(
    ("reads", "writes", "shown"),
    [
        (["fp16"], ["fp16"], "fp16"),
        (["fp16", "int32"], ["fp16"], "fp16"),
        (["int64"], ["fp16"], "int64→fp16"),
        (["fp16", "fp32"], ["fp16"], "fp32→fp16"),
        ([], ["int32"], "int32"),
        (["int8"], [], "int8"),
        ([], [], ""),
    ],
)
def test_the_precision_of_a_kernel_in_a_word(
    reads: list[str], writes: list[str], shown: str
) -> None:
    assert record("cast", reads=reads, writes=writes).precision == shown


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.pop("graphs"), "kernels lacks the field 'graphs'"),
        (lambda data: data.update(more=1), "kernels has an unknown field 'more'"),
        (
            lambda data: data["graphs"]["encoder"][0].update(layer="1"),
            "kernels.graphs.encoder[0].layer is str",
        ),
        (
            lambda data: data["graphs"]["encoder"][0].update(nodes=["a"]),
            "a kernel has 1 nodes and 0 modules",
        ),
        (
            lambda data: data["graphs"]["encoder"][0].update(layer=10**9),
            "a kernel is in layer 1000000000 of 15 kernels",
        ),
    ],
)
def test_a_file_that_is_something_else_is_refused(change: Any, reason: str) -> None:
    data = json.loads(report_to_json(REPORT))
    change(data)
    with pytest.raises(BadArtifact) as caught:
        report_from_json(json.dumps(data), "a/kernels.json")
    assert caught.value.what == f"the list of kernels cannot be read ({reason})"
    assert caught.value.where == "a/kernels.json"


def test_text_that_is_no_json_and_a_newer_schema_are_refused() -> None:
    with pytest.raises(BadArtifact, match="the list of kernels cannot be read"):
        report_from_json("{", "here")
    with pytest.raises(BadArtifact, match="has schema 2, and this tfc reads 1"):
        report_from_json(report_to_json(REPORT).replace('"schema": 1', '"schema": 2'), "here")
