"""Tensors into and out of ONNX Runtime where they are, by its I/O binding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfc.runtime.backends.device_tensor import CPU_DEVICE, CUDA_DEVICE, DeviceTensor

# ONNX Runtime's name of a type → numpy's. numpy has no bfloat16: uint16 is its bits.
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": np.dtype(np.uint16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}
# The default stream, as DLPack counts CUDA's. Of another CUDA runtime ONNX Runtime's own stream
# cannot be named, so whoever binds tensors waits for the device first.
LEGACY_STREAM = 1


@dataclass(frozen=True)
class Place:
    """A device: ONNX Runtime's name for its kind, DLPack's, and its number."""

    kind: str
    dlpack: int
    number: int = 0


CPU_PLACE, CUDA_PLACE = Place("cpu", CPU_DEVICE), Place("cuda", CUDA_DEVICE)


def outputs_where_they_are(
    session: Any, names: Sequence[str], tensors: Mapping[str, Any], place: Place, options: Any
) -> dict[str, DeviceTensor]:
    """Run a session on arrays and tensors of `place`; the outputs `names` stay there.

    ONNX Runtime copies the arrays; the tensors it reads where they are. It has waited for the
    device when this returns.
    """
    binding = session.io_binding()
    for name, tensor in tensors.items():
        if isinstance(tensor, DeviceTensor):
            binding.bind_input(
                name, place.kind, place.number, tensor.dtype, list(tensor.shape), tensor.address
            )
        else:
            binding.bind_cpu_input(name, np.ascontiguousarray(tensor))
    for name in names:
        binding.bind_output(name, place.kind, place.number)
    session.run_with_iobinding(binding, options)
    binding.synchronize_outputs()
    values = zip(names, binding.get_outputs(), strict=True)
    return {name: _tensor(value, place) for name, value in values}


def _tensor(value: Any, place: Place) -> DeviceTensor:
    """An output, whose memory lives as long as the tensor."""
    dtype = _DTYPES[value.data_type()]
    where = (place.dlpack, place.number)
    return DeviceTensor(value.data_ptr(), tuple(value.shape()), dtype, where, value)
