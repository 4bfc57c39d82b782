"""DeBERTa: what is not fused is said, and the rest goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import save_tiny_checkpoint

import tfc
from tfc.errors import ContractNotReached

pytestmark = pytest.mark.ort


def test_disentangled_attention_is_said_to_be_missed(tmp_path: Path) -> None:
    """DeBERTa's attention is more than a scaled product: exported and right, but not fused."""
    checkpoint = save_tiny_checkpoint(
        tmp_path / "checkpoint",
        "deberta-v2",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
    )
    artifact = tfc.export(checkpoint, tmp_path / "artifact").artifact
    with pytest.raises(ContractNotReached, match="attention 0/2, add\\+LayerNorm 4/4"):
        tfc.optimize(artifact, "onnxruntime")
    tfc.build_engine(artifact, backend="onnxruntime", allow_missed=True)
    assert tfc.verify(artifact).failed == []
