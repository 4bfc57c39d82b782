"""The first pass of the pipeline that changes what the graph says on given inputs.

The ledger judged every pass when the graph was optimized, on probes. On a user's data a pass may
still be wrong. The pipeline runs again, and the graph after each pass on those data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.executor import Feed
from tfc.optimizers.passes import Pass
from tfc.optimizers.pipeline import optimize
from tfc.optimizers.stages import Selection


@dataclass(frozen=True)
class Step:
    """A pass that changed the graph, and the graph before and after it."""

    name: str
    before: ir.Model
    after: ir.Model


def steps_of_pipeline(
    model: ir.Model,
    target: str,
    probes: Sequence[Feed],
    *,
    fusion_sites: Mapping[str, int],
    selection: Selection | None = None,
    on_pass: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Step]:
    """Run the pipeline; the passes that changed the graph and that the ledger let stand.

    Args:
        model: the exported graph, with its weights.
        target: as it was optimized for.
        probes: the inputs on which the ledger judges.
        fusion_sites: as the artifact has them.
        selection: as it was optimized with.
        on_pass: called with the pass under way.
    """
    seen: list[tuple[str, ir.Model]] = []

    def before_pass(step: Pass, graph: ir.Model) -> None:
        seen.append((step.name, graph))

    final, _ = optimize(
        model,
        target,
        probes,
        fusion_sites=fusion_sites,
        allow_missed=True,
        selection=selection,
        on_pass=on_pass,
        before_pass=before_pass,
    )
    graphs = [*(graph for _, graph in seen[1:]), final]
    return [
        Step(name, before, after)
        for (name, before), after in zip(seen, graphs, strict=True)
        if after is not before
    ]


def first_wrong(steps: Sequence[Step], is_wrong: Callable[[ir.Model], bool]) -> Step | None:
    """The first pass after which the graph is wrong."""
    return next((step for step in steps if is_wrong(step.after)), None)
