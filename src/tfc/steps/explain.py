"""`tfc optimize --explain`: what each pass thought of one place in a graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfc.artifact import Artifact
from tfc.errors import UsageError, require
from tfc.simplified_graph import source_sites
from tfc.steps.optimize import loaded_graph, selection_of
from tfc.steps.optimize_file import graph_and_feeds
from tfc.steps.probes import probe_feeds

if TYPE_CHECKING:
    from tfc.optimizers.explain import Opinion


def explain(
    source: Artifact | Path,
    target: str,
    place: str,
    *,
    passes: Sequence[str] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    remove_padding: bool = False,
) -> list[Opinion]:
    """Ask every pass about a node, a value or a module. Nothing is written.

    Args:
        source: an artifact, or an ONNX file of any exporter.
        target: `onnxruntime` (its CPU provider), `onnxruntime-cuda` or `tensorrt`.
        place: the name of a node or of a value, or the path of a module.
        passes, only, skip, remove_padding: as for `optimize`.

    Raises:
        UsageError: no graph has such a place.
        BadInput: the file is missing, is not ONNX, or does not run.
    """
    require("onnx_ir", "compile")
    from tfc.optimizers.explain import explain as explain_graph
    from tfc.optimizers.stand_ins import with_stand_ins

    selection = selection_of(passes, only, skip, remove_padding)
    if isinstance(source, Path):
        graph, feeds, _ = graph_and_feeds(source)
        return explain_graph(graph, target, feeds, place, selection=selection)
    unknown: UsageError | None = None
    for name in source.manifest.graphs:
        try:
            return explain_graph(
                with_stand_ins(loaded_graph(source, name)),
                target,
                probe_feeds(source, name),
                place,
                fusion_sites=source_sites(source, name),
                selection=selection,
            )
        except UsageError as error:  # the next graph may have it
            unknown = error
    assert unknown is not None
    raise unknown
