"""`tfc inspect --kernels`: what TensorRT compiled for an engine, and for the export before it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tfc.artifact import Artifact, graph_file
from tfc.errors import BadArtifact, BadInput, ContractNotReached, UsageError, require
from tfc.kernel_report import KernelRecord, KernelReport, report_from_json
from tfc.manifest import Engine
from tfc.runtime.backends import backend as backend_of
from tfc.runtime.backends.base import Profile, Range
from tfc.steps.engine_audit import kernels_file
from tfc.steps.kernel_records import records_of_kernels
from tfc.steps.raw_export import raw_in_precision


@dataclass(frozen=True)
class Before:
    """What the unoptimized export was compiled to, or why TensorRT refuses it."""

    report: KernelReport | None
    refusal: str = ""


def compiled_engines(artifact: Artifact, asked: tuple[str, ...] = ()) -> dict[str, Engine]:
    """The engines that have a list of kernels: those asked for, or all of TensorRT.

    Raises:
        UsageError: there is none, or one that was asked for is not of TensorRT.
    """
    engines = engines_of(artifact, asked)
    compiled = {n: e for n, e in engines.items() if kernels_file(backend_of(e.backend), n)}
    build = f"tfc build-engine {artifact.path} --fp16 --backend tensorrt-rtx"
    if not compiled and not asked:
        raise UsageError(
            "this artifact has no TensorRT engine whose kernels could be listed",
            fix=f"Build one with: {build}",
        )
    others = [name for name in engines if name not in compiled]
    if asked and others:
        raise UsageError(
            f"the engine '{others[0]}' has no compiled kernels: the kernels of "
            f"{engines[others[0]].backend} come with it",
            fix=f"Build one that has with: {build}",
        )
    return compiled


def engines_of(artifact: Artifact, asked: tuple[str, ...] = ()) -> dict[str, Engine]:
    """The engines of these names, or all.

    Raises:
        UsageError: the artifact has no engine of such a name.
    """
    engines = artifact.manifest.engines
    for name in asked:
        if name not in engines:
            raise UsageError(
                f"this artifact has no engine '{name}'",
                fix=f"It has: {', '.join(engines)}"
                if engines
                else f"Build one with: tfc build-engine {artifact.path}",
            )
    return {name: engine for name, engine in engines.items() if not asked or name in asked}


def kernels_of_engine(artifact: Artifact, name: str) -> KernelReport:
    """The kernels that were recorded when the engine was built.

    Raises:
        BadArtifact: they were not recorded, or the file is damaged.
    """
    engine = artifact.manifest.engines[name]
    file = kernels_file(backend_of(engine.backend), name)
    if file not in artifact.manifest.files:
        raise BadArtifact(
            f"the engine '{name}' was built by an older tfc, which kept no list of its kernels",
            where=str(artifact.path),
            fix=f"Build it again with: {_build_command(artifact, engine)}",
        )
    path = artifact.file(file)
    return report_from_json(path.read_text(encoding="utf-8"), where=str(path))


def kernels_before(artifact: Artifact, name: str) -> Before:
    """Compile the export as it is, with the engine's backend, precision and profile; keep nothing.

    Raises:
        MissingPackage: the backend, or what reads the graph, is not installed.
        BackendUnavailable: the backend cannot build here.
    """
    for package in ("onnx", "onnx_ir"):
        require(package, "compile")
    engine = artifact.manifest.engines[name]
    try:
        graphs = {
            graph: _compiled_export(artifact, engine, graph) for graph in artifact.manifest.graphs
        }
    except (BadInput, ContractNotReached) as error:
        return Before(None, error.what)
    return Before(KernelReport(engine.backend, engine.precision, graphs))


def _compiled_export(artifact: Artifact, engine: Engine, graph: str) -> list[KernelRecord]:
    import onnx_ir as ir

    from tfc.onnx_files import save_onnx
    from tfc.steps.build import inputs_of_graph

    model = ir.load(artifact.file(graph_file(graph)))
    with tempfile.TemporaryDirectory(prefix="tfc-kernels-") as folder:
        raw = Path(folder) / graph_file(graph)
        save_onnx(raw_in_precision(model, engine.precision), raw)
        inputs = inputs_of_graph(artifact.manifest.graphs[graph])
        plan = Path(folder) / "plan"
        built = backend_of(engine.backend).build(raw, plan, inputs, _profile(engine))
    return records_of_kernels(built.kernels, model)


def _profile(engine: Engine) -> Profile:
    """The profile as the manifest keeps it: axis → [min, opt, max]."""
    ranges = {axis: Range(*sizes) for axis, sizes in engine.profile.items()}
    others = {axis: sizes for axis, sizes in ranges.items() if axis not in ("batch", "sequence")}
    return Profile(ranges["batch"], ranges["sequence"], others)


def _build_command(artifact: Artifact, engine: Engine) -> str:
    half = "" if engine.precision == "fp32" else f" --{engine.precision}"
    return f"tfc build-engine {artifact.path}{half} --backend {engine.backend}"
