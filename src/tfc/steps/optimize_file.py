"""`tfc optimize MODEL.onnx`: fuse and lower a graph that tfc did not export."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfc.errors import BadInput, disk_errors, first_line, require
from tfc.files import sync
from tfc.onnx_files import save_onnx
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
    remove_padding: bool = False,
    stand_ins_from: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Report:
    """Optimize an ONNX file of any exporter and write the result.

    Weights in a file beside the graph stay there until the result is written, and are then copied
    one by one. Where they are too large to run, passes are judged on stand-ins for them
    (`tfc.optimizers.stand_ins`), and the report says so; if then `output` is in the folder of
    `model`, it goes on reading those that did not change from where they are.

    Expected fusions are counted in the graph: every softmax over scores, every norm of a sum. The
    graph is written even where some were missed; the report says which and why.

    Args:
        model: an ONNX file; below opset 23 it is converted.
        output: the ONNX file to write.
        target: `onnxruntime` (its CPU provider), `onnxruntime-cuda` or `tensorrt`.
        passes: modules, or `.py` files, with passes of your own.
        only: run the passes of these names only.
        skip: leave out the passes of these names.
        remove_padding: run linear layers on packed tokens, with padding around attention only; for
            the target `onnxruntime`.
        stand_ins_from: bytes of weights from which on passes are judged on stand-ins; 4 GiB
            unless given.
        on_progress: called with the pass under way.

    Raises:
        BadInput: the file is missing, is not ONNX, or does not run.
    """
    from tfc.optimizers import optimize

    graph, feeds, notes = graph_and_feeds(model, stand_ins_from)
    optimized, report = optimize(
        graph,
        target,
        feeds,
        allow_missed=True,
        selection=selection_of(passes, only, skip, remove_padding),
        on_pass=on_progress,
    )
    folder = Path(output).resolve().parent
    share = report.stand_ins > 0 and folder == Path(model).resolve().parent
    _write(optimized, Path(output), stay_in=folder if share else None)
    return dataclasses.replace(report, missed=(*notes, *report.missed))


def _write(model: ir.Model, output: Path, stay_in: Path | None) -> None:
    """Write the graph and its weights beside the place, then move them there, the graph last."""
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            save_onnx(model, Path(folder) / output.name, stay_in=stay_in)
            for file in sorted(Path(folder).iterdir(), reverse=True):
                sync(file)
                os.replace(file, output.with_name(file.name))
    sync(output.parent)


def graph_and_feeds(
    model: str | Path, stand_ins_from: int | None = None
) -> tuple[ir.Model, list[Feed], tuple[Refusal, ...]]:
    """The graph of an ONNX file in the current opset, inputs on which it runs, and what is to be
    said of its axes.

    The graph has stand-ins for its weights where those are too large.

    Raises:
        BadInput: the file is missing, is not ONNX, or does not run.
    """
    for package in ("onnx", "onnx_ir", "onnxscript"):
        require(package, "compile")
    import onnx
    import onnx_ir as ir

    from tfc.optimizers.axes import settle_axes
    from tfc.optimizers.opset import set_norms_aside, with_current_opset
    from tfc.optimizers.probes import ledger_feeds
    from tfc.optimizers.stand_ins import STAND_IN_BYTES, with_stand_ins

    path = Path(model)
    if not path.is_file():
        raise BadInput("there is no such file", where=str(path), fix="Give an ONNX file")
    try:
        proto = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(proto if set_norms_aside(proto) else path)
    except Exception as error:  # protobuf, onnx and the file system have no common error
        raise BadInput(
            f"the file is not an ONNX model ({first_line(error)})",
            where=str(path),
            fix="Export it again",
        ) from error
    graph = with_current_opset(proto)
    ir.external_data.set_base_dir(graph.graph, path.parent)
    graph = with_stand_ins(graph, STAND_IN_BYTES if stand_ins_from is None else stand_ins_from)
    try:
        notes = settle_axes(graph)
        return graph, ledger_feeds(graph), notes
    except Exception as error:  # ONNX Runtime's errors have no common root
        raise BadInput(
            f"the model does not run on probe inputs ({first_line(error)})",
            where=str(path),
            fix="Check it with ONNX Runtime, and name its dynamic axes",
        ) from error
