"""The first wrong place inside an engine that is an ONNX graph: ONNX Runtime's own fusions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from tfc.runtime.backends import backend
from tfc.steps.bisection.places import Fails, Look
from tfc.steps.bisection.report import LOCAL, SUBGRAPH

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.bisection.gap import Gap
    from tfc.steps.bisection.inputs import Given

Array = npt.NDArray[Any]
_ENGINE = "engine"
_HIDDEN = (
    "with its inner values as outputs the engine is right: what is wrong is in what it fuses; "
    "it was found in sub-graphs with one output each"
)


def engine_look(name: str, graph: ir.Model, given: Given, fails: Fails) -> Look:
    """Where an engine is off that runs this graph, which the executor gets right.

    Sub-graphs run as the engine does: loaded by its backend, with its options.
    """
    from tfc.optimizers.bisection.cutting import computed, names_of_values
    from tfc.optimizers.bisection.places import compared, first_beyond

    names = names_of_values(graph)
    known = computed(graph, given.feed, names)

    def run(part: ir.Model, feed: Any) -> dict[str, Array]:
        return _on_backend(name, part, feed)

    watched = computed(graph, given.feed, names, run=run)
    outputs = {output: watched[output] for output in given.expected}
    notes: tuple[str, ...] = (_HIDDEN,)
    if fails(outputs, _ENGINE):
        places = compared(graph, given.feed, known, watched, reference=graph, run=run)
        place = first_beyond(places)
        if place is not None:
            return Look(place, _ENGINE, graph, known, LOCAL)
        notes = ()
    return _in_segments(graph, given, known, run, notes)


def _in_segments(
    graph: ir.Model, given: Given, known: dict[str, Array], run: Any, notes: tuple[str, ...]
) -> Look:
    from tfc.optimizers.bisection.fused import wrong_segment
    from tfc.optimizers.bisection.gap import gap_of
    from tfc.optimizers.bisection.places import half_of, place_of_segment, real_tokens
    from tfc.runtime.parity import FP32_TOLERANCE, NOISE_FACTOR

    half = half_of(graph)
    share = FP32_TOLERANCE if half is None else NOISE_FACTOR * 2.0**-half.bits

    def compare(name: str, got: Array) -> Gap:
        right, found = (real_tokens(array, given.feed) for array in (known[name], got))
        return gap_of(right, found, None, share)

    segment = wrong_segment(graph, given.feed, known, run, compare)
    if segment is None:
        return Look(step=_ENGINE, notes=notes, why_none="no sub-graph of the engine is wrong")
    inside = {name: known[name] for name in (*segment.at, segment.value)}
    return Look(place_of_segment(segment), _ENGINE, graph, inside, SUBGRAPH, notes)


def _on_backend(name: str, part: ir.Model, feed: Any) -> dict[str, Array]:
    """Run a sub-graph as an engine of this backend runs its graph."""
    from tfc.onnx_files import save_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(part, path)
        runner = backend(name).load(path)
        try:
            wanted = [str(value.name) for value in part.graph.inputs]
            return dict(runner.run({key: feed[key] for key in wanted}))
        finally:
            runner.close()
