"""Constant folding, dead and identity nodes, duplicate computations: onnxscript's optimizer.

Shapes are inferred on the way; the later passes ask for them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
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


class Fold:
    """The pass; see the module's docstring."""

    name = "fold constants"

    def apply(self, model: ir.Model) -> PassResult:
        """Fold until nothing changes; counts the nodes that went."""
        before = len(model.graph)
        with _quiet("onnxscript", "onnx_ir"):
            onnxscript.optimizer.optimize_ir(model)
        for simplify in (
            IdentityEliminationPass(),
            CommonSubexpressionEliminationPass(),
            RemoveUnusedNodesPass(),
            ShapeInferencePass(),
        ):
            simplify(model)
        return PassResult(before - len(model.graph))
