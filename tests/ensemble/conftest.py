"""A member of another family than the tiny checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import save_tiny_checkpoint

# As in tests/checkpoints.py, in another order.
MOVED = {0: "other", 1: "cancel", 2: "refund"}


@pytest.fixture(scope="session")
def distilbert(made_once: Callable[..., Path]) -> Path:
    """Another family than the tiny checkpoint's, with its labels in another order."""
    return made_once(
        "ensemble-distilbert",
        lambda folder: save_tiny_checkpoint(folder, "distilbert", id2label=MOVED, n_layers=1),
    )
