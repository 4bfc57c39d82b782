"""Corrections of what the exporter gets wrong, one file each, with the versions that need it."""

from __future__ import annotations

import onnx_ir as ir

from tfc.exporter.patches.rotary_batch import give_rotary_caches_a_batch

PATCHES = (give_rotary_caches_a_batch,)


def patch(model: ir.Model) -> None:
    """Apply every correction, in order."""
    for correct in PATCHES:
        correct(model)
