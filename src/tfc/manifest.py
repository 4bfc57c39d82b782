"""The manifest of an artifact (`tfc.json`): its schema as frozen dataclasses, read strictly.

The format is described in docs/artifact.md. Nothing here touches the disk.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from tfc.errors import BadArtifact

SCHEMA_VERSION = 2
# The names of graphs, and of their dynamic axes.
MODEL, ENCODER, DECODER = "model", "encoder", "decoder"
BATCH, SEQUENCE, ENCODER_SEQUENCE = "batch", "sequence", "encoder_sequence"
PAST, TOTAL = "past", "total"


@dataclass(frozen=True)
class Checkpoint:
    """What the artifact was made from.

    `sha256` is the hash over the checkpoint's files (names and contents), so that a later
    comparison with PyTorch can tell whether it reads the same weights. Where it is an adapter,
    `base` is its base model, whose files the hash covers too.
    """

    source: str
    sha256: str
    model_type: str
    architecture: str
    parameters: int
    revision: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Task:
    """What the model does and how its outputs are read.

    `problem` is `single_label`, `multi_label` or `regression` for text-classification and empty
    otherwise. `labels[i]` names the i-th logit. `pooling` and `normalize` say what the graph
    does to the token embeddings in feature-extraction (`pooling` is `none` where the output is
    one vector per token). `generation` holds how a model that generates decodes by default: the
    fields of transformers' GenerationConfig that differ from its defaults.
    """

    name: str
    problem: str = ""
    labels: list[str] = field(default_factory=list)
    pooling: str = ""
    normalize: bool = False
    generation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `shape` holds sizes, or names for the dynamic axes."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class Signature:
    """The tensors that go in and come out, in order."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


@dataclass(frozen=True)
class Graph:
    """One ONNX graph of the model, in the file `<its name>.onnx`.

    `fusion_sites` holds what the model's config says that the graph must contain: `attention`
    blocks and `add_layernorm` sites; it is empty where the graph's own structure is counted.
    """

    signature: Signature
    fusion_sites: dict[str, int] = field(default_factory=dict)

    @property
    def input_names(self) -> list[str]:
        """The inputs' names, in order."""
        return [spec.name for spec in self.signature.inputs]


@dataclass(frozen=True)
class Preprocess:
    """How text becomes input tensors: `max_length` is in tokens, special tokens included.

    `prompts` are texts that a model was trained to read before its input, by name, and
    `default_prompt` names the one that is used when none is asked for. `mask_id` is the token
    that fill-mask predicts.
    """

    tokenizer: str
    max_length: int
    pad_id: int
    pad_type_id: int
    padding_side: str
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    mask_id: int | None = None


@dataclass(frozen=True)
class FileRecord:
    """A file of the artifact: SHA-256 in hex and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Step:
    """One step that ran: what it read (file → SHA-256), how, for how long, what it wrote."""

    name: str
    options: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[str]
    versions: dict[str, str]
    seconds: float
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """A compiled engine.

    `files` maps each graph to what it was compiled to.
    `state` is `runnable` (it was loaded and run on the machine that built it) or
    `built, not run` with the reason in `state_reason`. `hardware` names what it was built for.
    """

    backend: str
    precision: str
    files: dict[str, str]
    state: str
    state_reason: str
    profile: dict[str, list[int]]
    versions: dict[str, str]
    hardware: str
    audit: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What `tfc verify` found for one engine: `verified`, `failed` or `not run`."""

    verdict: str
    reason: str
    engine_sha256: str
    data_sha256: str
    tolerance: dict[str, float]
    outputs: dict[str, dict[str, float]]
    versions: dict[str, str]
    hardware: str


@dataclass(frozen=True)
class Manifest:
    """Everything that the artifact says about itself.

    `graphs` holds one graph called `model`, or `encoder` and `decoder` (`decoder` alone for a
    model without an encoder) for one that generates.
    """

    tfc: str
    checkpoint: Checkpoint
    task: Task
    graphs: dict[str, Graph]
    preprocess: Preprocess | None
    files: dict[str, FileRecord]
    steps: list[Step]
    engines: dict[str, Engine] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    @property
    def signature(self) -> Signature:
        """The tensors of the first graph, which takes what the preprocessing gives."""
        return next(iter(self.graphs.values())).signature

    def step(self, name: str) -> Step | None:
        """The latest record of the step called `name`."""
        return next((s for s in reversed(self.steps) if s.name == name), None)


def manifest_to_json(manifest: Manifest) -> str:
    """The manifest as the text of `tfc.json`."""
    body = dataclasses.asdict(manifest)
    ordered = {"schema": body.pop("schema"), **body}
    return json.dumps(ordered, indent=2, ensure_ascii=False) + "\n"


def manifest_from_json(text: str, where: str) -> Manifest:
    """Read `tfc.json`.

    Raises:
        BadArtifact: the text is not JSON, has a newer schema, lacks a field or has one too many.
    """
    data = _parse(text, where)
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or schema < 1:
        raise BadArtifact(
            "the manifest has no schema version",
            where=where,
            fix="Give the folder that 'tfc export' wrote",
        )
    if schema > SCHEMA_VERSION:
        raise BadArtifact(
            f"the manifest has schema {schema}, and this tfc reads up to {SCHEMA_VERSION}",
            where=where,
            fix="Upgrade tfc with: pip install -U tfc",
        )
    if schema is not True and schema < SCHEMA_VERSION:
        raise BadArtifact(
            f"the manifest has schema {schema}, which an older tfc wrote; this one reads "
            f"{SCHEMA_VERSION}",
            where=where,
            fix="Export the checkpoint again with: tfc export --overwrite",
        )
    try:
        manifest: Manifest = _decode(Manifest, data, "manifest")
    except (TypeError, KeyError, ValueError) as error:
        raise BadArtifact(
            f"the manifest does not follow its schema ({error})",
            where=where,
            fix="Export the checkpoint again with: tfc export --overwrite",
        ) from error
    return manifest


def _parse(text: str, where: str) -> Any:
    """The JSON value in `text`; refuses what could not be written back as the same manifest."""
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates)
        json.dumps(data, ensure_ascii=False).encode()  # raises on half a surrogate pair
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg}, line {error.lineno}"
        raise BadArtifact(
            f"the manifest is not valid JSON ({reason})",
            where=where,
            fix="Export the checkpoint again with: tfc export --overwrite",
        ) from error
    return data


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the field '{name}' stands twice")
        fields[name] = value
    return fields


def _decode(kind: Any, value: Any, path: str) -> Any:
    """`value` (parsed JSON) as `kind`; raises TypeError naming `path` where it does not fit."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), value, path)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), value, path)
    if origin is list:
        _expect(value, list, path)
        (item,) = typing.get_args(kind)
        return [_decode(item, v, f"{path}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        _expect(value, dict, path)
        _, item = typing.get_args(kind)
        return {str(k): _decode(item, v, f"{path}.{k}") for k, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    _expect(value, kind, path)
    return value


def _decode_dataclass(kind: type, value: Any, path: str) -> Any:
    _expect(value, dict, path)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise TypeError(f"{path} has an unknown field '{unknown[0]}'")
    fields = {}
    for name, spec in known.items():
        if name in value:
            fields[name] = _decode(hints[name], value[name], f"{path}.{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise TypeError(f"{path} lacks the field '{name}'")
    return kind(**fields)


def _decode_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _decode(kind, value, path)
        except TypeError:
            continue
    raise TypeError(f"{path} is {type(value).__name__}")


def _expect(value: Any, kind: type, path: str) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{path} is {type(value).__name__}, not {kind.__name__}")
