"""`tfc run --metrics-file`: the state of a job for Prometheus' node exporter (textfile)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfc.errors import disk_errors, require
from tfc.runtime.batching import padding_waste

if TYPE_CHECKING:
    from tfc.runtime.jobs.progress import JobProgress

# Prometheus reads such files every 15 s or so.
_INTERVAL_S = 5.0
_GAUGES = {
    "rows": "Rows predicted by this run.",
    "bad_rows": "Rows left out by this run.",
    "tokens": "Tokens of the texts that this run predicted.",
    "padding_ratio": "Share of padding in what ran.",
    "input_bytes": "Bytes of the input that are done.",
    "input_bytes_total": "Bytes of the input in all; 0 where nobody knows.",
    "seconds": "Seconds since the run began.",
    "finished": "1 when the output is in its place.",
}


class MetricsFile:
    """Writes the file at `path`, whole each time.

    Raises:
        MissingPackage: prometheus-client is not installed.
    """

    def __init__(self, path: Path, output: str) -> None:
        require("prometheus_client", "metrics")
        from prometheus_client import CollectorRegistry, Gauge

        self._path, self._next = path, 0.0
        self._registry: Any = CollectorRegistry()
        self._gauges = {
            name: Gauge(f"tfc_job_{name}", text, ["output"], registry=self._registry).labels(output)
            for name, text in _GAUGES.items()
        }

    def report(self, now: JobProgress) -> None:
        """Take the numbers of a running job; the file is written once in `_INTERVAL_S`."""
        values = {
            "rows": now.rows,
            "bad_rows": now.bad_rows,
            "tokens": now.tokens,
            "padding_ratio": padding_waste(now.tokens, now.padded),
            "input_bytes": now.bytes,
            "input_bytes_total": now.total_bytes,
            "seconds": now.seconds,
        }
        for name, value in values.items():
            self._gauges[name].set(value)
        clock = time.monotonic()
        if clock >= self._next:
            self._next = clock + _INTERVAL_S
            self._write()

    def finish(self) -> None:
        """The job is done."""
        self._gauges["finished"].set(1)
        self._write()

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        with disk_errors(self._path):
            write_to_textfile(str(self._path), self._registry)
