"""`tfc verify --bisect`: the first pass, layer and node where an engine leaves PyTorch.

The graphs that an engine came from (exported, optimized, in its precision, in its file) run on the
executor on the input where the engine is furthest off, and the engine itself where it can. The
first of them that is off by more than its precision explains is the one to look into: beside the
graph before it, value by value (`tfc.optimizers.bisection`). Of a model that generates that is done
with one call of one of its graphs (`tfc.steps.bisection.generating`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tfc.artifact import Artifact
from tfc.errors import BadArtifact, require
from tfc.manifest import MODEL
from tfc.runtime.backends.base import Runner
from tfc.runtime.parity import Tolerance, tolerance_of
from tfc.steps.bisection.chain import Graphs, graphs_of
from tfc.steps.bisection.generating import Calls, chosen_call
from tfc.steps.bisection.inputs import BisectInput, bisect_input
from tfc.steps.bisection.report import NOT_RUN, Bisection
from tfc.steps.bisection.run import Run
from tfc.steps.cases import Cases
from tfc.steps.generation_cases import GenerationCases
from tfc.steps.int8.verdict import FloorRunner
from tfc.steps.record import OnProgress
from tfc.steps.reference import Recorded, Reference

Array = npt.NDArray[Any]
_AGREES = "the encoder, if there is one, and a token with a cache are not off either"


@dataclass(frozen=True)
class Measured:
    """What verifying an engine gave: the values of PyTorch and of the engine, and the tolerance.

    `got` is None, and `why_not_run` says why, where the engine does not run here.
    """

    expected: list[Array]
    got: list[Array] | None
    why_not_run: str
    tolerance: Tolerance


def bisect(
    artifact: Artifact,
    name: str,
    cases: Cases | GenerationCases,
    reference: Reference | Recorded,
    measured: Measured,
    runners: dict[str, Runner],
    on_progress: OnProgress,
) -> Bisection:
    """Where an engine leaves PyTorch.

    Args:
        artifact: the artifact.
        name: the engine's name.
        cases: the data.
        reference: PyTorch.
        measured: what was found on the data.
        runners: the engine's graphs, loaded; none where it does not run here.
        on_progress: called with what is under way.

    Raises:
        MissingPackage: onnx or polygraphy is not installed.
    """
    for package in ("onnx", "onnx_ir", "polygraphy"):
        require(package, "compile")
    engine = artifact.manifest.engines[name]
    try:
        chains = {graph: graphs_of(artifact, name, engine, graph) for graph in engine.files}
    except BadArtifact as error:
        return Bisection(name, NOT_RUN, error.what)
    if isinstance(cases, GenerationCases):
        run = _of_generator(artifact, name, cases, reference, measured, runners, chains)
        return run.bisection(on_progress)
    graphs, notes = chains[MODEL]
    runner = runners.get(MODEL)
    chosen = _input(artifact, cases, reference, measured, runner, graphs, on_progress)
    why_not = measured.why_not_run
    run = Run(artifact, name, engine, MODEL, graphs, reference, why_not, runner, chosen, notes)
    return run.bisection(on_progress)


def _input(
    artifact: Artifact,
    cases: Cases,
    reference: Reference | Recorded,
    measured: Measured,
    runner: Runner | None,
    graphs: Graphs,
    on_progress: OnProgress,
) -> BisectInput:
    """What is worst for the engine, or for the last graph where the engine does not run here."""
    from tfc.optimizers.executor import runner_of

    got = measured.got
    if runner is not None and got is not None:
        call: Any = runner.run
    else:
        _, last = list(graphs.values())[-1]
        call = runner_of(last)
        got = cases.values_of(call, lambda done, total: on_progress("the graph", done, total))
    found = measured.expected, got
    return bisect_input(artifact.manifest, cases, reference, call, found, measured.tolerance)


def _of_generator(
    artifact: Artifact,
    name: str,
    cases: GenerationCases,
    reference: Any,
    measured: Measured,
    runners: dict[str, Runner],
    chains: Mapping[str, tuple[Graphs, tuple[str, ...]]],
) -> Run:
    """The graph whose call is the first that is off, or the decoder."""
    from tfc.optimizers.executor import runner_of

    manifest = artifact.manifest
    engine = manifest.engines[name]
    loaded, got = runners, measured.got
    if not loaded or got is None:
        last = {graph: list(graphs.values())[-1][1] for graph, (graphs, _) in chains.items()}
        loaded = {graph: FloorRunner(runner_of(model)) for graph, model in last.items()}
        got = cases.of_engine(loaded, lambda done, total: None)
    exact = tolerance_of(measured.expected, None, "fp32")
    calls = Calls(manifest, reference.module, engine.precision, measured.tolerance, exact)
    call, is_off = chosen_call(calls, cases, (measured.expected, got), loaded)
    graphs, notes = chains[call.graph]
    if not is_off:
        notes = (*notes, _AGREES)
    return Run(
        artifact,
        name,
        engine,
        call.graph,
        graphs,
        calls.reference(call.graph),
        measured.why_not_run,
        runners.get(call.graph),
        call,
        notes,
    )
