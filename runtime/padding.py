"""The same batch padded in other ways: what a graph that assumes right padding gets wrong.

A graph of several models with a tokenizer each has inputs of each: `attention_mask`,
`attention_mask_2`, … What is done to a batch is done to those of every tokenizer, by their mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Feed = dict[str, npt.NDArray[Any]]
MASK = "attention_mask"
_NUMBER = re.compile(r"_\d+$")


def input_name(name: str, tokenizer: int) -> str:
    """What an input is called that comes from a tokenizer: 0 is the first, `input_ids_2` of 1."""
    return f"{name}_{tokenizer + 1}" if tokenizer else name


def split_name(name: str) -> tuple[str, str]:
    """What an input is, and what names its tokenizer: `_2`, or nothing for the first."""
    found = _NUMBER.search(name)
    return (name[: found.start()], found.group()) if found else (name, "")


def _masks(names: Iterable[str]) -> list[str]:
    return [name for name in names if split_name(name)[0] == MASK]


def padded_left(feed: Mapping[str, npt.NDArray[Any]]) -> Feed:
    """A right-padded batch with each row rolled so that its padding comes first."""
    return _rolled(feed, 1)


def padded_right(feed: Mapping[str, npt.NDArray[Any]]) -> Feed:
    """A left-padded batch with each row rolled so that its padding comes last."""
    return _rolled(feed, -1)


def with_holes(feed: Mapping[str, npt.NDArray[Any]]) -> Feed:
    """Every third token masked, the first of each row kept."""
    holed = {name: feed[name].copy() for name in _masks(feed)}
    for mask in holed.values():
        mask[:, 2::3] = 0
    return {**feed, **holed}


def _rolled(feed: Mapping[str, npt.NDArray[Any]], sign: int) -> Feed:
    """Each row moved by as many places as it has tokens, to the left (1) or the right (-1)."""
    orders = {}
    for name in _masks(feed):
        mask = feed[name]
        width = mask.shape[1]
        moved = np.arange(width)[None, :] + sign * mask.sum(axis=1)[:, None]
        orders[split_name(name)[1]] = moved % width
    return {
        name: np.take_along_axis(array, orders[split_name(name)[1]], axis=1)
        for name, array in feed.items()
    }
