"""What TensorRT says of a region that it cannot compile, in terms of the ONNX graph.

TensorRT compiles most of a transformer as one region, which it calls after its first and last node:
``{ForeignNode[node_a...node_b]}``. Its log lists the nodes in it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

NO_IMPLEMENTATION = "Could not find any implementation for node"
MODULE = "tfc.module"  # the metadata of a node that holds the path of the module it came from
_REGION = re.compile(rf"{NO_IMPLEMENTATION} (?P<node>.*?)(?: \[profile \d+\])?\.?\)*\s*(?:In |$)")
_FOREIGN = re.compile(r"^\{ForeignNode\[(?P<first>.*)\.\.\.(?P<last>.*)\]\}$", re.DOTALL)
_MEMBER = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |\s*$)")
# "Skipping tactic 0 due to insufficient memory on requested size of 29147520"; old versions
# misspell it. "Requested amount of GPU memory (… bytes)"; "Requested size was … bytes".
_ASKED = re.compile(
    r"(?:requested size of|requested amount of GPU memory \(|requested size was) ?(\d+)",
    re.IGNORECASE,
)
_MOST_MODULES = 3


@dataclass(frozen=True)
class Region:
    """A part of the graph that TensorRT has no kernels for.

    Attributes:
        first: the first of its nodes.
        last: the last one.
        nodes: all of them; only the first and the last where the log does not tell.
        modules: the paths of modules that they came from.
        asked: the bytes that a kernel was refused; None where none was.
    """

    first: str
    last: str
    nodes: tuple[str, ...]
    modules: tuple[str, ...]
    asked: int | None

    @property
    def sentence(self) -> str:
        """`14 nodes from a to b, in bert.encoder.layer.0 and 2 more modules`."""
        if self.first == self.last:
            what = f"the node {self.first}"
        else:
            count = f"{len(self.nodes)} nodes " if len(self.nodes) > 2 else ""
            what = f"{count}from {self.first} to {self.last}"
        rest = len(self.modules) - _MOST_MODULES
        modules = ", ".join(self.modules[:_MOST_MODULES]) + (f" and {rest} more" * (rest > 0))
        return what + (f", in {modules}" if modules else "")


def region_of_error(text: str, messages: Sequence[str], model: Path) -> Region | None:
    """The region that an error is about; None where it is about something else.

    Args:
        text: the error.
        messages: the texts of the log.
        model: the ONNX file.
    """
    match = _REGION.search(text)
    if match is None:
        return None
    name = match["node"]
    ends = _FOREIGN.match(name)
    first, last = (ends["first"], ends["last"]) if ends else (name, name)
    nodes = _members(name, messages) or tuple(dict.fromkeys((first, last)))
    return Region(first, last, nodes, _modules(model, nodes), asked_bytes(messages))


def asked_bytes(messages: Iterable[str]) -> int | None:
    """The most memory that something was refused, in bytes."""
    found = [int(size) for message in messages for size in _ASKED.findall(message)]
    return max(found, default=None)


def _members(name: str, messages: Sequence[str]) -> tuple[str, ...]:
    for message in messages:
        if message.startswith(f"ForeignNode {name}") and "metadata:" in message:
            return tuple(_MEMBER.findall(message.partition("metadata:")[2]))
    return ()


def _modules(model: Path, nodes: Sequence[str]) -> tuple[str, ...]:
    """The modules of these nodes, the innermost whole layers: `bert.encoder.layer.0`."""
    if importlib.util.find_spec("onnx_ir") is None or not model.is_file():
        return ()
    import onnx_ir as ir

    wanted = set(nodes)
    paths = {
        _layer(node.metadata_props.get(MODULE, ""))
        for node in ir.load(model).graph
        if node.name in wanted
    }
    return tuple(sorted(filter(None, paths), key=_by_number))


def _layer(path: str) -> str:
    """The path up to the number of a layer; a path without one as it is."""
    match = re.match(r".*?\.\d+(?=\.|$)", path)
    return match[0] if match else path


def _by_number(path: str) -> list[object]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.split(".")]
