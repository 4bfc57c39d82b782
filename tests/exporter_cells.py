"""Families × exporters × opsets: what `tfc optimize` finds in graphs that tfc did not export.

Run it for the table (it takes a quarter of an hour)::

    PYTHONPATH=tests python tests/exporter_cells.py [FAMILY …]

`tests/optimizers/test_any_exporter.py` runs a few of the cells.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers as tf

from tfc.steps.optimize_file import optimize_file

VOCABULARY = 97
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_SEQ2SEQ: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "distilbert": {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4,
                   "hidden_dim": 64, "max_position_embeddings": 64},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "image_size": 32, "patch_size": 8},
    "bart": {**_SEQ2SEQ, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
             "max_position_embeddings": 64},
    "t5": {**_SEQ2SEQ, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
           "decoder_start_token_id": 0},
    "opt": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64,
            "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "mpnet": _ENCODER,
    "electra": {**_ENCODER, "embedding_size": 32},
    "albert": {**_ENCODER, "embedding_size": 16},
    "llama": {**_ENCODER, "num_key_value_heads": 2},
    "deberta-v2": {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                   "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2],
             "num_heads": [2, 4], "window_size": 4},
}  # fmt: skip
IMAGES, SEQ2SEQ = ("vit", "swin"), ("bart", "t5")
EXPORTERS = [("torchscript", opset) for opset in (11, 13, 14, 17)] + [
    ("dynamo", opset) for opset in (18, 20, 21, 22, 23, 24)
]
# T5 does not scale its scores: larger weights make its softmax too steep to compare.
_SPREAD = {"t5": 0.05}


class Plain(torch.nn.Module):
    """A model that takes tensors in order and gives its last hidden state."""

    def __init__(self, family: str, attention: str) -> None:
        super().__init__()
        config = tf.AutoConfig.for_model(family, **CONFIGS[family])
        torch.manual_seed(0)
        self.family = family
        self.model = tf.AutoModel.from_config(config, attn_implementation=attention)
        for parameter in self.model.parameters():
            spread = _SPREAD.get(family, 0.15) if parameter.ndim >= 2 else 0.05
            with torch.no_grad():
                parameter += spread * torch.randn(parameter.shape)
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.family in IMAGES:
            return self.model(pixel_values=inputs[0]).last_hidden_state
        given = {"input_ids": inputs[0], "attention_mask": inputs[1]}
        if self.family in SEQ2SEQ:
            given["decoder_input_ids"] = inputs[2]
        if hasattr(self.model.config, "use_cache"):
            self.model.config.use_cache = False
        return self.model(**given).last_hidden_state

    def inputs(self) -> dict[str, tuple[torch.Tensor, tuple[str, ...]]]:
        """Sample tensors by name, with the names of their dynamic axes."""
        if self.family in IMAGES:
            return {"pixel_values": (torch.randn(2, 3, 32, 32), ("batch",))}
        ids = torch.randint(2, VOCABULARY - 1, (2, 7))
        axes = ("batch", "sequence")
        found = {"input_ids": (ids, axes), "attention_mask": (torch.ones_like(ids), axes)}
        if self.family in SEQ2SEQ:
            found["decoder_input_ids"] = (ids[:, :5], ("batch", "decoder"))
        return found


def export(family: str, attention: str, exporter: str, opset: int, path: Path) -> Path:
    """One cell's graph. Raises whatever the exporter raises: some cells do not export."""
    model = Plain(family, attention)
    sample = model.inputs()
    args = tuple(tensor for tensor, _ in sample.values())
    names: dict[str, Any] = {"input_names": list(sample), "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            axes = {name: dict(enumerate(dims)) for name, (_, dims) in sample.items()}
            torch.onnx.export(
                model, args, str(path), dynamo=False, opset_version=opset, dynamic_axes=axes,
                **names,
            )  # fmt: skip
        else:
            dims = {d: torch.export.Dim(d, max=64) for _, of in sample.values() for d in of}
            shapes = tuple({i: dims[d] for i, d in enumerate(of)} for _, of in sample.values())
            program = torch.onnx.export(
                model, args, dynamo=True, opset_version=opset, dynamic_shapes=(shapes,),
                verbose=False, **names,
            )  # fmt: skip
            program.save(str(path))
    return path


def outputs(path: Path) -> list[np.ndarray]:
    """What a graph gives for full rows and for padding right, left and in holes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    sizes = {"batch": 3, "sequence": 9, "decoder": 5}
    feed = {}
    for value in session.get_inputs():
        shape = [sizes.get(d, d) for d in value.shape]
        integers = value.type == "tensor(int64)"
        ids = rng.integers(2, VOCABULARY - 1, shape) if integers else rng.normal(size=shape)
        feed[value.name] = ids if integers else ids.astype(np.float32)
    if "attention_mask" not in feed:
        return session.run(None, feed)
    places = np.arange(9)
    found = []
    for kept in (places >= 0, places < 6, places > 3, places % 3 != 1):
        mask = np.ones((3, 9), np.int64)
        mask[1:] = kept
        found.append(session.run(None, {**feed, "attention_mask": mask})[0])
    return found


def difference(source: Path, fused: Path) -> float:
    """The largest difference of the outputs of two graphs."""
    pairs = zip(outputs(source), outputs(fused), strict=True)
    return max(float(np.abs(before - after).max()) for before, after in pairs)


def main(families: Sequence[str]) -> None:
    """Print the table."""
    print("| family | attention | exporter | opset | fused | max difference |")
    print("|---|---|---|--:|---|--:|")
    with tempfile.TemporaryDirectory() as folder:
        source, fused = Path(folder, "model.onnx"), Path(folder, "fused.onnx")
        for family in families or CONFIGS:
            for attention in ("eager", "sdpa"):
                for exporter, opset in EXPORTERS:
                    try:
                        export(family, attention, exporter, opset, source)
                        report = optimize_file(source, fused, "onnxruntime")
                        told = f"{report.summary()} | {difference(source, fused):.1e}"
                    except Exception as error:  # the exporters' and ONNX Runtime's own
                        told = f"{type(error).__name__} | -"
                    print(f"| {family} | {attention} | {exporter} | {opset} | {told} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
