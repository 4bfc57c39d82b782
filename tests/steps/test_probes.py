"""The inputs on which the ledger judges an artifact's graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import tfc.steps.probes
from tfc.artifact import Artifact
from tfc.manifest import MODEL
from tfc.steps.probes import probe_feeds


def runs_of_padding(mask: np.ndarray) -> list[str]:
    """Each row as `left`, `right`, `holes` or `full`."""
    found = []
    for row in mask:
        places = np.flatnonzero(row)
        if len(places) != places[-1] - places[0] + 1:
            found.append("holes")
        elif places[-1] + 1 < len(row):
            found.append("right")
        else:
            found.append("left" if places[0] else "full")
    return found


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_padding_is_in_one_batch(tiny_artifact: Path, side: str) -> None:
    artifact = Artifact.open(tiny_artifact)
    preprocess = dataclasses.replace(artifact.manifest.preprocess, padding_side=side)
    artifact.manifest = dataclasses.replace(artifact.manifest, preprocess=preprocess)
    batch, single = probe_feeds(artifact, MODEL)
    mask = batch["attention_mask"]
    other = {"right": "left", "left": "right"}[side]
    kinds = runs_of_padding(mask)
    assert kinds[:8] == [side, side, side, "full", other, other, other, "full"]
    assert kinds[8:].count("holes") == 3  # of three tokens one is masked, the last
    assert single["attention_mask"].tolist() == [[1]]
    assert single["input_ids"].tolist() == [[101]]
    rounding, _ = probe_feeds(artifact, MODEL, exact=False)
    assert runs_of_padding(rounding["attention_mask"])[:5] == [side, side, side, "full", "holes"]
    for name, array in batch.items():
        assert array.shape == mask.shape, name


def test_a_large_graph_gets_fewer_and_shorter_texts(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact.open(tiny_artifact)
    small, _ = probe_feeds(artifact, MODEL)
    monkeypatch.setattr(tfc.steps.probes, "_LARGE", 0)
    large, _ = probe_feeds(artifact, MODEL)
    assert small["input_ids"].shape == (12, 48)
    assert large["input_ids"].shape == (6, 16)
    kinds = runs_of_padding(large["attention_mask"])
    assert kinds == ["right", "full", "left", "full", "holes", "holes"]
