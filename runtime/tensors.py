"""Checks of the arrays that a caller gives, against the artifact's signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfc.errors import BadInput, first_line
from tfc.manifest import Engine, Signature, TensorSpec
from tfc.runtime.backends.base import Profile, Range
from tfc.runtime.backends.device_tensor import on_device

# An axis that the engine's profile does not name has no limit: a size that no array reaches.
_ANY = Range(1, 1, 1 << 31)


def profile_of(engine: Engine) -> Profile:
    """The sizes that the engine was built for."""
    return _profile(engine.profile)


def profiles_of(engine: Engine) -> tuple[Profile, ...]:
    """Its optimization profiles: one of them has to take a batch."""
    return tuple(map(_profile, engine.profiles or [engine.profile]))


def _profile(axes: Mapping[str, Sequence[int]]) -> Profile:
    sizes = {axis: Range(*values) for axis, values in axes.items()}
    batch, sequence = sizes.pop("batch", _ANY), sizes.pop("sequence", _ANY)
    return Profile(batch, sequence, sizes)


def arrays_from_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors as numpy arrays that share their memory (DLPack); others stay what they are.

    Raises:
        BadInput: a tensor is not in the memory of the CPU, or has a type that numpy lacks.
    """
    return {name: _array(name, tensor) for name, tensor in tensors.items()}


def _array(name: str, tensor: Any) -> Any:
    if isinstance(tensor, np.ndarray) or not hasattr(tensor, "__dlpack__"):
        return tensor
    try:
        return np.from_dlpack(tensor)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise BadInput(
            f"the input '{name}' cannot be shared with numpy: {first_line(error)}",
            fix="Give a tensor in the memory of the CPU, without a gradient",
        ) from error


def check_tensors(
    signature: Signature, profiles: Sequence[Profile], arrays: Mapping[str, Any]
) -> None:
    """Refuse arrays that the engine cannot take: names, types, ranks and sizes.

    Sizes have to be within one of its profiles. Of tensors on a GPU the type is left to the
    engine's runner: every library has types of its own.

    Raises:
        BadInput: the first thing that does not fit, and what would.
    """
    expected = {spec.name: spec for spec in signature.inputs}
    _check_names(set(expected), set(arrays))
    sizes: dict[str, int] = {}
    for name, spec in expected.items():
        array = arrays[name]
        _check_type(spec, array)
        profile = _nearest(profiles, spec, array.shape)
        for axis, size in zip(spec.shape, array.shape, strict=True):
            _check_size(spec, profile, axis, size)
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                raise BadInput(
                    f"the inputs disagree on '{axis}': {sizes[axis]}, and {size} in '{name}'",
                    fix="Pad all inputs of one batch to the same shape",
                )


def _nearest(profiles: Sequence[Profile], spec: TensorSpec, shape: Sequence[int]) -> Profile:
    """The first profile that takes a shape; if none does, the first that takes its last axes."""

    def taken(profile: Profile) -> list[bool]:
        sized = zip(reversed(spec.shape), reversed(shape), strict=True)
        return [not isinstance(axis, str) or _takes(profile, axis, size) for axis, size in sized]

    return max(profiles, key=taken)


def _takes(profile: Profile, axis: str, size: int) -> bool:
    if axis not in ("batch", "sequence", *profile.others):
        return True
    allowed = profile.of_axis(axis)
    return allowed.min <= size <= allowed.max


def _check_names(expected: set[str], given: set[str]) -> None:
    if expected == given:
        return
    missing, extra = sorted(expected - given), sorted(given - expected)
    problem = f"the input '{missing[0]}' is missing" if missing else f"there is no '{extra[0]}'"
    raise BadInput(problem, fix=f"Give exactly these inputs: {', '.join(sorted(expected))}")


def _check_type(spec: TensorSpec, array: Any) -> None:
    shared = on_device(array)
    if not shared and not isinstance(array, np.ndarray):
        raise BadInput(
            f"the input '{spec.name}' is a {type(array).__name__}, not a numpy array",
            fix=f"Convert it with np.asarray(value, '{spec.dtype}')",
        )
    if not shared and array.dtype != np.dtype(spec.dtype):
        raise BadInput(
            f"the input '{spec.name}' is of type {array.dtype}; this engine takes {spec.dtype}",
            fix=f"Convert it with .astype('{spec.dtype}')",
        )
    if array.ndim != len(spec.shape):
        raise BadInput(
            f"the input '{spec.name}' has {array.ndim} axes; this engine takes {len(spec.shape)}",
            fix=f"Give it the shape [{', '.join(str(axis) for axis in spec.shape)}]",
        )


def _check_size(spec: TensorSpec, profile: Profile, axis: int | str, size: int) -> None:
    if isinstance(axis, str) and _takes(profile, axis, size):
        return
    allowed = profile.of_axis(axis)
    if not allowed.min <= size <= allowed.max:
        raise BadInput(
            f"axis '{axis}' of the input '{spec.name}' has size {size}; this engine was built for"
            f" {allowed.min} to {allowed.max}",
            fix="Give other sizes, or build the engine for these with: tfc build-engine",
        )
