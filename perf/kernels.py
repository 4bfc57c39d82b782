"""Kernels per layer that TensorRT-RTX compiles, of the raw export and of the optimized graph.

Random encoders of each family, hidden size 256, 4 heads, fp16, dynamic batch and length. A family
is built with two layers and with four; the difference is two layers' kernels, whatever stands
before and after them. No GPU is needed.

    python perf/kernels.py -o perf/results/kernels.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

import tfc
from tfc.optimizers.precision.half import half_from_fp32
from tfc.runtime.backends import backend
from tfc.runtime.backends.base import Inputs, Kernel, Profile
from tfc.steps.record import versions_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from checkpoints import save_tiny_checkpoint

FAMILIES = (
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
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
# What families call the number of layers, and their widths.
SIZES = {
    "distilbert": ("n_layers", {"dim": 256, "n_heads": 4, "hidden_dim": 512}),
}
WIDTHS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}


@dataclass(frozen=True)
class Found:
    """Kernels of one layer, before and after; the names of a middle layer's kernels after."""

    family: str
    raw: float
    optimized: float
    fused_attention: int
    names: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    found = []
    print("| family | raw export | optimized |\n|---|--:|--:|")
    for family in asked.families.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(family, Path(folder)))
        print(f"| {family} | {found[-1].raw:g} | {found[-1].optimized:g} |", flush=True)
    if asked.output:
        report = {
            "command": " ".join(sys.argv),
            "versions": versions_of("torch", "transformers", "tensorrt-rtx-cu13"),
            "results": [asdict(each) for each in found],
        }
        asked.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(family: str, folder: Path) -> Found:
    raw, optimized = [], []
    for layers in LAYERS:
        key, widths = SIZES.get(family, ("num_hidden_layers", WIDTHS))
        place = folder / str(layers)
        save_tiny_checkpoint(place / "c", family, **{key: layers}, **widths)
        artifact = tfc.export(place / "c", place / "a").artifact
        half, _ = half_from_fp32(ir.load(artifact.file("model.onnx")))
        ir.save(half, place / "raw.onnx")
        raw.append(kernels_of(artifact, place / "raw.onnx", place / "raw.plan"))
        tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx", allow_missed=True)
        graph = artifact.file("optimized/tensorrt.fp16/model.onnx")
        optimized.append(kernels_of(artifact, graph, place / "optimized.plan"))
    attention = artifact.manifest.engines["tensorrt-rtx-fp16"].audit["fused_attention"]
    return Found(
        family,
        _per_layer(raw),
        _per_layer(optimized),
        attention,
        [kernel.name for kernel in optimized[0]],
    )


def kernels_of(artifact: tfc.Artifact, graph: Path, plan: Path) -> tuple[Kernel, ...]:
    tensors = {
        spec.name: (spec.dtype, tuple(spec.shape)) for spec in artifact.manifest.signature.inputs
    }
    return backend("tensorrt-rtx").build(graph, plan, Inputs(tensors), Profile()).kernels


def _per_layer(built: list[tuple[Kernel, ...]]) -> float:
    few, many = (len(kernels) for kernels in built)
    return (many - few) / (LAYERS[1] - LAYERS[0])


if __name__ == "__main__":
    main()
