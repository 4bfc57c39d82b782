"""`optimize`: clean, recognise, raise, lower, in one visible order, each pass judged by numbers.

Norms and activations written out in primitives are recognised before the contract counts what
there is to fuse; then attention and residual norms are raised, and the result is lowered.

The ledger: after each pass that changed something, the graph runs on the same inputs as before
it. A pass that moves an output by more than the tolerance, a share of its scale, is undone, named,
and the next pass goes on from the graph before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from tfc.errors import ContractNotReached, first_line
from tfc.optimizers.computed import Deferred
from tfc.optimizers.contract import LABELS, Count, counts, expected_sites, fused_sites
from tfc.optimizers.executor import Feed, outputs_of, relative_difference
from tfc.optimizers.lowering.remove_padding import KIND as UNPAD_KIND
from tfc.optimizers.lowering.remove_padding import RemovePadding
from tfc.optimizers.passes import FusionPass, Pass, Refusal
from tfc.optimizers.precision.simulation import has_half
from tfc.optimizers.stages import RAISING, Selection, stages_of
from tfc.optimizers.stand_ins import Noise, stand_ins_of, with_real_weights

# Fusions reorder fp32 sums: measured below 2e-6 of the output's scale. What changes the meaning
# (a mask, a scale, an operand) is off by orders of magnitude more.
TOLERANCE = 1e-5
# In a graph in fp16 they also move where it rounds, to 11 bits: measured up to 1.5e-3 through two
# layers.
HALF_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Entry:
    """The ledger's line on one pass: `difference` is relative to the output's scale."""

    name: str
    changed: int
    difference: float
    reverted: bool
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """The line as it stands in the manifest."""
        return {
            "name": self.name,
            "changed": self.changed,
            "difference": self.difference if self.difference != float("inf") else None,
            "reverted": self.reverted,
            "error": self.error,
        }


@dataclass(frozen=True)
class Report:
    """What the pipeline did to a graph; `stand_ins` are the bytes of weights that it did not see.

    The passes were then judged on random weights in place of those (`tfc.optimizers.stand_ins`).
    """

    target: str
    counts: dict[str, Count]
    entries: tuple[Entry, ...]
    missed: tuple[Refusal, ...]
    nodes_before: int
    nodes_after: int
    tolerance: float = TOLERANCE
    probes: int = 0
    stand_ins: int = 0

    @property
    def reverted(self) -> list[str]:
        """The names of the passes that were undone."""
        return [entry.name for entry in self.entries if entry.reverted]

    def summary(self) -> str:
        """`attention 6/6, add+LayerNorm 12/12`."""
        return ", ".join(
            f"{LABELS.get(kind, kind)} {c.found}/{c.expected}" for kind, c in self.counts.items()
        )

    def as_json(self) -> dict[str, Any]:
        """The report as it stands in the manifest."""
        return {
            "fusions": {
                kind: {"found": c.found, "expected": c.expected} for kind, c in self.counts.items()
            },
            "passes": [entry.as_json() for entry in self.entries],
            "missed": [vars(r) for r in self.missed if r.kind in self.counts],
            "left_alone": [vars(r) for r in self.missed if r.kind not in self.counts],
            "reverted": self.reverted,
            "nodes": {"before": self.nodes_before, "after": self.nodes_after},
            "tolerance": self.tolerance,
            "probes": self.probes,
            **({"stand_in_bytes": self.stand_ins} if self.stand_ins else {}),
        }


@dataclass
class _Ledger:
    """The graph as it stands, its outputs, and the lines so far."""

    model: ir.Model
    feeds: Sequence[Feed]
    outputs: list[Any]
    tolerance: float
    noise: Noise | None = None
    entries: list[Entry] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def optimize(
    model: ir.Model,
    target: str,
    feeds: Sequence[Feed],
    *,
    fusion_sites: Mapping[str, int] | None = None,
    allow_missed: bool = False,
    selection: Selection | None = None,
    on_pass: Callable[[str, int, int], None] = lambda name, done, total: None,
    before_pass: Callable[[Pass, ir.Model], None] = lambda step, model: None,
) -> tuple[ir.Model, Report]:
    """Fuse and lower a graph for a target. The given model is not changed.

    Args:
        model: a graph in fp32 or fp16. It may have stand-ins for large weights, from
            `tfc.optimizers.stand_ins.with_stand_ins`; the graph that is returned has the weights
            themselves, or says how they are computed.
        target: one of `TARGETS`.
        feeds: inputs on which every pass is judged; padding on both sides and holes in the mask
            should be among them.
        fusion_sites: expected counts from the model's config; empty to count in the graph.
        allow_missed: return the graph although a fusion was missed.
        selection: a user's own passes, and which passes to run.
        on_pass: called with the pass's name, its number and how many there are.
        before_pass: called with each pass and the graph that it is about to see.

    Raises:
        UsageError: there is no such target or pass.
        ContractNotReached: fewer sites were fused than the model has, or padding was to be removed
            and is not.
    """
    stages = stages_of(target, selection)
    outputs = outputs_of(model, feeds)
    model = model.clone()
    ShapeInferencePass()(model)
    stand_ins = stand_ins_of(model)
    tolerance = HALF_TOLERANCE if has_half(model) else TOLERANCE
    ledger = _Ledger(model, feeds, outputs, tolerance, stand_ins[0].noise if stand_ins else None)
    before = len(model.graph)
    total = sum(len(stage.passes) for stage in stages)
    done = 0
    expected: dict[str, int] = {}
    found: dict[str, int] = {}
    for stage in stages:
        if stage.name == RAISING:
            expected = expected_sites(ledger.model, fusion_sites or {})
        for step in stage.passes:
            on_pass(step.name, done, total)
            before_pass(step, ledger.model)
            _run(ledger, step)
            done += 1
        if stage.name == RAISING:
            found = fused_sites(ledger.model)
    on_pass("done", total, total)
    ShapeInferencePass()(ledger.model)
    with_real_weights(ledger.model)
    report = Report(
        target=target,
        counts=counts(found, expected),
        entries=tuple(ledger.entries),
        missed=tuple(ledger.refusals),
        nodes_before=before,
        nodes_after=len(ledger.model.graph),
        tolerance=tolerance,
        probes=len(feeds),
        stand_ins=sum(each.nbytes for each in stand_ins),
    )
    if not allow_missed:
        _check(report)
        if selection is not None and selection.remove_padding:
            _check_padding(report)
    return ledger.model, report


def _run(ledger: _Ledger, step: Pass) -> None:
    """Apply one pass to a copy, and keep the copy if its numbers hold."""
    if isinstance(step, FusionPass) and (idle := step.nothing_to_do(ledger.model)) is not None:
        ledger.refusals += idle.refusals
        ledger.entries.append(Entry(step.name, 0, 0.0, reverted=False))
        return
    candidate = ledger.model.clone()
    reads = ledger.noise.reads if ledger.noise is not None else 0
    result = step.apply(candidate)
    _keep_output_names(candidate, ledger.model)
    ledger.refusals += result.refusals
    if not result.changed:
        ledger.entries.append(Entry(step.name, 0, 0.0, reverted=False))
        return
    try:
        if ledger.noise is not None and ledger.noise.reads > reads:
            _check_no_noise_in(candidate, ledger.model)
        outputs = outputs_of(candidate, ledger.feeds)
    except Exception as error:  # an invalid graph is reported as such, whatever the executor says
        reason = first_line(error)
        ledger.entries.append(Entry(step.name, result.changed, float("inf"), True, reason))
        return
    difference = relative_difference(ledger.outputs, outputs)
    holds = difference <= ledger.tolerance
    ledger.entries.append(Entry(step.name, result.changed, difference, reverted=not holds))
    if holds:
        ledger.model, ledger.outputs = candidate, outputs


def _check_no_noise_in(model: ir.Model, before: ir.Model) -> None:
    """Raise if a pass that looked at stand-ins wrote floats, which may be what it saw there."""
    known = {id(value.const_value) for value in before.graph.initializers.values()}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or id(tensor) in known or isinstance(tensor, Deferred):
            continue
        if tensor.dtype.is_floating_point():
            raise ValueError(
                f"it computed '{value.name}' after looking at weights that have stand-ins; "
                "describe it with tfc.optimizers.computed"
            )


def _keep_output_names(model: ir.Model, original: ir.Model) -> None:
    """A pass that replaced the node behind a graph output keeps the output's name."""
    for value, before in zip(model.graph.outputs, original.graph.outputs, strict=True):
        value.name = before.name


def _check(report: Report) -> None:
    short = [kind for kind, count in report.counts.items() if not count.reached]
    if not short:
        return
    nearest = [r for r in report.missed if r.kind in short][:3]
    sites = "; ".join(f"{r.module or r.node}: {r.reason}" for r in nearest)
    undone = f"; reverted by the ledger: {', '.join(report.reverted)}" if report.reverted else ""
    raise ContractNotReached(
        f"the fusion contract does not hold: {report.summary()}"
        + (f" (nearest misses: {sites})" if sites else "")
        + undone,
        fix="Pass --allow-missed to go on with the graph as it is",
    )


def _check_padding(report: Report) -> None:
    kept = [
        e for e in report.entries if e.name == RemovePadding.name and e.changed and not e.reverted
    ]
    if kept:
        return
    reasons = [f"{r.module or r.node}: {r.reason}" for r in report.missed if r.kind == UNPAD_KIND]
    undone = ["the ledger undid it, for it changed the numbers"] * (
        RemovePadding.name in report.reverted
    )
    raise ContractNotReached(
        f"padding stays in the graph: {'; '.join(reasons + undone) or 'there is no attention'}",
        fix="Leave --remove-padding out, or pass --allow-missed to go on with padding",
    )
