"""What a module gives on inputs of several sizes, in fp32 and in half precision."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tfc.errors import BadCheckpoint, first_line
from tfc.exporter.module_inputs import ModuleInputs, other_sizes, resized
from tfc.tensor_samples import TensorSample

# Limits of an axis are looked for up to here, the largest size that engines are built for unasked.
_LONGEST = 512
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class FlatOutputs(torch.nn.Module):
    """A module that takes its inputs by place and gives a tuple of tensors, whatever it gave."""

    def __init__(self, module: torch.nn.Module, inputs: ModuleInputs) -> None:
        super().__init__()
        self.model = module
        self.keywords = tuple(inputs.examples) if inputs.by_keyword else ()

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The tensors in the module's output, in order."""
        if self.keywords:
            found = self.model(**dict(zip(self.keywords, given, strict=True)))
        else:
            found = self.model(*given)
        return tuple(tensor for _, tensor in flattened(found))


def with_flat_outputs(module: torch.nn.Module, inputs: ModuleInputs) -> FlatOutputs:
    """The module behind a `forward` with one parameter for each input.

    torch.export tells the inputs apart by the signature, so each number of inputs has its class.
    """

    def forward(self: FlatOutputs, *given: Tensor) -> tuple[Tensor, ...]:
        return FlatOutputs.forward(self, *given)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["self", *(f"input_{place}" for place in range(len(inputs.examples)))]
    parameters = [inspect.Parameter(name, kind) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    of_this_arity = type("FlatOutputs", (FlatOutputs,), {"forward": forward})
    found: FlatOutputs = of_this_arity(module, inputs)
    return found


def flattened(value: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a module gives, each with a name: its key, or a number in order.

    Raises:
        BadCheckpoint: it gives something that is neither tensors nor None.
    """
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from flattened(item, str(key))
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", [f"{name}_{place}" for place in range(len(value))])
        for key, item in zip(names, value, strict=True):
            yield from flattened(item, key)
    elif value is not None:
        raise BadCheckpoint(
            f"the module gives a {type(value).__name__}, and a graph gives tensors",
            fix="Return a tensor, or a tuple or dict of tensors, from forward",
        )


def limits_of(flat: FlatOutputs, inputs: ModuleInputs) -> dict[str, int]:
    """The largest size of each axis, where the module refuses what is larger, e.g. a long text.

    Found by running it, each axis by itself. A batch, the first axis of every input that has it,
    is limited by no model, and many rows would take much memory.
    """
    places: dict[str, set[int]] = {}
    for axes in inputs.axes.values():
        for place, axis in axes.items():
            places.setdefault(axis, set()).add(place)
    found = {}
    for axis, where in places.items():
        if where == {0} or _takes(flat, inputs, axis, _LONGEST):
            continue
        low, high = inputs.sizes[axis], _LONGEST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _takes(flat, inputs, axis, middle) else (low, middle)
        found[axis] = low
    return found


def _takes(flat: FlatOutputs, inputs: ModuleInputs, axis: str, size: int) -> bool:
    given = resized(inputs, {**inputs.sizes, axis: size}, seed=0)
    try:
        with torch.no_grad():
            flat(*given.values())
    except Exception:  # a module's forward may raise anything
        return False
    return True


def samples_of(
    flat: FlatOutputs, inputs: ModuleInputs, names: Sequence[str], longest: Mapping[str, int]
) -> list[TensorSample]:
    """The examples, and inputs of other sizes; sizes that the module itself refuses are left out.

    Raises:
        BadCheckpoint: the module refuses all of them.
    """
    halves = {precision: _in_half(flat.model, inputs, dtype) for precision, dtype in _HALF.items()}
    samples = [_sample(flat, halves, inputs.examples, names)]
    refusals: list[Exception] = []
    sizes = list(other_sizes(inputs, longest))
    for seed, each in enumerate(sizes):
        try:
            sample = _sample(flat, halves, resized(inputs, each, seed), names)
        except Exception as error:  # a module's forward may raise anything
            refusals.append(error)
            continue
        if _is_finite(sample):  # a mask that leaves nothing gives NaN, in PyTorch as in the graph
            samples.append(sample)
    if sizes and len(refusals) == len(sizes):
        raise BadCheckpoint(
            f"the module takes no other sizes of its dynamic axes ({first_line(refusals[0])})",
            where=type(flat.model).__name__,
            fix="Leave the axes that must keep their size out of dynamic_axes",
        ) from refusals[0]
    return samples


def _sample(
    flat: FlatOutputs,
    halves: Mapping[str, FlatOutputs | None],
    examples: Mapping[str, Tensor],
    names: Sequence[str],
) -> TensorSample:
    outputs = {"fp32": _outputs(flat, list(examples.values()), names)}
    for precision, half in halves.items():
        if half is not None:
            given = [_cast(tensor, _HALF[precision]) for tensor in examples.values()]
            outputs[precision] = _outputs(half, given, names)
    return TensorSample({n: t.detach().numpy() for n, t in examples.items()}, outputs)


def _in_half(
    module: torch.nn.Module, inputs: ModuleInputs, dtype: torch.dtype
) -> FlatOutputs | None:
    """The module computing in half precision; None where PyTorch cannot run it so."""
    half = with_flat_outputs(copy.deepcopy(module).to(dtype), inputs)
    try:
        with torch.no_grad():
            half(*(_cast(tensor, dtype) for tensor in inputs.examples.values()))
    except (RuntimeError, TypeError, ValueError):
        return None
    return half


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _outputs(flat: FlatOutputs, given: Sequence[Tensor], names: Sequence[str]) -> dict[str, Any]:
    with torch.no_grad():
        found = flat(*given)
    floats = (t.float() if t.is_floating_point() and t.dtype != torch.float64 else t for t in found)
    return {name: tensor.numpy() for name, tensor in zip(names, floats, strict=True)}


def _is_finite(sample: TensorSample) -> bool:
    outputs = sample.outputs["fp32"].values()
    return all(bool(torch.from_numpy(array).isfinite().all()) for array in outputs)
