"""The graphs that an engine was made of, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tfc.artifact import Artifact, graph_file
from tfc.manifest import MODEL, Engine
from tfc.steps.optimize import optimized_file, step_name

if TYPE_CHECKING:
    import onnx_ir as ir

EXPORT, OPTIMIZE, PRECISION, FILE, ENGINE = (
    "export",
    "optimize",
    "precision",
    "engine file",
    "engine",
)
# The stages in fp32.
EXACT = (EXPORT, OPTIMIZE)
# Stage → the file of its graph, and the graph.
Graphs = Mapping[str, "tuple[str, ir.Model]"]


def graphs_of(
    artifact: Artifact, name: str, engine: Engine, graph: str = MODEL
) -> tuple[Graphs, tuple[str, ...]]:
    """What one graph of an engine was in each stage, and what is worth saying about it.

    A file with the bytes of the one before is left out, and so is one that was written again since
    the next one was made of it.

    Args:
        artifact: the artifact.
        name: the engine's name.
        engine: the engine.
        graph: which of the model's graphs.

    Raises:
        BadArtifact: a file is damaged.
    """
    import onnx_ir as ir

    files, read = _files_of(artifact, name, engine, graph)
    found: dict[str, tuple[str, ir.Model]] = {}
    notes = []
    seen: set[str] = set()
    for stage, file in files.items():
        sha256 = artifact.sha256(file)
        if sha256 in seen:
            continue
        seen.add(sha256)
        if read.get(file, sha256) != sha256:
            notes.append(f"{file} was written again since: the engine was not made of it")
            continue
        found[stage] = file, ir.load(artifact.file(file))
    return found, tuple(notes)


def _files_of(
    artifact: Artifact, name: str, engine: Engine, graph: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Stage → file; and the hashes of the files as the steps read them."""
    manifest = artifact.manifest
    build = manifest.step(f"build-engine:{name}")
    read = dict(build.inputs) if build is not None else {}
    own = graph_file(graph)
    built_from = next((file for file in read if file.rpartition("/")[2] == own), "")
    files = {EXPORT: own}
    if "/" in built_from:  # optimized/<target>.<precision>/model.onnx
        target = built_from.split("/")[1].partition(".")[0]
        files |= {OPTIMIZE: optimized_file(target, graph), PRECISION: built_from}
        optimized = manifest.step(step_name(target))
        read |= optimized.inputs if optimized is not None else {}
    if engine.files[graph].endswith(".onnx"):
        files[FILE] = engine.files[graph]
    precision = manifest.step(f"precision:{built_from}")
    read |= precision.inputs if precision is not None else {}
    return files, read
