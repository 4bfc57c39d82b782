"""Corrections of the graph that the exporter gives, one file each, with the versions that need it.

All of them change the ONNX graph after the export. What a model's own code does that cannot be
exported is another matter: such a model gets a module of its own in `tfc.exporter.modules`.
"""

from __future__ import annotations

import onnx_ir as ir

from tfc.exporter.patches.attention_mask_rows import give_attention_masks_their_rows
from tfc.exporter.patches.rotary_batch import give_rotary_caches_a_batch

PATCHES = (give_rotary_caches_a_batch, give_attention_masks_their_rows)


def patch(model: ir.Model) -> None:
    """Apply every correction, in order."""
    for correct in PATCHES:
        correct(model)
