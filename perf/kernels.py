"""Kernels per layer that TensorRT-RTX compiles, of the raw export and of the optimized graph.

Random encoders of each family, four layers, hidden size 256, 4 heads, fp16, dynamic batch and
length. The raw export has every float in fp16; the optimized graph keeps what it keeps in fp32. A
kernel belongs to the layer of the nodes that it was made from; the figures are those of the median
layer (the first one often shares kernels with the embeddings, the last one with the head). No GPU
is needed.

    python perf/kernels.py -o perf/results/kernels.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import tfc
from tfc.kernel_report import summary_of
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
LAYERS = 4
WIDTHS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}


ENGINE = "tensorrt-rtx-fp16"


@dataclass(frozen=True)
class Found:
    """Of one layer, before and after: kernels, and waits of streams for each other.

    The raw figures are None where TensorRT-RTX refuses the raw export, with its reason in
    `refusal`. `kinds`, `fused_attention` and `names` are of the whole engine.
    """

    family: str
    raw: int | None
    raw_waits: int | None
    optimized: int | None
    optimized_waits: int | None
    raw_kinds: dict[str, int]
    kinds: dict[str, int]
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


def measure(family: str, place: Path) -> Found:
    save_tiny_checkpoint(place / "c", family, num_hidden_layers=LAYERS, **WIDTHS)
    artifact = tfc.export(place / "c", place / "a").artifact
    tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx", allow_missed=True)
    records = kernels_of_engine(artifact, ENGINE).graphs["model"]
    before = kernels_before(artifact, ENGINE)
    raw = summary_of(before.report.graphs["model"]) if before.report else None
    optimized = summary_of(records)
    audit = artifact.manifest.engines[ENGINE].audit
    return Found(
        family=family,
        raw=raw.per_layer if raw else None,
        raw_waits=raw.waits_per_layer if raw else None,
        optimized=optimized.per_layer,
        optimized_waits=optimized.waits_per_layer,
        raw_kinds=raw.kinds if raw else {},
        kinds=optimized.kinds,
        fused_attention=audit["fused_attention"],
        precision={n: round(s["share"], 6) for n, s in audit["precision"]["compiled"].items()},
        names=[record.name for record in records],
        refusal=before.refusal,
    )


if __name__ == "__main__":
    sys.exit(main())
