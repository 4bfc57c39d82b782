"""Pooling equals sentence-transformers' own, wherever the padding is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tfc.errors import BadCheckpoint
from tfc.exporter.modules import pooled
from tfc.exporter.sentence_embedding import (
    POOLING_MODES,
    EmbeddingHead,
    Normalize,
    embedding_head_of,
)
from tfc.exporter.source import Source

MASKS = {
    "right": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
    "left": [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]],
    "one token": [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]],
}


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling(mode: str, padding: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    hidden, mask = torch.randn(2, 5, 6), torch.tensor(MASKS[padding])
    features = {"token_embeddings": hidden, "attention_mask": mask}
    expected = Pooling(6, pooling_mode=mode)(features)["sentence_embedding"]
    torch.testing.assert_close(pooled(hidden, mask, mode), expected)


def folder_source(tmp_path: Path, *modules: str, pooling: dict[str, object]) -> Source:
    entries = [{"type": f"sentence_transformers.models.{m}", "path": m} for m in modules]
    (tmp_path / "Pooling").mkdir()
    (tmp_path / "Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 99}')
    return Source("here", tmp_path, None, {}, tuple(entries), "0")


@pytest.mark.parametrize("pooling", [{"pooling_mode_cls_token": True}, {"pooling_mode": "cls"}])
def test_both_formats_of_the_config(tmp_path: Path, pooling: dict[str, object]) -> None:
    source = folder_source(tmp_path, "Transformer", "Pooling", "Normalize", pooling=pooling)
    assert embedding_head_of(source) == EmbeddingHead("cls", (Normalize(),), max_length=99)


def test_two_poolings_at_once_are_refused(tmp_path: Path) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    source = folder_source(tmp_path, "Transformer", "Pooling", pooling=pooling)
    with pytest.raises(BadCheckpoint, match=r"the pooling 'cls\+mean' is not supported"):
        embedding_head_of(source)


def test_an_unknown_module_is_refused(tmp_path: Path) -> None:
    source = folder_source(tmp_path, "Transformer", "LSTM", pooling={})
    with pytest.raises(BadCheckpoint, match="module 'LSTM' is not supported"):
        embedding_head_of(source)
