"""Predictions of a stream for asyncio: the event loop goes on while a thread runs batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")


async def mapped(
    predict: Callable[[Iterable[Any]], Iterator[T]],
    items: Iterable[Any] | AsyncIterable[Any],
    window: int,
) -> AsyncIterator[T]:
    """What `predict` makes of the items, in their order.

    An asynchronous source is read by the event loop, any other by the thread; either no further
    than `predict` reads ahead. Leaving the loop early ends the thread's work and the source.
    """
    loop = asyncio.get_running_loop()
    reader = _Reader(items, window, loop) if isinstance(items, AsyncIterable) else None
    results = predict(items if reader is None else reader)  # type: ignore[arg-type]
    # One thread, so that nothing of a source or of the generator is ever used by two at once.
    thread = ThreadPoolExecutor(1, "tfc-amap")
    try:
        while chunk := await loop.run_in_executor(thread, _taken, results, window):
            for result in chunk:
                if isinstance(result, _Raised):
                    raise result.error
                yield result
    finally:
        if reader is not None:
            reader.stop()
        close = getattr(results, "close", None)
        if close is not None:
            await asyncio.shield(loop.run_in_executor(thread, close))
        thread.shutdown(wait=False)


class _Raised:
    """An error that comes in its turn, after the results before it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _taken(results: Iterator[T], most: int) -> list[T | _Raised]:
    taken: list[T | _Raised] = []
    try:
        taken.extend(islice(results, most))
    except Exception as error:
        taken.append(_Raised(error))
    return taken


class _Reader:
    """An asynchronous source as an iterable for another thread, which asks for windows."""

    def __init__(
        self, source: AsyncIterable[Any], window: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._source = source.__aiter__()
        self._window, self._loop = window, loop
        self._waiting: Future[list[Any]] | None = None
        self._stopped = False

    def __iter__(self) -> Iterator[Any]:
        while not self._stopped:
            self._waiting = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
            try:
                chunk = self._waiting.result()
            except CancelledError:
                return
            if not chunk:
                return
            yield from chunk

    def stop(self) -> None:
        """Read no further; a thread that waits for the source goes on."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _read(self) -> list[Any]:
        chunk: list[Any] = []
        async for item in self._source:
            chunk.append(item)
            if len(chunk) == self._window:
                break
        return chunk
