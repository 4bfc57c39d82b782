"""The table of backends, and the choice among them."""

from __future__ import annotations

from typing import Any

import pytest

from tfc.errors import BackendUnavailable, UsageError
from tfc.runtime import backends as module
from tfc.runtime.backends import backend, backends, choose_backend
from tfc.runtime.backends.base import Availability

MISSING = "the package 'tensorrt' is not installed. Install it with: pip install 'tfc[tensorrt]'"
NO_GPU = "no GPU is present. Run it on a machine with one"


def test_the_table_is_in_order_of_preference() -> None:
    table = backends()
    assert list(table) == ["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"]
    assert [found.name for found in table.values()] == list(table)
    assert [found.target for found in table.values()] == [
        "tensorrt", "tensorrt", "onnxruntime", "onnxruntime",
    ]  # fmt: skip


def test_every_backend_says_what_it_can_do_here() -> None:
    for found in backends().values():
        available = found.availability()
        assert available.name == found.name
        assert available.can_run or ". " in available.why_not_run, "a reason comes with its fix"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="tensorrt, tensorrt-rtx, onnxruntime"):
        backend("tensorflow")


def available(**answers: Availability) -> dict[str, Any]:
    class Fake:
        def __init__(self, answer: Availability) -> None:
            self.answer = answer

        def availability(self) -> Availability:
            return self.answer

    return {answer.name: Fake(answer) for answer in answers.values()}


TRT = Availability("tensorrt", "", MISSING, MISSING)
RTX = Availability("tensorrt-rtx", "1.7", "", NO_GPU)
ORT = Availability("onnxruntime", "1.31", hardware="CPU")


def test_the_best_that_can_run_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "backends", lambda: available(a=TRT, b=RTX, c=ORT))
    chosen, why = choose_backend("fp32")
    assert chosen.availability() is ORT
    assert why == (
        "onnxruntime on the CPU: tensorrt cannot run here (the package 'tensorrt' is not"
        " installed), tensorrt-rtx builds here but cannot run (no GPU is present)"
    )


def test_the_first_choice_needs_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    able = Availability("tensorrt", "10.13", hardware="NVIDIA L4")
    monkeypatch.setattr(module, "backends", lambda: available(a=able, b=RTX, c=ORT))
    chosen, why = choose_backend("fp16")
    assert chosen.availability() is able
    assert why == "tensorrt on NVIDIA L4: the first choice"


def test_none_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "backends", lambda: available(a=TRT, b=RTX))
    with pytest.raises(BackendUnavailable, match=r"tensorrt cannot run.* tensorrt-rtx builds here"):
        choose_backend("fp16")


def test_a_precision_without_kernels_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "backends", lambda: available(c=ORT))
    with pytest.raises(BackendUnavailable, match="onnxruntime has no bf16 kernels for the CPU"):
        choose_backend("bf16")
    gpu = Availability("onnxruntime", "1.31", hardware="NVIDIA L4")
    monkeypatch.setattr(module, "backends", lambda: available(c=gpu))
    assert choose_backend("bf16")[0].availability() is gpu
