"""A consumer of messages, one line of JSON each, that answers as they come.

    kcat -C -t tickets … | python examples/stream.py my-artifact | kcat -P -t labelled …

What has come within a few hundredths of a second runs as one batch: one message alone is not kept
waiting, and under load batches are full. A short queue stands between reading and predicting, so
that a consumer that is behind holds up its source and not its memory.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator

from tfc.runtime import Session

BATCH = 64  # messages
WAIT_S = 0.03


def batches(source: queue.Queue[str | None]) -> Iterator[list[str]]:
    """What comes within `WAIT_S` of a first message, `BATCH` of them at most."""
    while (first := source.get()) is not None:
        batch, until = [first], time.monotonic() + WAIT_S
        while len(batch) < BATCH:
            try:
                message = source.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if message is None:
                yield batch
                return
            batch.append(message)
        yield batch


def main(artifact: str) -> None:
    """Answer every line of standard input with a line on standard output."""
    source: queue.Queue[str | None] = queue.Queue(4 * BATCH)

    def read() -> None:
        for line in sys.stdin:
            source.put(line)
        source.put(None)

    with Session.load(artifact) as session:
        threading.Thread(target=read, daemon=True).start()
        for batch in batches(source):
            messages = [json.loads(line) for line in batch]
            found = session.predict([message["text"] for message in messages])
            for message, prediction in zip(messages, found, strict=True):
                answer = {"id": message["id"], "label": prediction["label"]}
                print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
