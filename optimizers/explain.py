"""What each pass thought of one place in the graph, as the graph was when its turn came."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tfc.errors import UsageError
from tfc.optimizers.executor import Feed
from tfc.optimizers.graph import module_of
from tfc.optimizers.passes import FusionPass, Pass, Refusal
from tfc.optimizers.pipeline import optimize
from tfc.optimizers.stages import Selection

NO_SITE = "no site of it"
FUSED = "fused"
GONE = "not in the graph any more"


@dataclass(frozen=True)
class Opinion:
    """What one pass says of one node; `verdict` is one of the above, or the reason of a refusal."""

    step: str
    node: str
    op: str
    verdict: str


def explain(
    model: ir.Model,
    target: str,
    feeds: Sequence[Feed],
    place: str,
    *,
    fusion_sites: Mapping[str, int] | None = None,
    selection: Selection | None = None,
) -> list[Opinion]:
    """Run the passes and ask each about the nodes at `place`. The model is not changed.

    Args:
        model: an fp32 graph.
        target: one of `TARGETS`.
        feeds: inputs on which every pass is judged.
        place: the name of a node or of a value that it gives, or the path of a module, with all
            that is in it.
        fusion_sites: as for `optimize`.
        selection: as for `optimize`.

    Raises:
        UsageError: the graph has no such node, value or module.
    """
    opinions: list[Opinion] = []
    seen = False

    def ask(step: Pass, graph: ir.Model) -> None:
        nonlocal seen
        nodes = [node for node in graph.graph if _is_at(node, place)]
        seen = seen or bool(nodes)
        opinions.extend(_opinions(step, nodes) if nodes else [Opinion(step.name, "", "", GONE)])

    optimize(
        model,
        target,
        feeds,
        fusion_sites=fusion_sites,
        allow_missed=True,
        selection=selection,
        before_pass=ask,
    )
    if not seen:
        raise _unknown(model, place)
    return opinions


def _opinions(step: Pass, nodes: Sequence[ir.Node]) -> list[Opinion]:
    """Of a fusion on each node that it may start from; of another pass nothing can be asked."""
    if not isinstance(step, FusionPass):
        return []
    fusion = step.fusion
    asked = [node for node in nodes if node.op_type in fusion.anchors]
    return [
        Opinion(step.name, str(node.name), node.op_type, _verdict(fusion.match(node)))
        for node in asked
    ]


def _verdict(match: object) -> str:
    if match is None:
        return NO_SITE
    return match.reason if isinstance(match, Refusal) else FUSED


def _is_at(node: ir.Node, place: str) -> bool:
    module = module_of(node)
    inside = module == place or module.startswith(f"{place}.")
    return inside or node.name == place or any(value.name == place for value in node.outputs)


def _unknown(model: ir.Model, place: str) -> UsageError:
    names = {str(node.name) for node in model.graph} | {module_of(node) for node in model.graph}
    close = difflib.get_close_matches(place, sorted(names - {""}), n=3)
    hint = f"Did you mean: {', '.join(close)}?" if close else "Give a name that the report shows"
    return UsageError(f"the graph has no node and no module called '{place}'", fix=hint)
