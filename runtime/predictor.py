"""Texts → outcomes: the loop over windows and batches that `Session` and the batch job share."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfc.errors import BadArtifact, BadInput, CheckFailed, TfcError
from tfc.manifest import Signature, Task
from tfc.runtime.backends.base import Profile, Range, Runner
from tfc.runtime.batching import Batch, Limits, batches, windows
from tfc.runtime.postprocess import (
    TOKEN_CLASSIFICATION,
    Prediction,
    finite_rows,
    output_name,
    per_token,
    predictions,
)
from tfc.runtime.tokenization import INPUT_IDS, Text, TextEncoder, checked_text

if TYPE_CHECKING:
    from tokenizers import Encoding

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one item: a prediction, or the error that says why there is none.

    `tokens` counts the item's own tokens, `padded` the width of the row that they ran in; both
    are 0 for what did not run.
    """

    prediction: Prediction = field(default_factory=dict)
    error: TfcError | None = None
    tokens: int = 0
    padded: int = 0


@dataclass(frozen=True)
class _Window:
    """A window of items: those to run (place, text, tokens), and the others' errors by place.

    `first` is the index of its first item in the whole stream.
    """

    first: int
    size: int
    errors: Mapping[int, TfcError]
    places: Sequence[int]
    texts: Sequence[Text]
    encodings: Sequence[Encoding]


@dataclass(frozen=True)
class _Run:
    """What one call of `Predictor.outcomes` runs with."""

    runner: Runner
    limits: Limits
    pool: ThreadPoolExecutor


class Predictor:
    """Everything between text and predictions, except the engine.

    Args:
        task: what the model does.
        signature: the graph's inputs and outputs.
        profile: the sizes that the engine was built for.
        encoder: text → tokens → arrays.
        streams: how many batches to work on at once.

    Raises:
        BadArtifact: the signature lacks the output that the task's predictions come from.
    """

    def __init__(
        self,
        task: Task,
        signature: Signature,
        profile: Profile,
        encoder: TextEncoder,
        streams: int = 1,
    ) -> None:
        self._task = task
        self._encoder = encoder
        self._streams = streams
        self._output = output_name(task)
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in signature.inputs}
        rows, width = next(spec.shape for spec in signature.inputs if spec.name == INPUT_IDS)
        self._rows: Range = profile.of_axis(rows)
        self._width: Range = profile.of_axis(width)
        if self._output not in {spec.name for spec in signature.outputs}:
            raise BadArtifact(
                f"the graph has no output '{self._output}', which {task.name} needs",
                fix="Export the checkpoint again with: tfc export --overwrite",
            )

    def outcomes(
        self, runner: Runner, items: Iterable[object], window: int, limits: Limits
    ) -> Iterator[Outcome]:
        """One outcome per item, in order. While one window runs, the next is tokenised."""
        if self._rows.max < limits.rows:
            limits = Limits(self._rows.max, limits.tokens)
        source = windows(items, window)
        first = next(source, None)
        if first is None:
            return
        # Pools start no thread until they are used: a single short call starts none.
        with (
            ThreadPoolExecutor(1, "tfc-tokenize") as ahead,
            ThreadPoolExecutor(self._streams, "tfc-run") as pool,
        ):
            run = _Run(runner, limits, pool)
            current, index = self._encoded(first, 0), len(first)
            for chunk in source:
                following = ahead.submit(self._encoded, chunk, index)
                index += len(chunk)
                yield from self._ran(run, current)
                current = following.result()
            yield from self._ran(run, current)

    def _encoded(self, items: Sequence[object], first: int) -> _Window:
        errors: dict[int, TfcError] = {}
        good: dict[int, Text] = {}
        for place, item in enumerate(items):
            try:
                good[place] = self._checked(item, f"item {first + place}")
            except TfcError as error:
                errors[place] = error
        encodings = self._encoder.encode(list(good.values()))
        fitting = []
        for place, encoding in zip(good, encodings, strict=True):
            if len(encoding) > self._width.max:
                errors[place] = self._too_long(len(encoding), f"item {first + place}")
            else:
                fitting.append((place, good[place], encoding))
        places, texts, kept = zip(*fitting, strict=True) if fitting else ((), (), ())
        return _Window(first, len(items), errors, places, texts, kept)

    def _checked(self, item: object, where: str) -> Text:
        if isinstance(item, TfcError):
            raise item
        text = checked_text(item, where)
        if isinstance(text, tuple) and self._task.name == TOKEN_CLASSIFICATION:
            raise BadInput(
                "token-classification takes one text, not a pair",
                where=where,
                fix="Give the texts one by one",
            )
        return text

    def _too_long(self, tokens: int, where: str) -> BadInput:
        return BadInput(
            f"the text has {tokens} tokens, and the engine was built for up to {self._width.max}",
            where=where,
            fix="Build an engine with a larger sequence profile: tfc build-engine",
        )

    def _ran(self, run: _Run, window: _Window) -> Iterator[Outcome]:
        done = {place: Outcome(error=error) for place, error in window.errors.items()}
        plan = batches([len(encoding) for encoding in window.encodings], run.limits)
        work = functools.partial(self._ran_batch, run.runner, window)
        several = self._streams > 1 and len(plan) > 1
        found = run.pool.map(work, plan) if several else map(work, plan)
        for batch, outcomes in zip(plan, found, strict=True):
            done.update(zip((window.places[i] for i in batch.indices), outcomes, strict=True))
        return (done[place] for place in range(window.size))

    def _ran_batch(self, runner: Runner, window: _Window, batch: Batch) -> list[Outcome]:
        encodings = [window.encodings[i] for i in batch.indices]
        width = max(batch.width, self._width.min)
        output = runner.run(self._arrays(encodings, width))[self._output]
        rows: list[Array] = list(output[: len(encodings)])
        if per_token(self._task):
            places = [self._encoder.place(len(encoding), width) for encoding in encodings]
            rows = [row[place] for row, place in zip(rows, places, strict=True)]
        finite = [i for i, whole in enumerate(finite_rows(rows)) if whole]
        texts = [str(window.texts[i]) for i in batch.indices]
        found = predictions(
            self._task,
            [rows[i] for i in finite],
            [texts[i] for i in finite],
            [encodings[i] for i in finite],
        )
        by_row = dict(zip(finite, found, strict=True))
        return [
            Outcome(by_row[i], None, len(encoding), width)
            if i in by_row
            else Outcome({}, _not_finite(window, batch.indices[i]), len(encoding), width)
            for i, encoding in enumerate(encodings)
        ]

    def _arrays(self, encodings: list[Encoding], width: int) -> dict[str, Array]:
        """The padded inputs; the last text again where the engine's smallest batch is larger."""
        missing = self._rows.min - len(encodings)
        arrays = self._encoder.pad(encodings + encodings[-1:] * missing, width)
        return {
            name: array.astype(self._dtypes[name], copy=False) for name, array in arrays.items()
        }


def _not_finite(window: _Window, index: int) -> CheckFailed:
    return CheckFailed(
        "the engine gives values that are not finite numbers for this text",
        where=f"item {window.first + window.places[index]}",
        fix="Check the engine with: tfc verify; then build one in a higher precision",
    )
