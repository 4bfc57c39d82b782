"""Contestants of `tfc bench` that write: the runtime's greedy search and transformers' `generate`.

Both write the same number of tokens for each text, whatever they are, so both do the same work;
and both say when each token was there: the first after the prompt (prefill), then each further one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import BadArtifact
from tfc.manifest import DECODER, Engine
from tfc.runtime.assembly import assembly_of
from tfc.runtime.backends.base import Arrays, Runner
from tfc.runtime.feeding import NO_CUT
from tfc.runtime.feeding import Feed as Batch
from tfc.runtime.padding import Feed
from tfc.runtime.throughput import TokenTimes
from tfc.runtime.tokenization import INPUT_IDS

Generate = Callable[[Feed], TokenTimes]


def generation_settings(new_tokens: int) -> dict[str, Any]:
    """Greedy search for so many tokens, in the words of transformers and of the runtime."""
    return {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
    }


def engine_generates(
    artifact: Artifact, engine: Engine, runners: Mapping[str, Runner], new_tokens: int
) -> Generate:
    """What writes with an engine's graphs.

    Raises:
        BadArtifact: the artifact does not say how texts become tensors.
    """
    assembly = assembly_of(artifact, engine)
    if assembly is None:
        raise BadArtifact(
            "the manifest does not say how texts become tensors",
            where=str(artifact.path),
            fix="Export the checkpoint again with: tfc export --overwrite",
        )
    decoder = _Stamped(runners[DECODER], threading.local())
    watched: dict[str, Runner] = {**runners, DECODER: decoder}
    runner = assembly.batch_runner(watched, generation_settings(new_tokens))

    def run(feed: Feed) -> TokenTimes:
        rows, width = feed[INPUT_IDS].shape
        decoder.stamps.began = []
        begun = time.perf_counter()
        runner.run(Batch(feed, [NO_CUT] * rows, width))
        # The decoder's next run begins when a token is chosen; after the last there is none.
        came = [*decoder.stamps.began[1:], time.perf_counter()]
        return TokenTimes(tuple(moment - begun for moment in came))

    return run


@dataclass(frozen=True)
class _Stamped:
    """Runs a graph, and notes for each thread when."""

    runner: Runner
    stamps: threading.local

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The graph's outputs."""
        self.stamps.began.append(time.perf_counter())
        return self.runner.run(inputs)

    def close(self) -> None:
        """Leave the engine to its owner."""


def pytorch_generates(model: Any, new_tokens: int) -> Generate:
    """What writes with transformers' `generate`."""
    import torch

    settings = generation_settings(new_tokens)

    def run(feed: Feed) -> TokenTimes:
        came: list[float] = []

        def note(ids: Any, scores: Any, **_: Any) -> Any:
            came.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        given = {name: torch.from_numpy(array) for name, array in feed.items()}
        begun = time.perf_counter()
        with torch.inference_mode():
            model.generate(**given, **settings, stopping_criteria=[note])
        return TokenTimes(tuple(moment - begun for moment in came))

    return run
