"""Constant folding, dead and identity nodes, duplicate computations.

The passes are onnxscript's and onnx-ir's. onnxscript's default rewrite rules are left out: they
take a constant of up to 1e-8 for zero, and so drop the epsilon (1e-12) of BERT's norms, which then
give NaN for a row of equal values. Shapes are inferred on the way; the later passes ask for them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
)

from tfc.optimizers.passes import PassResult


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep the libraries' remarks on what they did not fold off the terminal."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class Fold:
    """The pass; see the module's docstring."""

    name: str = "fold constants"

    def apply(self, model: ir.Model) -> PassResult:
        """Fold until nothing changes; counts the nodes that went."""
        before = len(model.graph)
        NameFixPass()(model)  # hand-written graphs leave nodes without names, or with the same
        with _quiet("onnxscript", "onnx_ir"):
            InlinePass()(model)
            onnxscript.optimizer.fold_constants_ir(model)
        for simplify in (
            RemoveUnusedNodesPass(),
            RemoveUnusedOpsetsPass(),
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            DeduplicateInitializersPass(),
            IdentityEliminationPass(),
            CommonSubexpressionEliminationPass(),
            RemoveUnusedNodesPass(),
            ShapeInferencePass(),
        ):
            simplify(model)
        return PassResult(before - len(model.graph))
