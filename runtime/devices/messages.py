"""What the process of a job and those of its devices say to each other, pickled, over a socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfc.errors import TfcError
from tfc.runtime.predictor import Outcome


@dataclass(frozen=True)
class Load:
    """To a worker, first of all: bind yourself to these cores and load this engine."""

    artifact: str
    engine: str | None
    threads: int
    require_verified: bool
    cores: frozenset[int] | None


@dataclass(frozen=True)
class Loaded:
    """From a worker that is ready: the engine that it loaded, and what `Session` says of it."""

    engine: str
    verdict: str
    hardware: str
    identity: dict[str, str]
    window: int


@dataclass(frozen=True)
class Begin:
    """To a worker: windows follow; `settings` go to `Session.outcomes` with them."""

    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Window:
    """To a worker: items to predict."""

    number: int
    items: Sequence[object]


@dataclass(frozen=True)
class End:
    """To a worker: no window follows for now, so give what you hold back."""


@dataclass(frozen=True)
class Ran:
    """From a worker: a batch has run, of so many tokens, without and with its padding."""

    tokens: int
    padded: int


@dataclass(frozen=True)
class Done:
    """From a worker: the outcomes of a window."""

    number: int
    outcomes: list[Outcome]


@dataclass(frozen=True)
class Failed:
    """From a worker, its last word: what it raised over a window, or (None) as it loaded.

    `trace` is the traceback of an error that is none of tfc's own.
    """

    number: int | None
    error: TfcError | None
    trace: str = ""


Said = Loaded | Ran | Done | Failed
