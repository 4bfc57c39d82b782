"""Which graph of an artifact later steps start from: the exported one, or its simplification."""

from __future__ import annotations

from tfc.artifact import Artifact, graph_file
from tfc.errors import BadArtifact
from tfc.manifest import MODEL, Step

SIMPLIFIED = f"simplified/{graph_file(MODEL)}"
SIMPLIFY_STEP = "simplify"


def simplify_step(artifact: Artifact) -> Step | None:
    """The record of the simplification, None if there is none.

    Raises:
        BadArtifact: the graph was exported anew since.
    """
    step = artifact.manifest.step(SIMPLIFY_STEP)
    exported = graph_file(MODEL)
    if step is not None and step.inputs[exported] != artifact.sha256(exported):
        raise BadArtifact(
            "the exported graph has changed since it was simplified",
            where=str(artifact.path),
            fix="Simplify it again, or go back with: tfc optimize --no-simplify",
        )
    return step


def source_file(artifact: Artifact, graph: str) -> str:
    """The name of the file with the graph that later steps start from."""
    simplified = graph == MODEL and simplify_step(artifact) is not None
    return SIMPLIFIED if simplified else graph_file(graph)


def source_sites(artifact: Artifact, graph: str) -> dict[str, int]:
    """The fusions that it must have: those of the config, less those of sublayers that went."""
    sites = artifact.manifest.graphs[graph].fusion_sites
    step = simplify_step(artifact) if graph == MODEL else None
    if step is None:
        return sites
    dropped: dict[str, int] = step.result["dropped_sites"]
    return {kind: count - dropped.get(kind, 0) for kind, count in sites.items()}
