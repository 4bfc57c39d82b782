"""What a pass is, and the one kind that most passes are: a fusion around an anchor node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from tfc.optimizers.graph import module_of


@dataclass(frozen=True)
class Refusal:
    """A site that a pass left alone: what it would have become, where, and why it did not."""

    kind: str
    node: str
    module: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """What a pass did: how many sites it changed, and those that it left alone."""

    changed: int
    refusals: tuple[Refusal, ...] = ()


class Pass(Protocol):
    """A graph → graph function. `apply` changes the model that it is given."""

    @property
    def name(self) -> str:
        """The pass's name in reports and on the command line."""

    def apply(self, model: ir.Model) -> PassResult:
        """Rewrite the model in place."""


class Fusion(Protocol):
    """Recognises one pattern around an anchor node and rewrites it.

    `match` returns None for a node that is no site at all, a `Refusal` for a site that does not
    meet a condition, and otherwise what `rewrite` needs.
    """

    @property
    def name(self) -> str:
        """The fusion's name in reports."""

    @property
    def anchors(self) -> tuple[str, ...]:
        """The operators at which `match` is tried."""

    def match(self, node: ir.Node) -> Any | Refusal | None:
        """What the node and its neighbours mean."""

    def rewrite(self, model: ir.Model, match: Any) -> None:
        """Replace the matched nodes."""


@dataclass(frozen=True)
class FusionPass:
    """Tries a fusion at every anchor of the graph, in order."""

    fusion: Fusion

    @property
    def name(self) -> str:
        """The fusion's name."""
        return self.fusion.name

    def nothing_to_do(self, model: ir.Model) -> PassResult | None:
        """What `apply` would return of a graph in which nothing matches; None if a site does."""
        refusals = []
        for node in model.graph:
            match = self.fusion.match(node) if node.op_type in self.fusion.anchors else None
            if isinstance(match, Refusal):
                refusals.append(match)
            elif match is not None:
                return None
        return PassResult(0, tuple(refusals))

    def apply(self, model: ir.Model) -> PassResult:
        """Rewrite every site that matches; the nodes that nothing reads any more go."""
        changed = 0
        refusals = []
        for node in list(model.graph):
            if node.graph is None or node.op_type not in self.fusion.anchors:
                continue
            match = self.fusion.match(node)
            if match is None:
                continue
            if isinstance(match, Refusal):
                refusals.append(match)
                continue
            self.fusion.rewrite(model, match)
            changed += 1
        if changed:
            RemoveUnusedNodesPass()(model)
            model.graph.sort()  # a node may read a fused one that was put behind it
            ShapeInferencePass()(model)
        return PassResult(changed, tuple(refusals))


def refusal(kind: str, node: ir.Node, reason: str) -> Refusal:
    """A refusal at `node`."""
    return Refusal(kind, str(node.name), module_of(node), reason)
