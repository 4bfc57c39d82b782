"""`tfc verify` checks what must hold for any data: planted faults of kernels are caught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfc
from tfc.errors import BadInput
from tfc.runtime.backends.base import Profile, Range
from tfc.steps.verification.relation_inputs import OF_PADDING, OF_ROWS, OF_TEXTS, sizes_of
from tfc.steps.verification.report import VerifyResult

pytestmark = pytest.mark.ort

ENGINE = "onnxruntime-fp32"
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
DATA = '{"text": "Where is my parcel?"}\n'


class Wrapped:
    """An engine whose batches a fault sees first."""

    def __init__(self, runner: Any, fault: Callable[[Run, dict[str, np.ndarray]], Any]) -> None:
        self.runner, self.fault = runner, fault

    def run(self, inputs: dict[str, np.ndarray]) -> Any:
        """What the fault makes of it."""
        return self.fault(self.runner.run, inputs)

    def close(self) -> None:
        """Close the engine."""
        self.runner.close()


def as_it_is(run: Run, inputs: dict[str, np.ndarray]) -> Any:
    return run(inputs)


def mask_as_lengths(run: Run, inputs: dict[str, np.ndarray]) -> Any:
    """A kernel that takes the lengths of texts, padded right."""
    mask = inputs["attention_mask"]
    lengths = mask.sum(axis=1, keepdims=True)
    places = np.arange(mask.shape[1])[None, :]
    return run({**inputs, "attention_mask": (places < lengths).astype(mask.dtype)})


def rows_leak(run: Run, inputs: dict[str, np.ndarray]) -> Any:
    """A kernel that reads beyond its row."""
    outputs = run(inputs)
    alone = len(inputs["input_ids"]) == 1
    return outputs if alone else {n: a + np.roll(a, 1, axis=0) / 64 for n, a in outputs.items()}


def first_row_differs(run: Run, inputs: dict[str, np.ndarray]) -> Any:
    """A kernel that is wrong where a block begins."""
    outputs = run(inputs)
    for array in outputs.values():
        if len(array) > 1:
            array[0] *= 1.01
    return outputs


def no_single_token(run: Run, inputs: dict[str, np.ndarray]) -> Any:
    """A plan that was built for two tokens and more."""
    if inputs["input_ids"].shape[1] == 1:
        raise BadInput("the engine does not take 1 token")
    return run(inputs)


FAULTS = {
    as_it_is: set(),
    mask_as_lengths: {"left padding", "holes in the mask"},
    rows_leak: {*OF_PADDING, "permuted rows", "batch 1 and batch N", "many scripts", "empty text"},
    first_row_differs: {*OF_PADDING, *OF_ROWS, "many scripts", "empty text"},
    no_single_token: {"length 1"},
}


def failed(result: VerifyResult) -> set[str]:
    (found,) = result.verdicts
    return {one.name for one in found.relations if one.outcome == "failed"}


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_a_fault_that_the_data_do_not_show(
    tiny_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., Any],
) -> None:
    import tfc.steps.verification.yardstick as room

    original = room.runners_from_engine

    def wrapped(*given: Any) -> Any:
        return {name: Wrapped(one, fault) for name, one in original(*given).items()}

    monkeypatch.setattr(room, "runners_from_engine", wrapped)
    data = tmp_path / "data.jsonl"
    data.write_text(DATA, encoding="utf-8")
    result = tfc.verify(tiny_artifact, data=data)
    wanted = set(FAULTS[fault])
    assert failed(result) == wanted
    (found,) = result.verdicts
    assert found.verdict == ("failed" if wanted else "verified")
    assert {one.name for one in found.relations} == {*OF_PADDING, *OF_ROWS, *OF_TEXTS}
    # A text whose score is near zero is allowed what the data's largest score is.
    assert min(one.allowed for one in found.relations if one.allowed) >= found.tolerance.max_abs
    for name in failed(result):
        assert f"relation {name}" in found.reason
    kept = json.loads((tiny_artifact / "reports/verify.json").read_text())["relations"][ENGINE]
    assert {one["name"] for one in kept if one["outcome"] == "failed"} == failed(result)
    # Without them nobody would know: the one text of the data is right.
    if fault is mask_as_lengths:
        assert tfc.verify(tiny_artifact, data=data, relations=False).failed == []


def test_sizes_are_those_of_the_profile_within_a_budget() -> None:
    profile = Profile(Range(1, 32, 256), Range(1, 128, 512))
    assert sizes_of(profile, 1 << 20) == [(1, 1), (32, 128), (256, 512), (256, 128)]
    assert sizes_of(profile, 512) == [(1, 1), (4, 128), (2, 256), (256, 2)]
    assert sizes_of(Profile(Range(1, 1, 1), Range(16, 16, 16)), 512) == [(1, 16)]
    assert sizes_of(Profile(Range(4, 8, 8), Range(64, 64, 64)), 512) == [(4, 64), (8, 64)]


def test_half_is_held_against_its_own_noise(tiny_artifact: Path) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    tfc.build_engine(artifact, precision="fp16", backend="onnxruntime", batch=(2, 4, 4))
    (found,) = tfc.verify(artifact, engines=["onnxruntime-fp16"]).verdicts
    by_name = {one.name: one for one in found.relations}
    assert by_name["left padding"].allowed > 1e-2 > by_name["left padding"].max_abs > 1e-5
    assert by_name["batch 1 and batch N"].reason == "the engine takes no batch of 1"
    assert found.verdict == "verified"


def test_what_a_model_that_generates_is_not_asked(
    generator: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(generator("gpt2") / "artifact", tmp_path / "a")
    result = tfc.verify(folder, bisect=True)
    (found,) = result.verdicts
    assert {one.outcome for one in found.relations} == {"not run"}
    assert "token by token" in found.relations[0].reason
    (bisection,) = result.bisections
    assert (bisection.outcome, bisection.graph) == ("nothing found", "decoder")
    assert not any(stage.fails for stage in bisection.stages)
