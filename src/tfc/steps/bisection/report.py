"""What `tfc verify --bisect` found: where an engine leaves PyTorch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfc.exporter.module_gaps import ModuleGap
    from tfc.optimizers.bisection.gap import Gap
    from tfc.steps.bisection.reproducer import Reproducer

FOUND, NOTHING, NOT_RUN = "found", "nothing found", "not run"
# How a place was told: by the error that its nodes make on exact inputs, by that of a whole
# sub-graph, or by the error up to there, where no node makes one by itself.
LOCAL, SUBGRAPH, ACCUMULATED = "exact inputs", "sub-graph", "accumulated"


@dataclass(frozen=True)
class StageGap:
    """One graph of the chain on the inputs that were bisected, compared with PyTorch in fp32.

    `reason` says why it fails, or, where `ran` is False, why it was not run.
    """

    name: str
    file: str
    ran: bool
    reason: str = ""
    max_abs: float = 0.0
    allowed: float = 0.0
    from_module: str = ""

    @property
    def fails(self) -> bool:
        """Whether it was run and is off by more than rounding explains."""
        return self.ran and bool(self.reason)

    def as_json(self) -> dict[str, Any]:
        """The stage as reports hold it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Found:
    """The first place that is off.

    `step` is what made it: a pass of the pipeline, or the stage itself. `layer` is the number of
    the transformer layer, None outside of one. `nodes` are those that may be to blame, `changed`
    says in what the node differs from the graph before. `local` is the error on exact inputs,
    `accumulated` that of the whole graph up to there.
    """

    stage: str
    step: str
    module: str
    layer: int | None
    node: str
    op_type: str
    value: str
    nodes: tuple[str, ...]
    changed: str
    told_by: str
    local: Gap | None
    accumulated: Gap | None

    def as_json(self) -> dict[str, Any]:
        """The place as reports hold it."""
        plain = dataclasses.asdict(self)
        for name, gap in (("local", self.local), ("accumulated", self.accumulated)):
            plain[name] = None if gap is None else {**dataclasses.asdict(gap), "beyond": gap.beyond}
        return plain


@dataclass(frozen=True)
class Bisection:
    """Where one engine leaves PyTorch.

    `inputs` says on which input it was looked for; `modules` are the modules of PyTorch in the
    graph that fails, or in the last one where none does; `notes` are what else is worth knowing.
    `graph` is which of the model's graphs was looked into; empty if none was.
    """

    engine: str
    outcome: str
    reason: str = ""
    inputs: str = ""
    stages: tuple[StageGap, ...] = ()
    found: Found | None = None
    modules: tuple[ModuleGap, ...] = ()
    notes: tuple[str, ...] = ()
    reproducer: Reproducer | None = None
    graph: str = ""

    def as_json(self) -> dict[str, Any]:
        """The report as reports/verify.json holds it."""
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "graph": self.graph,
            "inputs": self.inputs,
            "stages": [stage.as_json() for stage in self.stages],
            "first": None if self.found is None else self.found.as_json(),
            "modules": [
                {
                    "module": each.module,
                    "kind": each.kind,
                    "value": each.value,
                    "max_abs": each.gap.max_abs,
                    "allowed": each.gap.allowed_max,
                    "beyond": each.gap.beyond,
                }
                for each in self.modules
            ],
            "notes": list(self.notes),
            "reproducer": None if self.reproducer is None else self.reproducer.as_json(),
        }


def from_module(gaps: list[ModuleGap]) -> str:
    """The module from which on every output is off; empty if the last one is not.

    A fusion moves a bias or a scale over the border of a module: then that module's output is
    another one, and those after it are right again.
    """
    first = ""
    for each in reversed(gaps):
        if not each.gap.beyond:
            break
        first = each.module
    return first
