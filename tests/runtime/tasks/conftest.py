"""Tiny random models of every task, made when a test asks for one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from checkpoints import save_tiny_checkpoint
from text_models import Both

import tfc
from tfc.runtime import Session


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Both]]:
    """`both(task, head, tokenizer=…, **config)` makes, exports and loads a model, each one once."""
    pytest.importorskip("torch")
    made: dict[str, Both] = {}

    def make(
        task: str, head: str, *, tokenizer: Callable[[], Any] | None = None, **config: Any
    ) -> Both:
        key = repr((task, head, tokenizer, sorted(config.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp("both")
            given = None if tokenizer is None else tokenizer()
            save_tiny_checkpoint(folder / "c", head=head, tokenizer=given, **config)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                artifact = tfc.export(folder / "c", folder / "a", task=task).artifact
            tfc.build_engine(artifact, backend="onnxruntime")
            made[key] = Both(Session.load(artifact.path), folder / "c")
        return made[key]

    yield make
    for each in made.values():
        each.session.close()
