"""The first wrong place of a stage: of the export, of a pass, of the precision or of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import UsageError
from tfc.runtime.padding import Feed
from tfc.simplified_graph import source_sites
from tfc.steps.bisection.report import ACCUMULATED, LOCAL, Found
from tfc.steps.optimize import loaded_graph, selection_of, step_name
from tfc.steps.probes import probe_feeds
from tfc.steps.record import OnProgress

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.exporter.module_gaps import Traced
    from tfc.optimizers.bisection.first_pass import Step
    from tfc.optimizers.bisection.gap import Gap
    from tfc.optimizers.bisection.places import Place

Array = npt.NDArray[Any]
# Whether these outputs of a graph of this stage fail.
Fails = Callable[[dict[str, Array], str], bool]
_OPTIMIZE = "optimize"
_EVERYWHERE = (
    "no node is off by itself on exact inputs: the difference grows through many nodes, and the "
    "place named is the first where it exceeds what rounding explains up to there"
)


@dataclass(frozen=True)
class Look:
    """The first wrong place, the graph that it is in, and right values of that graph by name.

    `why_none` says why there is no place.
    """

    place: Place | None = None
    step: str = ""
    graph: ir.Model | None = None
    known: dict[str, Array] = field(default_factory=dict)
    told_by: str = LOCAL
    notes: tuple[str, ...] = ()
    why_none: str = ""

    @property
    def gap(self) -> Gap:
        """How far the place is off, in the way in which it was told."""
        assert self.place is not None
        return self.place.accumulated if self.told_by == ACCUMULATED else self.place.local


@dataclass(frozen=True)
class Context:
    """What looking into a stage needs: the graph, its input, and when outputs fail on it."""

    artifact: Artifact
    graph: str
    feed: Feed
    fails: Fails
    on_progress: OnProgress


def found_in(stage: str, look: Look, layers: Mapping[str, int]) -> Found:
    """The place as it is reported."""
    place = look.place
    assert place is not None
    layer = next(
        (n for path, n in layers.items() if f"{place.module}.".startswith(f"{path}.")), None
    )
    return Found(
        stage,
        look.step or stage,
        place.module,
        layer,
        place.node,
        place.op_type,
        place.value,
        place.nodes or (place.node,),
        place.changed,
        look.told_by,
        place.local,
        place.accumulated,
    )


def pytorch_look(trace: Traced | None, graph: ir.Model, feed: Feed) -> Look:
    """The first wrong place of the exported graph, beside PyTorch's modules."""
    from tfc.optimizers.bisection.cutting import computed
    from tfc.optimizers.bisection.places import compared

    if trace is None:
        return Look(why_none="the artifact holds PyTorch's outputs only, none from inside of it")
    from tfc.exporter.module_gaps import expected_values

    known = expected_values(trace, graph, feed)
    places = compared(graph, feed, known, computed(graph, feed, known))
    return _first(places, graph, known)


def pass_look(
    context: Context, of_passes: bool, file: str, before: ir.Model, after: ir.Model
) -> Look:
    """The first wrong place of a graph beside the one before; of several passes, of the first."""
    if not of_passes:
        return _between(before, after, context.feed)
    notes: tuple[str, ...] = ()
    try:
        steps = _steps(context, file)
    except UsageError as error:
        return _between(before, after, context.feed, notes=(f"no pass is named: {error.what}",))
    wrong = _first_wrong(context, steps)
    if wrong is not None:
        return _between(wrong.before, wrong.after, context.feed, step=wrong.name)
    notes = (
        f"{file} is not what the passes make of the exported graph, which is right: "
        "the file was changed, or a pass was",
    )
    return _between(steps[-1].after if steps else before, after, context.feed, notes=notes)


def _steps(context: Context, file: str) -> list[Step]:
    """Run the passes again, as they were recorded.

    Raises:
        UsageError: a module with passes is not there any more.
    """
    from tfc.optimizers.bisection.first_pass import steps_of_pipeline

    artifact, target = context.artifact, file.split("/")[1]
    record = artifact.manifest.step(step_name(target))
    options: dict[str, Any] = record.options if record is not None else {}
    chosen = {key: options.get(key, []) for key in ("passes", "only", "skip")}
    return steps_of_pipeline(
        loaded_graph(artifact, context.graph),
        target,
        probe_feeds(artifact, context.graph),
        fusion_sites=source_sites(artifact, context.graph),
        selection=selection_of(**chosen, remove_padding=bool(options.get("remove_padding"))),
        on_pass=context.on_progress,
    )


def _first_wrong(context: Context, steps: list[Step]) -> Step | None:
    from tfc.optimizers.bisection.cutting import executed
    from tfc.optimizers.bisection.first_pass import first_wrong

    return first_wrong(steps, lambda graph: context.fails(executed(graph, context.feed), _OPTIMIZE))


def _between(
    before: ir.Model,
    after: ir.Model,
    feed: Feed,
    *,
    step: str = "",
    notes: tuple[str, ...] = (),
) -> Look:
    from tfc.optimizers.bisection.cutting import computed
    from tfc.optimizers.bisection.places import compared, shared_values

    names = shared_values(before, after)
    known = computed(before, feed, names)
    accumulated = computed(after, feed, names)
    places = compared(after, feed, known, accumulated, reference=before)
    return _first(places, after, known, step=step, notes=notes)


def _first(
    places: list[Place],
    graph: ir.Model,
    known: dict[str, Array],
    *,
    step: str = "",
    notes: tuple[str, ...] = (),
) -> Look:
    """The first place that is off by itself, or else the first that is off in all."""
    from tfc.optimizers.bisection.places import first_beyond

    place = first_beyond(places)
    if place is not None:
        return Look(place, step, graph, known, notes=notes)
    place = next((each for each in places if each.accumulated.beyond), None)
    if place is None:
        return Look(step=step, notes=notes, why_none="no inner value is off by more than rounding")
    right = {place.value: known[place.value]}  # nothing to cut at: all up to there is to blame
    return Look(place, step, graph, right, ACCUMULATED, (*notes, _EVERYWHERE))
