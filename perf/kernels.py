"""Kernels per layer that TensorRT-RTX compiles, of the raw export and of the optimized graph.

Random encoders of each family, hidden size 256, 4 heads, fp16, dynamic batch and length. The raw
export has every float in fp16; the optimized graph keeps what it keeps in fp32. A family
is built with two layers and with four; the difference is two layers' kernels, whatever stands
before and after them. No GPU is needed.

    python perf/kernels.py -o perf/results/kernels.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tfc
from tfc.kernel_report import KernelRecord
from tfc.steps.kernels import kernels_before, kernels_of_engine
from tfc.steps.record import versions_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from checkpoints import save_tiny_checkpoint

FAMILIES = (
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "electra",
    "ernie",
    "layoutlm",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "roberta",
    "roformer",
    "xlm-roberta",
)
LAYERS = (2, 4)
WIDTHS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}


ENGINE = "tensorrt-rtx-fp16"


@dataclass(frozen=True)
class Found:
    """Of one layer, before and after: kernels by kind, and waits of streams for each other.

    The raw figures are None where TensorRT-RTX refuses the raw export, with its reason in
    `refusal`. `fused_attention` and `names` are of the whole engine, of the larger and the smaller
    model.
    """

    family: str
    raw: float | None
    raw_waits: float | None
    optimized: float
    optimized_waits: float
    raw_kinds: dict[str, float]
    kinds: dict[str, float]
    fused_attention: int
    precision: dict[str, float]
    names: list[str]
    refusal: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    print("| family | raw kernels | raw waits | kernels | waits |\n|---|--:|--:|--:|--:|")
    failed = 0
    for family in asked.families.split(","):
        try:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(family, Path(folder))
        except tfc.TfcError as error:  # random weights can be too steep for the export's check
            print(f"{family}: {error}", file=sys.stderr)
            failed += 1
            continue
        numbers = (row.raw, row.raw_waits, row.optimized, row.optimized_waits)
        shown = ("–" if number is None else f"{number:g}" for number in numbers)
        print(f"| {family} | {' | '.join(shown)} |", flush=True)
        if asked.output:
            record(row, asked.output)
    return 1 if failed else 0


def record(row: Found, output: Path) -> None:
    """Put the row into the file, in place of an earlier one of its family."""
    earlier = json.loads(output.read_text(encoding="utf-8"))["results"] if output.exists() else []
    rows = {each["family"]: each for each in earlier}
    rows[row.family] = {
        **asdict(row),
        "versions": versions_of("torch", "transformers", "tensorrt-rtx-cu13"),
    }
    report = {
        "command": f"perf/kernels.py -o {output}",
        "results": [rows[family] for family in sorted(rows)],
    }
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(family: str, folder: Path) -> Found:
    raw, optimized, refusal = [], [], ""
    for layers in LAYERS:
        place = folder / str(layers)
        save_tiny_checkpoint(place / "c", family, num_hidden_layers=layers, **WIDTHS)
        artifact = tfc.export(place / "c", place / "a").artifact
        tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx", allow_missed=True)
        optimized.append(kernels_of_engine(artifact, ENGINE).graphs["model"])
        before = kernels_before(artifact, ENGINE)
        refusal = refusal or before.refusal
        raw.append(before.report.graphs["model"] if before.report else [])
    audit = artifact.manifest.engines[ENGINE].audit
    raw_kinds, kinds = (_per_layer(built) for built in (raw, optimized))
    raw_waits, waits = raw_kinds.pop("wait", 0), kinds.pop("wait", 0)
    return Found(
        family=family,
        raw=None if refusal else sum(raw_kinds.values()),
        raw_waits=None if refusal else raw_waits,
        optimized=sum(kinds.values()),
        optimized_waits=waits,
        raw_kinds=raw_kinds,
        kinds=kinds,
        fused_attention=audit["fused_attention"],
        precision={n: round(s["share"], 6) for n, s in audit["precision"]["compiled"].items()},
        names=[record.name for record in optimized[0]],
        refusal=refusal,
    )


def _per_layer(built: Sequence[Sequence[KernelRecord]]) -> dict[str, float]:
    """Kind → entries of the plan that one more layer brings, but for masks.

    They are computed once for all layers, and not in the same kernels for two as for four.
    """
    fewer, more = (Counter(r.kind for r in records if r.kind != "mask") for records in built)
    layers = LAYERS[1] - LAYERS[0]
    kinds = {kind: (more[kind] - fewer[kind]) / layers for kind in sorted({*fewer, *more})}
    return {kind: count for kind, count in kinds.items() if count}


if __name__ == "__main__":
    sys.exit(main())
