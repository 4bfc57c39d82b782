"""`tfc.export_module`: any PyTorch module becomes an artifact; and `tfc.export` for both kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfc.ensemble import nothing_combines
from tfc.errors import UsageError, require
from tfc.manifest import Step
from tfc.steps.export import PACKAGES, ExportResult, existing_artifact, write_artifact
from tfc.steps.export import export as export_checkpoint
from tfc.steps.export_ensemble import export_ensemble, export_heads
from tfc.steps.record import onnxruntime_version, versions_of

if TYPE_CHECKING:
    import torch

NAME = "export"


def export(
    checkpoint: str | Path | Sequence[str | Path] | torch.nn.Module,
    *arguments: Any,
    **options: Any,
) -> ExportResult:
    """Export a checkpoint, several of them, or a module.

    `export(checkpoint, output, …)` is `tfc.steps.export.export`,
    `export([first, second], output, ensemble="mean", …)` is `export_ensemble`,
    `export([first, second], output, heads=["intent", "mood"], …)` is `export_heads`, and
    `export(module, example_inputs, output, …)` is `export_module`; each takes its own options.
    """
    if isinstance(checkpoint, (list, tuple)):
        if "heads" in options and "ensemble" in options:
            raise UsageError(
                "an ensemble has one output, and heads have one each", fix="Choose one of the two"
            )
        if "heads" in options:
            return export_heads(checkpoint, *arguments, **options)
        if "ensemble" not in options:
            raise nothing_combines(len(checkpoint))
        return export_ensemble(checkpoint, *arguments, **options)
    if isinstance(checkpoint, (str, Path)):
        return export_checkpoint(checkpoint, *arguments, **options)
    return export_module(checkpoint, *arguments, **options)


def export_module(
    module: torch.nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
    output: str | Path | None = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str] | Sequence[int]] | None = None,
    overwrite: bool = False,
    on_stage: Callable[[str], None] = lambda what: None,
) -> ExportResult:
    """Export any module to ONNX and check at once that the graph says the same.

    It is exported in evaluation mode, and compared so, but for one thing: `nn.TransformerEncoder`
    then gives 0 at padding (its `enable_nested_tensor`), and the graph gives what it computes
    there in training. The comparison runs on the examples and on other sizes of
    the dynamic axes, drawn from the examples' ranges; they and PyTorch's outputs are kept in the
    artifact, so that `tfc verify` needs no checkpoint. Engines of it take tensors: `Session.run`.

    Args:
        module: the module, on the CPU.
        example_inputs: a tensor, a tuple of them in the order of `forward`, or a dict by the names
            of its parameters.
        output: the folder to create; left out, one with the name of the module's class.
        input_names: names for a tuple's inputs; those of `forward`'s parameters if left out.
        output_names: names for the tensors that it gives; the keys of a dict, `output`, or
            `output_0`, `output_1`, … if left out.
        dynamic_axes: the axes whose size may differ, as in torch.onnx:
            `{"x": {0: "batch", 1: "sequence"}}`. Axes of one name have one size. Outputs may be
            named too; what is dynamic about them follows from the graph.
        overwrite: replace an artifact that is there already.
        on_stage: called with a few words whenever a stage begins.

    Raises:
        MissingPackage: torch or onnx is not installed.
        BadCheckpoint: the module cannot be exported; the message has the line of its source.
        CheckFailed: the exported graph does not say what the module says.
        UsageError: examples, names and axes do not fit each other, or `output` is taken.
    """
    for package in PACKAGES:
        require(package, "compile")
    import torch

    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"this is neither the place of a checkpoint nor a module: {type(module).__name__}",
            fix="Give a folder, a hub id or an nn.Module",
        )
    from tfc.exporter.custom import export_custom
    from tfc.exporter.module_inputs import inputs_of_module

    axes = dict(dynamic_axes or {})
    inputs = inputs_of_module(module, example_inputs, input_names, axes, tuple(output_names or ()))
    target = Path(output if output is not None else type(module).__name__)
    step = Step(
        name=NAME,
        options={
            "dynamic_axes": {name: sorted(each.values()) for name, each in inputs.axes.items()}
        },
        inputs={},
        outputs=[],
        versions={**versions_of(*PACKAGES), **onnxruntime_version()},
        seconds=0.0,
    )
    # The code of a module cannot be compared: it is exported anew, or not at all.
    existing_artifact(target, None, overwrite)
    artifact = write_artifact(
        target,
        step,
        lambda folder: export_custom(module, inputs, folder, output_names, on_stage),
    )
    return ExportResult(artifact, skipped=False)
