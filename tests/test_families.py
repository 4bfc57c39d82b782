"""Encoder families, from a random checkpoint to compiled kernels. README's table lists them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from checkpoints import save_tiny_checkpoint

import tfc
from tfc.errors import ContractNotReached

pytestmark = pytest.mark.ort
README = Path(__file__).resolve().parents[1] / "README.md"

FAMILIES = (
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "ernie",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "roberta",
    "xlm-roberta",
)
has_rtx = importlib.util.find_spec("tensorrt_rtx") is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_is_fused_down_to_the_kernels(family: str, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", family)
    artifact = tfc.export(checkpoint, tmp_path / "artifact").artifact
    for target in ("onnxruntime", "tensorrt"):
        report = tfc.optimize(artifact, target).report
        assert report["fusions"] == {
            "attention": {"found": 2, "expected": 2},
            "add_layernorm": {"found": 4, "expected": 4},
        }
        assert report["reverted"] == []
    tfc.build_engine(artifact, backend="onnxruntime")
    assert tfc.verify(artifact).failed == []
    if has_rtx:
        engine = tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx").engine
        assert engine.state == "built, not run" or engine.state == "runnable"
        assert engine.audit["fused_attention"] == 2


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


def test_the_readme_lists_these_families() -> None:
    listed = re.search(r"^\| Families \|([^|]*)\|", README.read_text("utf-8"), re.MULTILINE)
    assert listed is not None
    assert tuple(re.findall(r"[\w-]+", listed[1])) == FAMILIES
