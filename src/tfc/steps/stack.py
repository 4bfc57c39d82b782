"""A second stage over several models' outputs: what it is fitted on, and how it is given."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.ensemble import features_of
from tfc.errors import UsageError
from tfc.linear_stage import linear_stage
from tfc.runtime.session import Session
from tfc.stage import PROBABILITIES, READS, SecondStage, fault_of, stage_from_file


def second_stage(model: Any, *, reads: str = PROBABILITIES) -> SecondStage:
    """A fitted model as the second stage of `tfc.export(…, ensemble="stack", stack=…)`.

    `tfc.export` calls it where it is given the model itself. Its `save(path)` writes the file that
    `tfc export --stack` reads.

    Args:
        model: a linear model of scikit-learn, fitted on what `stack_features` gives: one with
            `coef_`, `intercept_` and, for labels, `classes_` (the labels' names, or their numbers
            from 0 on). Or an `nn.Module` on the CPU that takes `[batch, members·labels]` and gives
            logits `[batch, labels]` in the order of the first member's labels, with linear layers
            and activations one after another.
        reads: what it was fitted on: `probabilities` or `logits`.

    Raises:
        UsageError: it is neither, not fitted, or does something that cannot be kept.
    """
    if reads not in READS:
        raise UsageError(
            f"a second stage does not read '{reads}'", fix=f"Choose one of: {', '.join(READS)}"
        )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from tfc.exporter.ensemble.stacked import stage_from_module

        return stage_from_module(model, reads)
    return linear_stage(model, reads)


def stage_given(stack: Any) -> SecondStage:
    """The second stage of a call: a `SecondStage`, the place of its file, or a fitted model.

    Raises:
        BadData: the file is no second stage.
        UsageError: the object is none.
    """
    if isinstance(stack, (str, Path)):
        return stage_from_file(stack)
    stage = stack if isinstance(stack, SecondStage) else second_stage(stack)
    wrong = fault_of(stage)
    if wrong:
        raise UsageError(wrong, fix="Make it with tfc.second_stage")
    return stage


def stack_features(
    checkpoints: Sequence[str | Path],
    items: Sequence[Any],
    *,
    reads: str = PROBABILITIES,
    task: str | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> npt.NDArray[np.float32]:
    """What a second stage over these models reads of each text, to fit it on.

    The members run as one graph in ONNX Runtime, as they will in the ensemble, in a temporary
    folder. `tfc.stage` says what the features are, and in which order.

    Args:
        checkpoints: the members, two or more, as `tfc.export` will be given them.
        items: texts, or pairs of texts.
        reads: `probabilities` or `logits`.
        task: the task of all, if their architectures do not tell it.
        max_length: a limit in tokens on the length of a text, below the models' own.
        trust_remote_code: run Python code that comes with the checkpoints.
        allow_pickle: read weights that are pickles.

    Returns:
        `[items, members·labels]`.

    Raises:
        MissingPackage: torch, transformers or onnx is not installed.
        UsageError: the checkpoints do not fit each other.
        BadCheckpoint: a checkpoint is missing, incomplete or of a kind that tfc does not take.
        BadData: an item is no text.
    """
    from tfc.steps.build import build_engine
    from tfc.steps.export_ensemble import export_combined

    if reads not in READS:
        raise UsageError(
            f"a second stage does not read '{reads}'", fix=f"Choose one of: {', '.join(READS)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        made = export_combined(
            checkpoints,
            Path(folder) / "features",
            features_of(len(checkpoints), reads),
            task=task,
            max_length=max_length,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        build_engine(made, backend="onnxruntime")
        with Session.load(made.path) as session:
            rows = [list(said["scores"].values()) for said in session.predict(items)]
    return np.asarray(rows, dtype=np.float32)
