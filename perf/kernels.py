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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

import tfc
from tfc.optimizers.graph import constant, set_type
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


@dataclass(frozen=True)
class Found:
    """Of one layer, before and after: kernels, and waits of streams for each other."""

    family: str
    raw: float
    raw_waits: float
    optimized: float
    optimized_waits: float
    fused_attention: int
    names: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    found = []
    print("| family | raw kernels | raw waits | kernels | waits |\n|---|--:|--:|--:|--:|")
    for family in asked.families.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(family, Path(folder)))
        row = found[-1]
        numbers = (row.raw, row.raw_waits, row.optimized, row.optimized_waits)
        print(f"| {family} | {' | '.join(f'{n:g}' for n in numbers)} |", flush=True)
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
        place = folder / str(layers)
        save_tiny_checkpoint(place / "c", family, num_hidden_layers=layers, **WIDTHS)
        artifact = tfc.export(place / "c", place / "a").artifact
        ir.save(all_in_half(ir.load(artifact.file("model.onnx"))), place / "raw.onnx")
        raw.append(kernels_of(artifact, place / "raw.onnx", place / "raw.plan"))
        tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx", allow_missed=True)
        graph = artifact.file("optimized/tensorrt.fp16/model.onnx")
        optimized.append(kernels_of(artifact, graph, place / "optimized.plan"))
    attention = artifact.manifest.engines["tensorrt-rtx-fp16"].audit["fused_attention"]
    return Found(
        family,
        *_per_layer(raw),
        *_per_layer(optimized),
        attention,
        [kernel.name for kernel in optimized[0]],
    )


def all_in_half(model: ir.Model) -> ir.Model:
    """The raw export with every float in fp16, as `model.half()` would have exported it."""
    for value in model.graph.initializers.values():
        array = constant(value)
        if array is not None and array.dtype == np.float32:
            limit = np.finfo(np.float16).max
            half = np.clip(array, -limit, limit).astype(np.float16)
            value.const_value = ir.tensor(half, name=value.name)
    outputs = [value for node in model.graph for value in node.outputs]
    for value in (*model.graph.initializers.values(), *outputs):
        if value.dtype == ir.DataType.FLOAT:
            set_type(value, ir.DataType.FLOAT16, value.shape)
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].value == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
    return model


def kernels_of(artifact: tfc.Artifact, graph: Path, plan: Path) -> tuple[Kernel, ...]:
    tensors = {
        spec.name: (spec.dtype, tuple(spec.shape)) for spec in artifact.manifest.signature.inputs
    }
    return backend("tensorrt-rtx").build(graph, plan, Inputs(tensors), Profile()).kernels


def _per_layer(built: list[tuple[Kernel, ...]]) -> tuple[float, float]:
    waits = [sum(kernel.type in ("wait", "signal") for kernel in kernels) for kernels in built]
    work = [len(kernels) - wait for kernels, wait in zip(built, waits, strict=True)]
    layers = LAYERS[1] - LAYERS[0]
    return (work[1] - work[0]) / layers, (waits[1] - waits[0]) / layers


if __name__ == "__main__":
    main()
