"""What TensorRT says when it refuses, translated into the errors of tfc.

TensorRT reports through its logger and returns nothing. `collecting_logger` keeps what it said;
the functions here turn the first error into one that names the file, the ONNX node and a fix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.errors import BackendUnavailable, BadArtifact, BadInput, ContractNotReached, TfcError
from tfc.runtime.backends.base import Range
from tfc.runtime.backends.tensorrt_flavors import Flavor
from tfc.runtime.backends.tensorrt_regions import asked_bytes, region_of_error

REBUILD = "Build it again on this machine: tfc build-engine"
LOWER = "Lower the graph for this backend first: tfc optimize with the target tensorrt"
EXPORT = "Run the step that writes it again: tfc export"

_OUT_OF_MEMORY = ("out of memory", "outofmemory", "requested amount of gpu memory")
# Of the memory that is free: what one size more than the last that fits needs is not linear.
_USABLE = 0.8
# What is expected is what is here.
_OTHER_GPU = re.compile(r"expecting compute (?P<here>[\d.]+) got compute (?P<built>[\d.]+)")
_OTHER_VERSION = re.compile(r"expecting library version (?P<here>[\d.]+\d) got (?P<built>[\d.]+\d)")
_MOST_TEXT = 300  # characters of TensorRT's own text in one of our sentences
# Parts of TensorRT's texts that name places in its own source, or pages to read.
_NOISE = (
    re.compile(r"^\S+ Error Code \d+: [^(]*\("),
    re.compile(r"\s*In \S+ at /\S+:\d+"),
    re.compile(r"\s*\(See http.*"),
)
_NO_REASON = frozenset({"", "false"})  # what the parser says of an operator it has no rule for
_PARSED_NODE = re.compile(r"^Parsing node: (?P<name>.*) \[(?P<operator>\w+)\]$")


@dataclass(frozen=True)
class Refusal:
    """A text of TensorRT's, what it means, what helps, and the operators it can be about."""

    text: str
    meaning: str
    error: type[TfcError]
    fix: str
    operators: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Room:
    """The batch sizes that were asked for, and the bytes that are free on the GPU, if known."""

    batch: Range
    free: int | None


_NO_ATTENTION_KERNEL = "Attention operation was not supported by a dedicated kernel"


def lacks_attention_kernel(error: str) -> bool:
    """Whether this is what TensorRT says of an attention that it has no fused kernel for."""
    return _NO_ATTENTION_KERNEL in error


# First match wins.
BUILD_REFUSALS = (
    Refusal(
        _NO_ATTENTION_KERNEL,
        "has no fused kernel for an Attention of this graph",
        ContractNotReached,
        "Fused attention takes fp16 or bf16 (tfc build-engine --fp16), and head sizes of 16 to 256"
        " that are multiples of 8",
        frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"}),
    ),
    Refusal(
        "contains HW-specific datatypes",
        "has no kernels for a type of this graph on a GPU that it is to build for",
        BadInput,
        "Build for GPUs that have it, e.g. for fp8 with --sm 89,120",
    ),
    Refusal(
        "Cuda Runtime",
        "cannot use the GPU to build",
        BackendUnavailable,
        "Check the GPU and its driver: tfc doctor",
    ),
)
# What the first bytes of a plan show: it was cut short, or was never a plan of this flavor.
PLAN_REFUSALS = tuple(
    Refusal(text, meaning, BadArtifact, REBUILD)
    for text, meaning in (
        ("header.magicTag", "did not write this file"),
        ("header.size", "finds this engine cut short"),
        ("bufferSize >= minBufferSize", "finds this engine cut short"),
        ("empty memory buffer", "finds this engine cut short"),
        ("No engine found in plan", "finds this engine damaged"),
        ("e.offset >= cursor", "finds this engine damaged"),
    )
)


