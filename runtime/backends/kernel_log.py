"""Reading the compiled kernels: from the builder's verbose log, or from the engine inspector.

The log needs no GPU and the inspector does. Both tell, for each kernel in order of execution, its
name and type, its tensors with data types and shapes, and the ONNX nodes that it was made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfc.runtime.backends.base import Kernel, KernelTensor

# TensorRT's names for data types, as its tensors and as its formats spell them.
_DATATYPES = {
    "Half": "Half",
    "FP16": "Half",
    "Float": "Float",
    "FP32": "Float",
    "BFloat16": "BFloat16",
    "BF16": "BFloat16",
    "Int8": "Int8",
    "INT8": "Int8",
    "FP8": "FP8",
    "Int32": "Int32",
    "INT32": "Int32",
    "Int64": "Int64",
    "INT64": "Int64",
    "Bool": "Bool",
    "BOOL": "Bool",
    "UInt8": "UInt8",
    "UINT8": "UInt8",
}

_LINE = re.compile(
    r"^\s*Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\], TacticName: "
    r"(?:.*?, Metadata: (?P<metadata>.*))?"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), (?P<rest>.*?) \}(?=, \{|$)")
_DATATYPE = re.compile(r"Datatype: ([^,}]+)")
_DIMENSIONS = re.compile(r"Dimensions: \[([^\]]*)\]")
# "[ONNX Layer: a][ONNX Layer: b]"; the inspector of some versions puts a separator between them.
# What is added to the names of a profile's own copies of layers and tensors, from the second on.
_PROFILE = re.compile(r" \[profile (\d+)\]")
# The compiler numbers the regions that it compiles, in the names of their kernels. Each profile
# has its own.
_REGION = re.compile(r"_my[el]l?(\d+)_\d+$")
_MEMORY = re.compile(r"^Total Activation Memory: (\d+) bytes", re.MULTILINE)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\W*\[ONNX Layer: |\W*$)")


def kernels_from_log(messages: Iterable[str]) -> tuple[Kernel, ...]:
    """The kernels that the builder lists at the end of its verbose log, in order of execution.

    A message may hold several lines. Empty where the log holds no such list (the profiling
    verbosity was not DETAILED).
    """
    lines = (line for message in messages for line in message.splitlines())
    return tuple(_kernel_of_match(match) for line in lines if (match := _LINE.match(line)))


def memory_from_log(messages: Iterable[str]) -> tuple[int, ...]:
    """The bytes of activations that each optimization profile needs, in their order."""
    return tuple(int(size) for message in messages for size in _MEMORY.findall(message))


def kernels_by_profile(kernels: Sequence[Kernel]) -> list[tuple[Kernel, ...]]:
    """The kernels of each optimization profile; their names are alike in all profiles.

    A kernel belongs to the profile that its own name or those of its tensors tell; one that names
    none to the profile of its region, and else to that of the kernel before it.
    """
    told = [_told_profile(kernel) for kernel in kernels]
    regions = {}
    for kernel, profile in zip(kernels, told, strict=True):
        if profile and (region := _REGION.search(kernel.name)):
            regions[region[1]] = profile
    groups: dict[int, list[Kernel]] = {}
    before = 0
    for kernel, profile in zip(kernels, told, strict=True):
        region = _REGION.search(kernel.name)
        before = profile or (regions.get(region[1], 0) if region else before)
        groups.setdefault(before, []).append(_without_profile(kernel))
    return [tuple(group) for _, group in sorted(groups.items())]


def _told_profile(kernel: Kernel) -> int:
    tensors = (*kernel.reads, *kernel.writes, *kernel.constants)
    names = " ".join([kernel.name, *(tensor.name for tensor in tensors)])
    found = _PROFILE.search(names)
    return int(found[1]) if found else 0


def _without_profile(kernel: Kernel) -> Kernel:
    def plain(tensors: Sequence[KernelTensor]) -> tuple[KernelTensor, ...]:
        return tuple(replace(tensor, name=_PROFILE.sub("", tensor.name)) for tensor in tensors)

    return replace(
        kernel,
        name=_PROFILE.sub("", kernel.name),
        reads=plain(kernel.reads),
        writes=plain(kernel.writes),
        constants=plain(kernel.constants),
    )


def kernels_from_inspector(json_text: str) -> tuple[Kernel, ...]:
    """The kernels in the engine inspector's JSON; empty where it holds names only."""
    layers = json.loads(json_text).get("Layers", [])
    return tuple(_kernel_of_layer(layer) for layer in layers if isinstance(layer, dict))


def _kernel_of_match(match: re.Match[str]) -> Kernel:
    reads, writes, constants = (
        tuple(_tensor_of_match(found) for found in _TENSOR.finditer(match[side] or ""))
        for side in ("inputs", "outputs", "constants")
    )
    nodes = tuple(_NODE.findall(match["metadata"] or ""))
    return Kernel(match["name"], match["type"], reads, writes, constants, nodes)


def _tensor_of_match(match: re.Match[str]) -> KernelTensor:
    datatype, dims = _DATATYPE.search(match["rest"]), _DIMENSIONS.search(match["rest"])
    return KernelTensor(
        match["name"],
        _datatype(datatype[1] if datatype else ""),
        tuple(int(size) for size in dims[1].split(",") if size.strip()) if dims else None,
    )


def _kernel_of_layer(layer: Mapping[str, Any]) -> Kernel:
    reads, writes, constants = (
        tuple(_tensor_of_entry(tensor) for tensor in layer.get(side, []))
        for side in ("Inputs", "Outputs", "Constants")
    )
    nodes = tuple(_NODE.findall(layer.get("Metadata", "")))
    return Kernel(layer["Name"], layer["LayerType"], reads, writes, constants, nodes)


def _tensor_of_entry(tensor: Mapping[str, Any]) -> KernelTensor:
    dims = tensor.get("Dimensions")
    return KernelTensor(
        tensor.get("Name", ""),
        _datatype(tensor.get("Datatype") or tensor.get("Format/Datatype", "")),
        tuple(int(size) for size in dims) if dims is not None else None,
    )


def _datatype(text: str) -> str:
    """``Half`` from ``Half`` and from ``Row major linear FP16 format``; else the text itself."""
    return next((_DATATYPES[word] for word in text.split() if word in _DATATYPES), text.strip())
