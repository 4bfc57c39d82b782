"""The models of the campaign, each exported once, and the graphs and plans made of them.

Random weights: speed does not depend on them. Parity is judged on tiny models of each family,
whose weights have real spread (`tests/checkpoints.py`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

VOCABULARY = 30522
Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """The sizes of an encoder, and the (smallest, best, largest) batch and length of its plans."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    batch: tuple[int, int, int]
    sequence: tuple[int, int, int]

    def flops(self, tokens: int) -> int:
        """Operations of the matrix products and attentions of one sequence of `tokens`.

        L·(24·h²·s + 4·h·s²), where the inner layer is 4·h wide: of the four projections 8·h²·s, of
        the feed-forward network 16·h²·s, of the two products of attention 4·h·s².
        """
        wide = 8 * self.hidden**2 + 4 * self.hidden * self.intermediate
        return self.layers * (wide * tokens + 4 * self.hidden * tokens**2)


SHAPES = {
    "bert-tiny": Shape(2, 64, 2, 128, (1, 4, 16), (1, 16, 64)),
    "bert-base": Shape(12, 768, 12, 3072, (1, 256, 1024), (1, 128, 512)),
    "bert-large": Shape(24, 1024, 16, 4096, (1, 256, 1024), (1, 128, 512)),
}
FAMILIES = (
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "albert",
    "mpnet",
    "deberta-v2",
    "modernbert",
    "nomic_bert",
    "xlm-roberta",
)


@dataclass(frozen=True)
class Model:
    """A model in the folder `place`: its checkpoint, its artifact, its graphs and plans."""

    name: str
    place: Path

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint."""
        return self.place / "checkpoint"

    @property
    def artifact(self) -> Path:
        """The folder of the artifact."""
        return self.place / "artifact"


def shaped(name: str, work: Path) -> Model:
    """A BERT classifier of the sizes `SHAPES[name]`, exported."""
    model = Model(name, work / name)
    if not (model.checkpoint / "config.json").is_file():
        _save_bert(SHAPES[name], model.checkpoint)
    return _exported(model)


def of_family(family: str, work: Path) -> Model:
    """A tiny classifier of a family, exported."""
    from checkpoints import save_tiny_checkpoint

    model = Model(family, work / f"tiny-{family}")
    if not (model.checkpoint / "config.json").is_file():
        save_tiny_checkpoint(model.checkpoint, family)
    return _exported(model)


def _exported(model: Model) -> Model:
    import tfc

    if not (model.artifact / "tfc.json").is_file():
        tfc.export(model.checkpoint, model.artifact)
    return model


def _save_bert(shape: Shape, folder: Path) -> None:
    import torch
    import transformers
    from checkpoints import LABELS, TOKENIZER_FOLDER

    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=512,
        id2label=LABELS,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)
    tokenizer.model_max_length = shape.sequence[2]
    tokenizer.save_pretrained(folder)


def graph_in(model: Model, target: str, precision: str) -> Path:
    """The graph that tfc fuses and lowers for `target`, in `precision`."""
    from tfc.artifact import Artifact
    from tfc.manifest import MODEL
    from tfc.steps.optimize import optimize
    from tfc.steps.precision import convert

    artifact = optimize(Artifact.open(model.artifact), target, allow_missed=True).artifact
    return artifact.file(convert(artifact, target, MODEL, precision, weights_only=False))


def raw_graph(model: Model, precision: str) -> Path:
    """The exported graph before any pass, every float of it in `precision`."""
    from tfc.artifact import Artifact
    from tfc.manifest import MODEL
    from tfc.onnx_files import save_onnx
    from tfc.steps.optimize import loaded_graph
    from tfc.steps.raw_export import raw_in_precision

    path = model.place / f"raw.{precision}.onnx"
    if not path.is_file():
        graph = loaded_graph(Artifact.open(model.artifact), MODEL)
        save_onnx(raw_in_precision(graph, precision), path)
    return path


def signature_of(model: Model) -> Any:
    """The inputs and outputs of the artifact's graph."""
    from tfc.artifact import Artifact

    return Artifact.open(model.artifact).manifest.signature


def batch_of(model: Model, rows: int, lengths: list[int], seed: int = 0) -> Feed:
    """Random tokens, right-padded to the longest; `lengths[i]` of row i."""
    random = np.random.default_rng(seed)
    width = max(lengths)
    mask = (np.arange(width)[None] < np.asarray(lengths)[:, None]).astype(np.int64)
    values = {
        "input_ids": random.integers(1000, VOCABULARY, (rows, width)) * mask,
        "attention_mask": mask,
        "token_type_ids": np.zeros((rows, width), np.int64),
    }
    return {spec.name: values[spec.name].astype(spec.dtype) for spec in signature_of(model).inputs}
