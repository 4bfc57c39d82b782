"""What was compiled, as `engines/<name>/kernels.json` keeps it: every kernel of every graph.

The format is described in docs/artifact.md. Nothing here touches the disk, and nothing needs
TensorRT or ONNX: a report is read wherever an artifact is.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tfc.errors import BadArtifact
from tfc.manifest_json import decode

SCHEMA = 1
_NOT_WORKING = frozenset({"wait", "bookkeeping"})
_REBUILD = "Build the engine again with: tfc build-engine"


@dataclass(frozen=True)
class KernelRecord:
    """One entry of a plan.

    Attributes:
        name: as the compiler calls it.
        type: the type of its layer, in TensorRT's words.
        kind: `gemm`, `attention`, `norm`, `softmax`, `pointwise`, `layout`, `cast`, `mask` or
            `other`; `wait` for what orders streams, `bookkeeping` for sizes and scalars.
        reads: the types of what it reads, without constants.
        writes: the types of what it writes.
        product: what its matrix product computes in; empty where it has none.
        nodes: the ONNX nodes that it was made from.
        modules: for each of them the path of its module; empty where that is not told.
        layer: the number of the transformer layer, from 0; None outside layers.
        bytes: the size of what it writes; None where an axis of it is dynamic.
    """

    name: str
    type: str
    kind: str
    reads: list[str]
    writes: list[str]
    product: str = ""
    nodes: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    layer: int | None = None
    bytes: int | None = None

    @property
    def works(self) -> bool:
        """Whether it computes something."""
        return self.kind not in _NOT_WORKING

    @property
    def precision(self) -> str:
        """`fp16`, or `fp16→fp32` where it writes another type; floats before integers."""
        before, after = _main_type(self.reads), _main_type(self.writes)
        return after if before in ("", after) else f"{before}→{after}" if after else before


@dataclass(frozen=True)
class KernelReport:
    """What was compiled of each graph, in order of execution."""

    backend: str
    precision: str
    graphs: dict[str, list[KernelRecord]]
    schema: int = SCHEMA


@dataclass(frozen=True)
class KernelSummary:
    """A graph's kernels in numbers. Waits and bookkeeping are counted apart.

    Attributes:
        kernels: how many compute.
        waits: entries that make streams wait for each other (signals and waits).
        layers: for each transformer layer its kernels.
        layer_waits: for each transformer layer its waits.
        per_layer: the median of `layers`, None where there are none.
        waits_per_layer: the median of `layer_waits`.
        typical_layer: the middle one of those with the median number of kernels.
        outside: kernels outside layers, by kind.
        kinds: all kernels, by kind.
        precisions: all kernels, by the widest float type (else the integer type) that they write.
        bytes: what all of them write; None where an axis is dynamic.
    """

    kernels: int
    waits: int
    layers: list[int]
    layer_waits: list[int]
    per_layer: int | None
    waits_per_layer: int | None
    typical_layer: int | None
    outside: dict[str, int]
    kinds: dict[str, int]
    precisions: dict[str, int]
    bytes: int | None


def summary_of(records: Sequence[KernelRecord]) -> KernelSummary:
    """Count one graph's kernels."""
    working = [record for record in records if record.works]
    waits = [record for record in records if record.kind == "wait"]
    number = 1 + max((r.layer for r in working if r.layer is not None), default=-1)
    layers, layer_waits = _counts(working, number), _counts(waits, number)
    per_layer = statistics.median_low(layers) if layers else None
    typical = [layer for layer, count in enumerate(layers) if count == per_layer]
    sizes = [record.bytes for record in working]
    known = [size for size in sizes if size is not None]
    return KernelSummary(
        kernels=len(working),
        waits=len(waits),
        layers=layers,
        layer_waits=layer_waits,
        per_layer=per_layer,
        waits_per_layer=statistics.median_low(layer_waits) if layer_waits else None,
        typical_layer=typical[len(typical) // 2] if typical else None,
        outside=_by_frequency(r.kind for r in working if r.layer is None),
        kinds=_by_frequency(record.kind for record in working),
        precisions=_by_frequency(_main_type(r.writes) or "none" for r in working),
        bytes=sum(known) if len(known) == len(sizes) else None,
    )


def report_to_json(report: KernelReport) -> str:
    """The report as the text of `kernels.json`: a kernel in a line, without its empty fields."""
    head = {"schema": report.schema, "backend": report.backend, "precision": report.precision}
    graphs = []
    for graph, records in report.graphs.items():
        lines = [json.dumps(_compact(record), ensure_ascii=False) for record in records]
        graphs.append(f"{json.dumps(graph)}: [\n" + ",\n".join(lines) + "\n]")
    return f'{json.dumps(head)[:-1]}, "graphs": {{\n' + ",\n".join(graphs) + "\n}}\n"


def report_from_json(text: str, where: str) -> KernelReport:
    """Read `kernels.json`.

    Raises:
        BadArtifact: the text is not such a report, or a newer tfc wrote it.
    """
    try:
        data = json.loads(text)
        schema = data.get("schema") if isinstance(data, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise BadArtifact(
                f"the list of kernels has schema {schema}, and this tfc reads {SCHEMA}",
                where=where,
                fix="Upgrade tfc with: pip install -U tfc",
            )
        report: KernelReport = decode(KernelReport, data, "kernels")
        for records in report.graphs.values():
            _check(records)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadArtifact(
            f"the list of kernels cannot be read ({error})", where=where, fix=_REBUILD
        ) from error
    return report


def _check(records: Sequence[KernelRecord]) -> None:
    """Raise ValueError where the numbers of a record do not fit together."""
    for record in records:
        if len(record.modules) != len(record.nodes):
            raise ValueError(
                f"a kernel has {len(record.nodes)} nodes and {len(record.modules)} modules"
            )
        if record.layer is not None and not 0 <= record.layer < len(records):
            raise ValueError(f"a kernel is in layer {record.layer} of {len(records)} kernels")


def _compact(record: KernelRecord) -> dict[str, object]:
    given = dataclasses.asdict(record)
    needed = ("reads", "writes")  # they have no default
    return {k: v for k, v in given.items() if k in needed or v not in (None, "", [])}


def _counts(records: Iterable[KernelRecord], layers: int) -> list[int]:
    found = Counter(record.layer for record in records)
    return [found[layer] for layer in range(layers)]


def _by_frequency(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


# The type that says most about a kernel comes first.
_ORDER = ("fp32", "bf16", "fp16", "fp8", "int8", "int64", "int32", "uint8", "bool")


def _main_type(types: Sequence[str]) -> str:
    """The widest float of these types, else the widest integer; empty where there are none."""
    known = [name for name in _ORDER if name in types]
    return known[0] if known else next(iter(types), "")
