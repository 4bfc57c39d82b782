"""One graph of an engine beside PyTorch: by stages, then the first that fails by values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.manifest import Engine
from tfc.runtime.backends.base import Runner
from tfc.steps.bisection.chain import ENGINE, EXACT, EXPORT, OPTIMIZE, PRECISION, Graphs
from tfc.steps.bisection.engine import engine_look
from tfc.steps.bisection.inputs import Given
from tfc.steps.bisection.places import Context, Look, found_in, pass_look, pytorch_look
from tfc.steps.bisection.report import FOUND, NOTHING, Bisection, StageGap, from_module
from tfc.steps.bisection.reproducer import reproducer_of
from tfc.steps.int8.options import QUANTIZED
from tfc.steps.int8.prepare import rebuilt, target_of
from tfc.steps.record import OnProgress
from tfc.steps.reference import Recorded, Reference

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.exporter.module_gaps import ModuleGap, Traced

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Run:
    """The bisection of one graph of an engine, on one input.

    `reference` is PyTorch called with the graph's inputs; `runner` the engine of the graph, None
    where it does not run here, for `why_not_run`.
    """

    artifact: Artifact
    name: str
    engine: Engine
    graph: str
    graphs: Graphs
    reference: Reference | Recorded
    why_not_run: str
    runner: Runner | None
    input: Given
    notes: tuple[str, ...]

    def bisection(self, on_progress: OnProgress) -> Bisection:
        """Run the stages, and look into the first that fails."""
        on_progress("bisecting", 0, 1)
        trace = self._trace()
        modules = self._modules(trace)
        stages = self._stages(modules)
        wrong = next((stage for stage in stages if stage.fails), None)
        described = self.input.described
        if wrong is None:
            last = tuple(next(reversed(modules.values()), []))
            notes = self._notes(trace)
            return Bisection(
                self.name,
                NOTHING,
                "",
                described,
                stages,
                None,
                tuple(last),
                notes,
                graph=self.graph,
            )
        look = self._look(wrong.name, trace, on_progress)
        found = found_in(wrong.name, look, self._layers()) if look.place is not None else None
        reproducer = None
        if look.place is not None and look.graph is not None:
            reproducer = reproducer_of(
                self.name, look.graph, self.input.feed, look.known, look.place.value, look.gap
            )
        return Bisection(
            self.name,
            FOUND if found is not None else NOTHING,
            wrong.reason if found is not None else look.why_none,
            described,
            stages,
            found,
            tuple(modules.get(wrong.name, [])),
            self._notes(trace) + look.notes,
            reproducer,
            self.graph,
        )

    def _look(self, stage: str, trace: Traced | None, on_progress: OnProgress) -> Look:
        """The first wrong place of a stage."""
        feed = self.input.feed
        if stage == EXPORT:
            return pytorch_look(trace, self.graphs[EXPORT][1], feed)
        if stage == ENGINE:
            if not self.engine.files[self.graph].endswith(".onnx"):
                return Look(why_none=f"{self.engine.backend} shows no values inside of a plan")
            return engine_look(self.engine.backend, self._last_graph(), self.input, self._fails)
        context = Context(self.artifact, self.graph, feed, self._fails, on_progress)
        file, after = self.graphs[stage]
        return pass_look(context, stage == OPTIMIZE, file, self._before(stage), after)

    def _before(self, stage: str) -> ir.Model:
        """The graph that a stage is compared with, value by value: the one that it was made of.

        No value of a quantised graph is that of the fp32 graph. It is compared with the recorded
        products quantised anew, as its verdict is.
        """
        if stage == PRECISION and self._quantized:
            return rebuilt(self.artifact, target_of(self.engine), self.graph, self.engine.precision)
        order = list(self.graphs)
        return self.graphs[order[order.index(stage) - 1]][1]

    @property
    def _quantized(self) -> bool:
        return self.engine.precision in QUANTIZED

    def _trace(self) -> Traced | None:
        """PyTorch with its modules hooked; None where there is no checkpoint to run."""
        if isinstance(self.reference, Recorded):
            return None
        from tfc.exporter.module_gaps import traced
        from tfc.optimizers.bisection.places import half_of

        halves = {half_of(graph) for _, graph in self.graphs.values()} - {None}
        return traced(self.reference.module, self.input.feed, [h for h in halves if h is not None])

    def _modules(self, trace: Traced | None) -> dict[str, list[ModuleGap]]:
        """PyTorch's modules in each graph; not in quantised ones, which do not only round."""
        if trace is None:
            return {}
        from tfc.exporter.module_gaps import module_gaps

        return {
            stage: module_gaps(trace, graph, self.input.feed)
            for stage, (_, graph) in self.graphs.items()
            if stage in EXACT or not self._quantized
        }

    def _stages(self, modules: dict[str, list[ModuleGap]]) -> tuple[StageGap, ...]:
        from tfc.optimizers.bisection.cutting import executed

        found = []
        for stage, (file, graph) in self.graphs.items():
            first = from_module(modules.get(stage, []))
            got = executed(graph, self.input.feed)
            found.append(self._stage(stage, file, got, first))
        file = self.engine.files[self.graph]
        if self.runner is None:
            reason = self.why_not_run
            return *found, StageGap(ENGINE, file, ran=False, reason=reason)
        return *found, self._stage(ENGINE, file, self.runner.run(self.input.feed), "")

    def _stage(self, stage: str, file: str, got: dict[str, Array], first: str) -> StageGap:
        judged = self.input.judged(got, stage in EXACT)
        text = "; ".join(judged.reasons)
        return StageGap(stage, file, True, text, judged.max_abs, judged.allowed, first)

    def _fails(self, got: dict[str, Array], stage: str) -> bool:
        return bool(self.input.judged(got, stage in EXACT).reasons)

    def _last_graph(self) -> ir.Model:
        return list(self.graphs.values())[-1][1]

    def _layers(self) -> dict[str, int]:
        """The module path of each transformer layer → its number."""
        from tfc.optimizers.graph import module_of
        from tfc.steps.kernel_records import layer_prefixes

        nodes = [n for _, graph in self.graphs.values() for n in graph.graph]
        attentions = [
            module_of(node)
            for node in nodes
            if "Attention" in node.op_type or node.op_type == "Softmax"
        ]
        return layer_prefixes(list(dict.fromkeys(attentions)))

    def _notes(self, trace: Traced | None) -> tuple[str, ...]:
        if trace is not None:
            return self.notes
        return (
            *self.notes,
            "PyTorch's modules were not compared: the artifact holds its outputs only",
        )
