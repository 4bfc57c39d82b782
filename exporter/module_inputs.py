"""The inputs of any module: their names, their dynamic axes, and other sizes of the same kind."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tfc.errors import UsageError

Examples: TypeAlias = "Tensor | Sequence[Tensor] | Mapping[str, Tensor]"
DynamicAxes: TypeAlias = "Mapping[str, Mapping[int, str] | Sequence[int]]"

# An input with so few different values marks something; random values would lose what it means.
_MASK_VALUES = 2
_LARGE = 17  # above every power of two that a small example is padded to


@dataclass(frozen=True)
class ModuleInputs:
    """Examples by name, in order; `axes` are the dynamic ones; `by_keyword` how they are given."""

    examples: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    by_keyword: bool

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each dynamic axis in the examples."""
        return {
            axis: int(self.examples[name].shape[place])
            for name, axes in self.axes.items()
            for place, axis in axes.items()
        }


def inputs_of_module(
    module: torch.nn.Module,
    examples: Examples,
    input_names: Sequence[str] | None,
    dynamic_axes: DynamicAxes,
    outputs: Sequence[str] = (),
) -> ModuleInputs:
    """Names and dynamic axes of the examples.

    Raises:
        UsageError: an example is no tensor, or names and axes do not fit the examples.
    """
    by_keyword = isinstance(examples, Mapping)
    named = _named(module, examples, input_names)
    for name, example in named.items():
        if not isinstance(example, Tensor):
            raise UsageError(
                f"the example of '{name}' is of type {type(example).__name__}",
                fix="Give tensors; leave out what forward has a default for",
            )
    unknown = sorted(set(dynamic_axes) - {*named, *outputs})
    if unknown:
        raise UsageError(
            f"dynamic_axes names '{unknown[0]}', which is no input",
            fix=f"The inputs are: {', '.join(named)}",
        )
    axes = {name: _axes(name, named[name], dynamic_axes.get(name, {})) for name in named}
    inputs = ModuleInputs(named, axes, by_keyword)
    _check_sizes(inputs)
    return inputs


def resized(inputs: ModuleInputs, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Inputs whose dynamic axes have other sizes, of the same kind as the examples.

    Floats are drawn from a normal distribution with the example's mean and deviation, integers
    evenly from its range. An input of one or two values is a mask: it is repeated or cut.
    """
    generator = np.random.default_rng(seed)
    found = {}
    for name, example in inputs.examples.items():
        axes = inputs.axes[name]
        array = example.detach().numpy()
        shape = [sizes[axes[i]] if i in axes else n for i, n in enumerate(array.shape)]
        found[name] = torch.from_numpy(_like(array, shape, generator))
    return found


def other_sizes(inputs: ModuleInputs, longest: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Sizes of the dynamic axes to try beside the examples' own: ones, small ones, larger ones."""
    axes = list(inputs.sizes)
    count = len(axes)
    rows = [
        [1] * count,
        [2 + place for place in range(count)],
        [4 + count - place for place in range(count)],
        [1] + [_LARGE] * (count - 1),
        [_LARGE] + [3] * (count - 1),
    ]
    for row in rows if axes else []:
        yield {
            axis: min(size, longest.get(axis, size)) for axis, size in zip(axes, row, strict=True)
        }


def _named(
    module: torch.nn.Module, examples: Examples, names: Sequence[str] | None
) -> dict[str, Any]:
    if isinstance(examples, Mapping):
        if names is not None and list(names) != list(examples):
            raise UsageError(
                "input_names differ from the keys of the example inputs",
                fix="Leave input_names out: the keys are the names",
            )
        return dict(examples)
    given = [examples] if isinstance(examples, Tensor) else list(examples)
    if names is None:
        names = _parameters(module, len(given))
    if len(names) != len(given) or len(set(names)) != len(names):
        raise UsageError(
            f"there are {len(given)} example inputs, and input_names are: {', '.join(names)}",
            fix="Give each its own name",
        )
    return dict(zip(names, given, strict=True))


def _parameters(module: torch.nn.Module, count: int) -> list[str]:
    """The names in forward's signature, or numbered ones where it takes `*args`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in kinds][:count]
    return names + [f"input_{place}" for place in range(len(names), count)]


def _axes(name: str, example: Tensor, given: Mapping[int, str] | Sequence[int]) -> dict[int, str]:
    axes = given if isinstance(given, Mapping) else {place: f"{name}_{place}" for place in given}
    for place, axis in axes.items():
        if not 0 <= place < example.ndim:
            raise UsageError(
                f"dynamic_axes has axis {place} of '{name}', which has {example.ndim} axes",
                fix="Count from 0",
            )
        if not axis.isidentifier():
            raise UsageError(
                f"'{axis}' cannot be the name of an axis",
                fix="Use letters, digits and underscores, e.g. 'batch'",
            )
    return dict(axes)


def _check_sizes(inputs: ModuleInputs) -> None:
    for name, axes in inputs.axes.items():
        for place, axis in axes.items():
            size = inputs.examples[name].shape[place]
            if size != inputs.sizes[axis]:
                raise UsageError(
                    f"the axis '{axis}' has size {inputs.sizes[axis]} in one example and {size} "
                    f"in '{name}'",
                    fix="Give different axes different names",
                )


def _like(example: Any, shape: Sequence[int], generator: np.random.Generator) -> Any:
    if len(np.unique(example)) <= _MASK_VALUES:
        for place, size in enumerate(shape):
            example = np.take(example, np.arange(size), axis=place, mode="wrap")
        return np.ascontiguousarray(example)
    if np.issubdtype(example.dtype, np.integer):
        return generator.integers(
            example.min(), example.max(), shape, dtype=example.dtype, endpoint=True
        )
    drawn = generator.standard_normal(shape) * example.std() + example.mean()
    return np.asarray(drawn, dtype=example.dtype)
