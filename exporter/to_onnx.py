"""`onnx_from_module`: a module as an ONNX graph with dynamic axes and names that mean something."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from tfc.errors import BadCheckpoint, first_line
from tfc.exporter.patches import patch
from tfc.exporter.source_lines import offending_line
from tfc.manifest import Signature, TensorSpec

# Opset 23 is the first with Attention and RMSNormalization, which keeps what the graph means.
OPSET = 23
# The exporter specialises sizes 0 and 1, so the example must have neither.
_EXAMPLE_BATCH = 2
_EXAMPLE_SEQUENCE = 7
_SCOPES = "pkg.torch.onnx.name_scopes"
# What torch.export calls the scope of nodes that it added itself.
_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"
MODULE_KEY = "tfc.module"
# What to do about a forward that the exporter cannot follow, or not as it was asked.
_DATA = (
    "Its forward must not depend on data: torch.where chooses between values without "
    "looking at them. Run with --debug for the exporter's report"
)
_FIXED = (
    "Its forward must not make a number of that size, nor take one size only; of your own module "
    "that does, leave the axis out of dynamic_axes"
)
_UNUSED = "Its forward must use every input; of your own module that does not, leave the input out"


@dataclass(frozen=True)
class Axis:
    """A dynamic axis: its name and its sizes."""

    name: str
    max: int = 1 << 20
    min: int = 1


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph: its name, an example, and which of its axes are dynamic.

    The exporter specialises sizes 0 and 1, so a dynamic axis of the example has neither.
    """

    name: str
    example: torch.Tensor
    axes: Mapping[int, Axis]


# An argument of a module's `forward`: one tensor, or a list of them.
Argument = GraphInput | Sequence[GraphInput]
BATCH = Axis("batch", max=1 << 16)


def onnx_from_module(
    module: torch.nn.Module,
    arguments: Sequence[Argument],
    output_names: Sequence[str],
    sums: Mapping[str, tuple[str, str]] | None = None,
) -> ir.Model:
    """Export a module with named inputs, outputs and dynamic axes.

    Every node carries the path of the module that it came from in its metadata (`tfc.module`).

    Args:
        module: the module, in evaluation mode; it gives one tensor or a tuple of them.
        arguments: what its `forward` takes, in order.
        output_names: the names of its outputs, in order.
        sums: names of sizes that are the sum of two axes: `{"total": ("past", "sequence")}`.

    Raises:
        BadCheckpoint: the exporter cannot follow the module; the message has its reason.
    """
    inputs = [each for argument in arguments for each in _inputs_in(argument)]
    axes = {axis.name: axis for each in inputs for axis in each.axes.values()}
    dims = {a.name: torch.export.Dim(a.name, min=a.min, max=a.max) for a in axes.values()}

    def dynamic(each: GraphInput) -> dict[int, Any]:
        return {index: dims[axis.name] for index, axis in each.axes.items()}

    # Without gradients: torch 2.13 chooses another kernel for scaled_dot_product_attention while it
    # decomposes than while it captures, when a mask comes from a parameter that may be trained
    # (T5's position bias), and then refuses the layout that the first one had.
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                tuple(_mapped(lambda each: each.example, argument) for argument in arguments),
                dynamo=True,
                opset_version=OPSET,
                input_names=[each.name for each in inputs],
                output_names=list(output_names),
                dynamic_shapes=tuple(_mapped(dynamic, argument) for argument in arguments),
                verbose=False,
            )
        except Exception as error:  # whatever the model's own forward raises surfaces here
            raise _export_failed(module, error) from error
    assert program is not None  # torch.onnx.export(dynamo=True) returns a program
    model = _with_module_paths(program.model)
    patch(model)
    _check_axes(module, model, inputs)
    return _without_name_clashes(_with_sums_named(model, sums or {}))


def text_inputs(names: Sequence[str], longest: int | None) -> list[GraphInput]:
    """Inputs `[batch, sequence]` that every text model takes: small ids, a mask with a hole."""
    mask = torch.ones((_EXAMPLE_BATCH, _EXAMPLE_SEQUENCE), dtype=torch.int64)
    mask[1, -2:] = 0
    values = {
        "input_ids": torch.arange(5, 5 + mask.numel()).view(mask.shape) % 64,
        "attention_mask": mask,
        "token_type_ids": torch.zeros(mask.shape, dtype=torch.int64),
    }
    axes = {0: BATCH, 1: Axis("sequence", max=longest or Axis.max)}
    return [GraphInput(name, values[name], axes) for name in names]


