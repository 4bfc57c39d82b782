"""What PyTorch and an engine write for labelled texts.

Both search as the checkpoint says, greedily or with its beams, but draw no tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import BadArtifact
from tfc.manifest import Engine
from tfc.metrics.base import Found
from tfc.runtime.assembly import assembly_of
from tfc.runtime.backends.base import Runner
from tfc.runtime.feeding import Feed
from tfc.runtime.tasks.generation import TOKENS
from tfc.runtime.tokenization import INPUT_IDS
from tfc.steps.batches import LIKELIEST
from tfc.steps.verification.labelled import Labelled

OnBatch = Callable[[int, int], None]


def written_by_pytorch(labelled: Labelled, model: Any, on_batch: OnBatch) -> list[Found]:
    """The text of each row by transformers' `generate`."""

    def write(feed: Feed) -> list[dict[str, npt.NDArray[Any]]]:
        return [{TOKENS: ids[None]} for ids in _generated(model, feed)]

    return _written(labelled, write, on_batch)


def written_by_engine(
    labelled: Labelled,
    artifact: Artifact,
    engine: Engine,
    runners: dict[str, Runner],
    on_batch: OnBatch,
) -> list[Found]:
    """The text of each row by the runtime.

    Raises:
        BadArtifact: the graphs do not fit the task.
        CheckFailed: the engine's scores are not finite numbers.
    """
    assembly = assembly_of(artifact, engine)
    if assembly is None:
        raise BadArtifact(
            "the manifest does not say how texts become tensors",
            where=str(artifact.path),
            fix="Export the checkpoint again with: tfc export --overwrite",
        )
    return _written(labelled, assembly.batch_runner(runners, LIKELIEST).run, on_batch)


def _written(labelled: Labelled, write: Callable[[Feed], Any], on_batch: OnBatch) -> list[Found]:
    feeds, outputs = labelled.batches.feeds, []
    for number, feed in enumerate(feeds):
        on_batch(number, len(feeds))
        outputs.append(write(feed))
    on_batch(len(feeds), len(feeds))
    return labelled.placed(labelled.batches.read(outputs))


def _generated(model: Any, feed: Feed) -> npt.NDArray[np.int64]:
    """The new tokens of each row, `[rows, tokens]`, padded on the right."""
    import torch

    given = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in feed.arrays.items()}
    with torch.inference_mode(), warnings.catch_warnings():
        # It advises programmers to set a length; the checkpoint's own is what is asked for.
        warnings.simplefilter("ignore", UserWarning)
        ids = model.generate(**given, **LIKELIEST)
    # A decoder's start token is a special one, which reading the text leaves out.
    first = 0 if model.config.is_encoder_decoder else given[INPUT_IDS].shape[1]
    found: npt.NDArray[np.int64] = ids[:, first:].numpy()
    return found
