"""Sessions inside programs: streams that are not read ahead, asyncio, forks, workers, Arrow."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import operator
import os
import pickle
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.errors import BadInput, UsageError
from tfc.runtime import Session

pytestmark = pytest.mark.ort

TEXTS = [f"text {i} " * (i % 9) for i in range(23)]
WINDOW = 4


@pytest.fixture(scope="module")
def session(_tiny_classifier: Any) -> Iterator[Session]:
    with Session.load(_tiny_classifier.path) as session:
        yield session


@pytest.fixture(scope="module")
def expected(session: Session) -> list[dict[str, Any]]:
    return session.predict(TEXTS, batch_size=1)


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected])


class Counted:
    """Texts without end, and how many of them were read."""

    def __init__(self) -> None:
        self.read = 0
        self.threads: set[int] = set()
        self.closed = False

    def __iter__(self) -> Iterator[str]:
        try:
            while True:
                self.threads.add(threading.get_ident())
                self.read += 1
                yield TEXTS[self.read % len(TEXTS)]
        finally:
            self.closed = True

    async def stream(self) -> AsyncIterator[str]:
        for text in self:
            await asyncio.sleep(0)
            yield text


def test_map_reads_one_window_ahead_and_no_further(session: Session) -> None:
    source = Counted()
    results = session.map(source, window=WINDOW)
    assert source.read == 0
    for given in range(1, 30):
        next(results)
        window = (given - 1) // WINDOW
        assert source.read == (window + 2) * WINDOW
        time.sleep(0.002)  # a reader of its own would run away here
    assert source.threads == {threading.get_ident()}
    results.close()  # type: ignore[attr-defined]


def test_a_window_runs_while_the_caller_has_the_one_before(session: Session) -> None:
    ran: list[int] = []
    results = session.outcomes(TEXTS, window=WINDOW, on_batch=lambda tokens, _: ran.append(tokens))
    next(results)
    sums = [sum(map(len, TEXTS[i : i + WINDOW])) for i in (0, WINDOW)]
    assert all(sums)
    deadline = time.monotonic() + 30
    while len(ran) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    assert len(ran) == 2, "nothing more was asked for, and the second window has run"


def test_leaving_a_stream_leaves_no_thread(session: Session) -> None:
    before = set(threading.enumerate())
    results = session.map(Counted(), window=WINDOW)
    next(results)
    del results
    gc.collect()
    assert set(threading.enumerate()) <= before


def test_apredict_and_amap(session: Session, expected: list[dict[str, Any]]) -> None:
    async def main() -> tuple[list[Any], list[Any], list[Any], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        async def source() -> AsyncIterator[str]:
            for text in TEXTS:
                await asyncio.sleep(0)
                yield text

        ticking = asyncio.create_task(tick())
        listed = await session.apredict(TEXTS)
        plain = [row async for row in session.amap(iter(TEXTS), window=WINDOW)]
        streamed = [row async for row in session.amap(source(), window=WINDOW)]
        ticking.cancel()
        return listed, plain, streamed, ticks

    *found, ticks = asyncio.run(main())
    for rows in found:
        same(rows, expected)
    assert ticks > 10, "the event loop went on"


def test_amap_reads_no_further_than_map_and_ends_its_source(session: Session) -> None:
    async def main(source: Counted) -> None:
        results = session.amap(source.stream(), window=WINDOW)
        for given in range(1, 20):
            await anext(results)
            await asyncio.sleep(0.002)
            assert source.read <= ((given - 1) // WINDOW + 2) * WINDOW + 1
        await results.aclose()  # type: ignore[attr-defined]

    source = Counted()
    asyncio.run(main(source))
    assert source.closed


def test_amap_that_is_cancelled_while_it_waits_for_texts(session: Session) -> None:
    async def never() -> AsyncIterator[str]:
        yield "one"
        await asyncio.Event().wait()

    async def main() -> None:
        await anext(session.amap(never(), window=WINDOW))

    async def limited() -> None:
        await asyncio.wait_for(main(), 0.2)

    before = threading.active_count()
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(limited())
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_an_error_comes_in_its_turn(session: Session, expected: list[dict[str, Any]]) -> None:
    async def main(texts: list[Any], **options: Any) -> list[Any]:
        found: list[Any] = []
        try:
            async for row in session.amap(texts, window=WINDOW, **options):
                found.append(row)
        except (BadInput, UsageError) as error:
            found.append(error)
        return found

    *found, error = asyncio.run(main([*TEXTS[:9], 5, "after"]))
    same(found, expected[:9])
    assert isinstance(error, BadInput)
    assert error.where == "item 9"
    (error,) = asyncio.run(main(TEXTS, top=3))
    assert "has no option 'top'" in str(error)


def test_many_threads_use_one_session_for_streams(
    session: Session, expected: list[dict[str, Any]]
) -> None:
    found: dict[int, list[Any]] = {}

    def work(number: int) -> None:
        found[number] = list(session.map(TEXTS, window=WINDOW + number))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        same(found[number], expected)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_a_forked_child_goes_on_with_threads_of_its_own(
    session: Session, expected: list[dict[str, Any]]
) -> None:
    _, (path, engine, *_) = session.__reduce__()
    tensors = {spec.name: np.ones((1, 8), np.int64) for spec in session.signature.inputs}
    reading, writing = os.pipe()
    with Session.load(path, engine, threads=2) as parent:
        parent.predict(TEXTS)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            parent.run(tensors)
            threads = len(list(Path("/proc/self/task").iterdir()))
            found = parent.predict(TEXTS)
            os.write(writing, json.dumps([found, threads]).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            found, threads = json.loads(pipe.read())
        assert os.waitpid(child, 0)[1] == 0
        same(found, expected)
        assert threads == 2, "the child's own, and one of ONNX Runtime's"
        same(parent.predict(TEXTS), expected)


def test_a_spawned_worker_gets_the_session(
    session: Session, expected: list[dict[str, Any]]
) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        found = pool.submit(operator.methodcaller("predict", TEXTS), session).result(timeout=120)
    same(found, expected)


def test_a_pickle_holds_where_the_session_is_from(session: Session) -> None:
    pickled = pickle.dumps(session)
    assert len(pickled) < 1000
    with pickle.loads(pickled) as again:
        assert again.engine_name == session.engine_name
        assert again.identity == session.identity


def test_a_column_of_arrow(session: Session, expected: list[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    found = session.predict_arrow(pa.chunked_array([TEXTS[:5], TEXTS[5:]]))
    assert found.type.field("score").type == pa.float64()
    same([{**row, "scores": dict(row["scores"])} for row in found.to_pylist()], expected)
    with pytest.raises(BadInput, match="item 1: this is a NoneType"):
        session.predict_arrow(pa.array(["a", None]))
    with pytest.raises(UsageError, match="has no option 'top'"):
        session.predict_arrow(pa.array(["a"]), top=1)
