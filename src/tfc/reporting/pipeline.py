"""What was done to the model: steps, fusions, precision, kernels."""

from __future__ import annotations

from typing import Any

from tfc.artifact import Artifact
from tfc.cli.console import human_bytes, human_seconds
from tfc.kernel_report import KernelRecord, report_from_json
from tfc.manifest import Step
from tfc.reporting.blocks import Block, Chart, Note, Section, Table
from tfc.reporting.charts import PRECISION_COLOURS, coloured_grid
from tfc.steps.precision_audit import percent

_KINDS = {"add_layernorm": "add+LayerNorm"}
_OPTIMIZE, _PRECISION = "optimize:", "precision:"
_MOST_MISSED = 20
# Of a kernel's kind, what fits into a cell of the map.
_SHORT = {"attention": "attn", "pointwise": "pw", "layout": "move", "softmax": "smax"}


def steps_section(artifact: Artifact) -> Section:
    """Every step: how long it took, what it wrote."""
    files = artifact.manifest.files
    rows = []
    for step in artifact.manifest.steps:
        size = sum(files[name].bytes for name in step.outputs if name in files)
        wrote = ", ".join(step.outputs) or "-"
        rows.append((step.name, human_seconds(step.seconds), human_bytes(size), wrote))
    steps = Table(("step", ">time", ">size", "wrote"), tuple(rows))
    return Section("Pipeline", (steps, *_vocabulary(artifact)))


def _vocabulary(artifact: Artifact) -> list[Block]:
    """What trimming the vocabulary did."""
    step = artifact.manifest.step("trim-vocab")
    if step is None:
        return []
    tokens, corpus, new = (step.result[name] for name in ("tokens", "corpus", "new_text"))
    says = (
        f"Vocabulary: {tokens['after']:,} of {tokens['before']:,} tokens, those that "
        f"{corpus['texts']:,} texts use. They give the same tokens and outputs as before."
    )
    if new is not None:
        share = percent(new["removed"] / max(1, new["tokens"]))
        says += f" Of new text about {share} of the tokens are cut into others."
    return [Note(says)]


def fusions_section(artifact: Artifact) -> Section:
    """For each target what was fused, and what each pass did."""
    steps = [step for step in artifact.manifest.steps if step.name.startswith(_OPTIMIZE)]
    if not steps:
        return Section("Fusions", (Note("The graph was not optimized", missing=True),))
    return Section("Fusions", tuple(block for step in steps for block in _fusions(step)))


def _fusions(step: Step) -> list[Block]:
    result, target = step.result, step.name.removeprefix(_OPTIMIZE)
    counts = [
        (_KINDS.get(kind, kind), str(found["found"]), str(found["expected"]))
        for kind, found in result.get("fusions", {}).items()
    ]
    nodes = result.get("nodes", {})
    sizes = f": {nodes['before']} nodes before, {nodes['after']} after" if nodes else ""
    columns = ("fusion", ">found", ">expected")
    blocks: list[Block] = [Table(columns, tuple(counts), caption=f"Target {target}{sizes}")]
    passes = [p for p in result.get("passes", []) if p["changed"]]
    rows = tuple(
        (
            p["name"],
            str(p["changed"]),
            f"{p['difference']:.1e}",
            "undone: it changed the numbers" if p["reverted"] else "",
        )
        for p in passes
    )
    if rows:
        caption = f"Passes that changed the graph for {target}, and how far each moved its numbers"
        blocks.append(Table(("pass", ">sites", ">difference", ""), rows, caption=caption))
    blocks += [
        Note(f"Missed: {m['kind']} at {m['node']} ({m['module']}): {m['reason']}", missing=True)
        for m in result.get("missed", [])[:_MOST_MISSED]
    ]
    return blocks


def precision_section(artifact: Artifact) -> Section:
    """Which precision the arithmetic of each engine runs in, and what was kept wider and why."""
    blocks: list[Block] = []
    for name, engine in artifact.manifest.engines.items():
        if audit := engine.audit.get("precision"):
            blocks.append(_shares(name, audit))
        blocks += _kernel_map(artifact, name)
    for step in artifact.manifest.steps:
        if step.name.startswith(_PRECISION):
            blocks += _conversion(step)
    if not blocks:
        blocks.append(Note("Every engine computes in fp32."))
    return Section("Precision", tuple(blocks))


def _shares(name: str, audit: dict[str, Any]) -> Table:
    rows = tuple(
        (precision, percent(share["share"]), str(share["gemms"]), str(share["attentions"]))
        for precision, share in audit["compiled"].items()
    )
    columns = ("precision", ">FLOPs", ">GEMMs", ">attentions")
    return Table(columns, rows, caption=f"{name}, as the kernels say")


def _kernel_map(artifact: Artifact, engine: str) -> list[Block]:
    """A line for each layer: its kernels in their order, in the colour of their precision."""
    file = f"engines/{engine}/kernels.json"
    if file not in artifact.manifest.files:
        return []
    text = artifact.file(file).read_text(encoding="utf-8")
    records = [r for graph in report_from_json(text, file).graphs.values() for r in graph]
    layers: dict[int, list[KernelRecord]] = {}
    for record in records:
        if record.works and record.layer is not None:
            layers.setdefault(record.layer, []).append(record)
    if not layers:
        return []
    cells = [
        [(_SHORT.get(r.kind, r.kind), _precision(r)) for r in layers[n]] for n in sorted(layers)
    ]
    names = [f"layer {number}" for number in sorted(layers)]
    counts = ", ".join(str(len(layers[number])) for number in sorted(layers))
    says = f"Kernels of {engine} by layer, in their order: {counts} kernels. Colours: precision"
    return [Chart(coloured_grid(names, cells, PRECISION_COLOURS), says)]


def _precision(record: KernelRecord) -> str:
    """What its product computes in, or the type that it writes."""
    return record.product or record.precision.rpartition("→")[2] or "other"


def _conversion(step: Step) -> list[Block]:
    result = step.result
    file = step.name.removeprefix(_PRECISION)
    if "gate" not in result:
        return []
    gate = result["gate"]
    blocks: list[Block] = []
    if gate:
        blocks.append(
            Note(
                f"{file}: output {gate['output']} is {gate['error']:.1e} from fp32 on the samples "
                f"(root mean square); {gate['allowed']:.1e} is allowed, and rounding the products "
                f"alone gives {gate['floor']:.1e}."
            )
        )
    pins = result.get("pins", [])
    if pins:
        rows = tuple((p.get("module", ""), p.get("node", ""), p.get("why", "")) for p in pins)
        caption = f"Kept in fp32 in {file}"
        blocks.append(Table(("module", "node", "why"), rows, caption=caption))
    if modules := result.get("overflows_in"):
        blocks.append(Note(f"{file}: beyond the range in {', '.join(modules)}, kept in fp32."))
    return blocks