def collecting_logger(trt: Any) -> Any:
    """A logger for TensorRT that prints nothing and keeps (severity, text) in `said`."""

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[tuple[Any, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            self.said.append((severity, msg))

    return Collector()


def messages_of(collected: Any) -> list[str]:
    """Every text that the logger collected, in order."""
    return [text for _, text in collected.said]


def first_error(trt: Any, collected: Any) -> str:
    """The first error that the logger collected, or a sentence that says there is none.

    Internal errors come second: TensorRT-RTX logs one whenever a builder is made.
    """
    for wanted in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
        for severity, text in collected.said:
            if severity == wanted:
                return str(text)
    return "it gives no reason"


def parser_refusal(flavor: Flavor, parser: Any, model: Path) -> TfcError:
    """Why the ONNX parser refused `model`: its first error, with the node."""
    if parser.num_errors == 0:
        return BadInput(f"{flavor.label} finds no graph in this file", where=str(model), fix=EXPORT)
    parser_error = parser.get_error(0)
    reason = _parser_reason(parser_error)
    operator, node = parser_error.node_operator(), parser_error.node_name()
    if not operator:
        return BadInput(
            f"{flavor.label} cannot read this ONNX file: {reason}",
            where=str(model),
            fix=EXPORT,
        )
    return BadInput(
        f"{flavor.label} does not take this {operator}: {reason}",
        where=f"{model}, node {node}",
        fix=LOWER,
    )


def build_refusal(
    flavor: Flavor, text: str, model: Path, parsed: Sequence[str], room: Room | None = None
) -> TfcError:
    """Why the builder refused `model`.

    Args:
        flavor: who refused.
        text: its first error.
        model: the ONNX file.
        parsed: the texts of the log.
        room: the sizes and the memory, to tell what would fit.
    """
    region = region_of_error(text, parsed, model)
    if region is not None and region.asked is None:
        return ContractNotReached(
            f"{flavor.label} has no kernels for a part of this graph: {region.sentence}",
            where=str(model),
            fix="Build in another precision (--bf16, or fp32), or update TensorRT: a combination of"
            " these operators and types is not implemented in this version",
        )
    if region is not None or any(word in text.lower() for word in _OUT_OF_MEMORY):
        return _memory_refusal(flavor, text, model, parsed, room)
    for refusal in BUILD_REFUSALS:
        if refusal.text in text:
            where = str(model)
            if nodes := _nodes_of_operators(refusal.operators, parsed):
                where += f", node {nodes[0]}"
                where += f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
            what = f"{flavor.label} {refusal.meaning}: {_clean(text[text.index(refusal.text) :])}"
            return refusal.error(what, where=where, fix=refusal.fix)
    return BadInput(
        f"{flavor.label} cannot build this graph: {_clean(text)}", where=str(model), fix=LOWER
    )


def _memory_refusal(
    flavor: Flavor, text: str, model: Path, parsed: Sequence[str], room: Room | None
) -> BackendUnavailable:
    asked = asked_bytes([*parsed, text])
    wants = f", which asked for {asked / 1e9:.1f} GB" if asked else ""
    fits = ""
    if room is not None and room.free is not None and asked:
        wants += f" and found {room.free / 1e9:.1f} GB free"
        rows = int(room.batch.max * min(1.0, room.free * _USABLE / asked))
        if 1 <= rows < room.batch.max:
            best = min(room.batch.opt, rows)
            fits = f": --batch {min(room.batch.min, best)}:{best}:{rows} would fit"
    return BackendUnavailable(
        f"{flavor.label} ran out of memory while building{wants}: {_clean(text)}",
        where=str(model),
        fix=f"Build for a smaller largest batch or sequence{fits}, or free memory on the GPU",
    )


def plan_refusal(flavor: Flavor, text: str, engine: Path) -> TfcError:
    """Why the runtime refused the plan in `engine`: damaged, or built for something else."""
    for refusal in PLAN_REFUSALS:
        if refusal.text in text:
            return refusal.error(
                f"{flavor.label} {refusal.meaning}: {_clean(text)}",
                where=str(engine),
                fix=refusal.fix,
            )
    if match := _OTHER_GPU.search(text):
        return BackendUnavailable(
            f"this engine was built for compute capability {match['built']}, and the GPU here has"
            f" {match['here']}",
            where=str(engine),
            fix=f"{REBUILD}; one for several GPUs: --hardware-compatible",
        )
    if match := _OTHER_VERSION.search(text):
        return BackendUnavailable(
            f"this engine was built with {flavor.label} {match['built']}, and {match['here']} is"
            " installed here",
            where=str(engine),
            fix=f"{REBUILD}; or install that version: pip install '{flavor.distributions[0]}=="
            f"{match['built']}.*'",
        )
    return BackendUnavailable(
        f"{flavor.label} cannot load this engine here; it was built with another version or for"
        f" another GPU: {_clean(text)}",
        where=str(engine),
        fix=REBUILD,
    )


def _nodes_of_operators(operators: frozenset[str], messages: Sequence[str]) -> list[str]:
    """The parsed ONNX nodes of these operators: what is meant, where TensorRT names no node."""
    matches = (_PARSED_NODE.match(message) for message in messages)
    return [match["name"] for match in matches if match and match["operator"] in operators]


def _parser_reason(parser_error: Any) -> str:
    lines = str(parser_error.desc()).splitlines() or [""]
    telling = next((line for line in lines if " Error Code " in line), lines[0])
    if telling in _NO_REASON:
        return str(parser_error.code().name).lower().replace("_", " ")
    return _clean(telling)


def _clean(text: str) -> str:
    """The first line of TensorRT's text, without what only its own developers can use."""
    kept = (text.splitlines() or [""])[0]
    for noise in _NOISE:
        kept = noise.sub("", kept)
    kept = kept.strip(" .")
    while kept.endswith(")") and kept.count(")") > kept.count("("):
        kept = kept[:-1].rstrip(" .")
    return kept if len(kept) <= _MOST_TEXT else kept[:_MOST_TEXT].rstrip() + " …"
