"""The same batch padded in other ways: what a graph that assumes right padding gets wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Feed = dict[str, npt.NDArray[Any]]
MASK = "attention_mask"


def padded_left(feed: Mapping[str, npt.NDArray[Any]]) -> Feed:
    """A right-padded batch with each row rolled so that its padding comes first."""
    mask = feed[MASK]
    width = mask.shape[1]
    order = (np.arange(width)[None, :] + mask.sum(axis=1)[:, None]) % width
    return {name: np.take_along_axis(array, order, axis=1) for name, array in feed.items()}


def padded_right(feed: Mapping[str, npt.NDArray[Any]]) -> Feed:
    """A left-padded batch with each row rolled so that its padding comes last."""
    mask = feed[MASK]
    width = mask.shape[1]
    order = (np.arange(width)[None, :] - mask.sum(axis=1)[:, None]) % width
    return {name: np.take_along_axis(array, order, axis=1) for name, array in feed.items()}


def with_holes(feed: Mapping[str, npt.NDArray[Any]]) -> Feed:
    """Every third token masked, the first of each row kept."""
    mask = feed[MASK].copy()
    mask[:, 2::3] = 0
    return {**feed, MASK: mask}
