"""`tfc optimize MODEL.onnx`: fuse and lower a graph that tfc did not export."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfc.errors import BadInput, first_line, require
from tfc.files import write_atomically
from tfc.steps.optimize import selection_of
from tfc.steps.record import OnProgress, no_progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers import Report
    from tfc.optimizers.passes import Refusal
    from tfc.runtime.padding import Feed


def optimize_file(
    model: str | Path,
    output: str | Path,
    target: str,
    *,
    passes: Sequence[str] = (),
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    on_progress: OnProgress = no_progress,
) -> Report:
    """Optimize an ONNX file of any exporter and write the result.

    Expected fusions are counted in the graph: every softmax over scores, every norm of a sum. The
    graph is written even where some were missed; the report says which and why.

    Args:
        model: an ONNX file; below opset 23 it is converted.
        output: the ONNX file to write.
        target: `onnxruntime` (its CPU provider), `onnxruntime-cuda` or `tensorrt`.
        passes: modules, or `.py` files, with passes of your own.
        only: run the passes of these names only.
        skip: leave out the passes of these names.
        on_progress: called with the pass under way.

    Raises:
        BadInput: the file is missing, is not ONNX, or does not run.
    """
    import onnx_ir as ir

    from tfc.optimizers import optimize

    graph, feeds, notes = graph_and_feeds(model)
    optimized, report = optimize(
        graph,
        target,
        feeds,
        allow_missed=True,
        selection=selection_of(passes, only, skip),
        on_pass=on_progress,
    )
    write_atomically(Path(output), ir.to_proto(optimized).SerializeToString())
    return dataclasses.replace(report, missed=(*notes, *report.missed))


def graph_and_feeds(
    model: str | Path,
) -> tuple[ir.Model, list[Feed], tuple[Refusal, ...]]:
    """The graph of an ONNX file in the current opset, inputs on which it runs, and what is to be
    said of its axes.

    Raises:
        BadInput: the file is missing, is not ONNX, or does not run.
    """
    for package in ("onnx", "onnx_ir", "onnxscript"):
        require(package, "compile")
    import onnx

    from tfc.optimizers.axes import settle_axes
    from tfc.optimizers.opset import set_norms_aside, with_current_opset
    from tfc.optimizers.probes import ledger_feeds

    path = Path(model)
    if not path.is_file():
        raise BadInput("there is no such file", where=str(path), fix="Give an ONNX file")
    try:
        proto = onnx.load(path)
        set_norms_aside(proto)
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf, onnx and the file system have no common error
        raise BadInput(
            f"the file is not an ONNX model ({first_line(error)})",
            where=str(path),
            fix="Export it again",
        ) from error
    graph = with_current_opset(proto)
    try:
        notes = settle_axes(graph)
        return graph, ledger_feeds(graph), notes
    except Exception as error:  # ONNX Runtime's errors have no common root
        raise BadInput(
            f"the model does not run on probe inputs ({first_line(error)})",
            where=str(path),
            fix="Check it with ONNX Runtime, and name its dynamic axes",
        ) from error