def image_input(channels: int, height: int, width: int) -> GraphInput:
    """`pixel_values` `[batch, channels, height, width]`; only the batch is dynamic."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn((_EXAMPLE_BATCH, channels, height, width), generator=generator)
    return GraphInput("pixel_values", pixels, {0: BATCH})


def signature_of(model: ir.Model) -> Signature:
    """Names, types and shapes of a graph's inputs and outputs."""
    return Signature(
        inputs=[_spec_of(value) for value in model.graph.inputs],
        outputs=[_spec_of(value) for value in model.graph.outputs],
    )


def _inputs_in(argument: Argument) -> Sequence[GraphInput]:
    return [argument] if isinstance(argument, GraphInput) else argument


def _mapped(function: Callable[[GraphInput], Any], argument: Argument) -> Any:
    """The argument in its own form, with `function` of each of its inputs."""
    if isinstance(argument, GraphInput):
        return function(argument)
    return [function(each) for each in argument]


def _check_axes(module: torch.nn.Module, model: ir.Model, inputs: Sequence[GraphInput]) -> None:
    """The exporter may drop an input, or fix an axis to the example's size without a word."""
    given = {str(value.name): value for value in model.graph.inputs}
    for each in inputs:
        if each.name not in given:
            raise _cannot_export(module, f"the graph does not depend on {each.name}", _UNUSED)
        shape = given[each.name].shape
        for index, axis in each.axes.items():
            if shape is None or str(shape[index]) != axis.name:
                size = "any" if shape is None else shape[index]
                raise _cannot_export(module, f"{axis.name} of {each.name} becomes {size}", _FIXED)


def _with_sums_named(model: ir.Model, sums: Mapping[str, tuple[str, str]]) -> ir.Model:
    """Call a size `past + sequence`, in whichever order it is written, `total`."""
    names = {f"{one} + {other}": name for name, (one, other) in sums.items()}
    names |= {f"{other} + {one}": name for name, (one, other) in sums.items()}
    for value in _values_of(model) if sums else ():
        if value.shape is not None:
            sizes = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            value.shape = ir.Shape([names.get(str(size), size) for size in sizes])
    return model


def _spec_of(value: ir.Value) -> TensorSpec:
    assert value.dtype is not None
    assert value.shape is not None
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return TensorSpec(str(value.name), value.dtype.numpy().name, shape)


def _with_module_paths(model: ir.Model) -> ir.Model:
    """Replace the exporter's bulky metadata (stack traces, local paths) by the module path."""
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(_SCOPES)
        node.metadata_props.clear()
        node.doc_string = None
        if scopes is not None:
            node.metadata_props[MODULE_KEY] = _module_path(scopes)
    for value in _values_of(model):
        value.metadata_props.clear()
        value.doc_string = None
    for initializer in list(model.graph.initializers.values()):
        name = str(initializer.name)
        if name.startswith("model."):
            initializer.name = name.removeprefix("model.")
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = "tfc"
    model.graph.doc_string = None
    model.doc_string = None
    return model


def _without_name_clashes(model: ir.Model) -> ir.Model:
    """Rename inner values that happen to be called like an input or an output."""
    named = {id(v): str(v.name) for v in [*model.graph.inputs, *model.graph.outputs]}
    taken = set(named.values())
    for value in _values_of(model):
        if value.name in taken and id(value) not in named:
            value.name = f"{value.name}_inner"
    return model


def _module_path(scopes: str) -> str:
    """The innermost module in the exporter's list of scopes, without our wrapper's prefix."""
    names = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    path = names[-2] if len(names) > 1 else ""
    if path == _NO_SCOPE:
        return ""
    return "" if path == "model" else path.removeprefix("model.")


def _values_of(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from list(model.graph.initializers.values())  # those who read may rename them
    for node in model.graph.all_nodes():
        yield from node.outputs


def _export_failed(module: torch.nn.Module, error: Exception) -> BadCheckpoint:
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return _cannot_export(module, first_line(causes[-1]), _DATA, error)


def _cannot_export(
    module: torch.nn.Module, reason: str, fix: str, error: Exception | None = None
) -> BadCheckpoint:
    name = type(getattr(module, "model", module)).__name__
    found = offending_line(error) if error is not None else None
    at = f", at `{found.text}` in {found.function}" if found is not None else ""
    return BadCheckpoint(
        f"torch.onnx cannot export {name}{at}: {reason}",
        where=f"{found.file}:{found.line}" if found is not None else "",
        fix=fix,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's advice and its printed graphs off the terminal; its errors are raised."""
    loggers: list[Any] = [logging.getLogger("torch"), logging.getLogger("torch.onnx")]
    levels = [logger.level for logger in loggers]
    tracing: Any = importlib.import_module("torch.export._trace")
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    tracing.print = _print_nothing  # it prints the graph so far to stderr before it raises
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        del tracing.print
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _print_nothing(*values: object, **options: object) -> None:
    """Take the place of `print`."""
