"""Export any `nn.Module`: tensors in, tensors out, no tokenizer, and no checkpoint to come back to.

What the module gives on varied inputs is kept beside the graph (`samples.npz`), so that engines
can be compared with PyTorch later, without the module's code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch

from tfc.artifact import graph_file
from tfc.errors import UsageError
from tfc.exporter.comparison import check_outputs
from tfc.exporter.exported import Exported
from tfc.exporter.module_inputs import ModuleInputs, resized
from tfc.exporter.module_samples import (
    FlatOutputs,
    flattened,
    limits_of,
    samples_of,
    with_flat_outputs,
)
from tfc.exporter.to_onnx import Axis, GraphInput, onnx_from_module, signature_of
from tfc.exporter.torch_transformer import without_shortcuts
from tfc.manifest import MODEL, Checkpoint, Graph, Task
from tfc.onnx_files import save_onnx
from tfc.tensor_samples import TENSOR_SAMPLES, save_tensor_samples

TENSORS = "tensors"
# Below these sizes the exporter takes an axis for a constant.
_SMALLEST_EXAMPLE = 2


def export_custom(
    module: torch.nn.Module,
    inputs: ModuleInputs,
    folder: Path,
    output_names: Sequence[str] | None,
    on_stage: Callable[[str], None],
) -> Exported:
    """Write the module's graph and the samples into `folder`, and check parity on the samples.

    Raises:
        BadCheckpoint: the module cannot be exported, or fails on every size but the examples'.
        CheckFailed: the graph does not say what the module says.
        UsageError: the module is not on the CPU, or output_names do not fit.
    """
    _check_device(module)
    with _evaluating(module), without_shortcuts(module):
        flat = with_flat_outputs(module, inputs)
        names = _output_names(module, inputs, output_names)
        on_stage("exporting to ONNX")
        longest = limits_of(flat, inputs)
        graph = _graph(flat, inputs, names, longest)
        path = folder / graph_file(MODEL)
        save_onnx(graph, path)
        on_stage("checking parity with the module")
        samples = samples_of(flat, inputs, names, longest)
        where = type(module).__name__
        parity = check_outputs(flat, path, [sample.inputs for sample in samples], where)
        save_tensor_samples(samples, folder / TENSOR_SAMPLES)
    return Exported(
        checkpoint=_identity(module),
        task=Task(TENSORS),
        graphs={MODEL: Graph(signature_of(graph))},
        parity=parity,
        longest=longest,
    )


def _graph(
    flat: FlatOutputs, inputs: ModuleInputs, names: Sequence[str], longest: Mapping[str, int]
) -> ir.Model:
    """The graph, every axis as dynamic as it was asked to be."""
    sizes = {axis: max(size, _SMALLEST_EXAMPLE) for axis, size in inputs.sizes.items()}
    examples = inputs.examples if sizes == inputs.sizes else resized(inputs, sizes, seed=0)
    dynamic = {axis: Axis(axis, max=longest.get(axis, Axis.max)) for axis in sizes}
    given = [
        GraphInput(name, example, {i: dynamic[axis] for i, axis in inputs.axes[name].items()})
        for name, example in examples.items()
    ]
    return onnx_from_module(flat, given, names)


def _output_names(
    module: torch.nn.Module, inputs: ModuleInputs, asked: Sequence[str] | None
) -> list[str]:
    with torch.no_grad():
        if inputs.by_keyword:
            found = module(**inputs.examples)
        else:
            found = module(*inputs.examples.values())
    told = [name for name, _ in flattened(found)]
    names = told if asked is None else list(asked)
    if len(names) != len(told) or len({*names, *inputs.examples}) < len(names) + len(
        inputs.examples
    ):
        raise UsageError(
            f"the module gives {len(told)} tensors, and their names are: {', '.join(names)}",
            fix="Give as many output_names, each different from the others and from the inputs",
        )
    return names


def _check_device(module: torch.nn.Module) -> None:
    devices = {p.device.type for p in (*module.parameters(), *module.buffers())} - {"cpu"}
    if devices:
        raise UsageError(
            f"the module is on the device '{devices.pop()}'",
            fix="Move it and its example inputs to the CPU with module.cpu()",
        )


def _identity(module: torch.nn.Module) -> Checkpoint:
    """The class and the weights; the code of its forward is not part of the hash."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        content = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\n".encode())
        digest.update(content.tobytes())
    kind = type(module)
    return Checkpoint(
        source=f"{kind.__module__}.{kind.__qualname__}",
        sha256=digest.hexdigest(),
        model_type="module",
        architecture=kind.__name__,
        parameters=sum(p.numel() for p in module.parameters()),
    )


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout); afterwards every part is as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
