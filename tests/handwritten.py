"""Encoder layers as people write them from tutorials, and torch's exporters to ONNX."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

HIDDEN, LAYERS, HEADS, VOCABULARY = 32, 2, 4, 100


class WrittenNorm(nn.Module):
    """LayerNorm as people write it, of torch's mean and variance."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = x.var(-1, unbiased=False, keepdim=True)
        return self.scale * (x - mean) / torch.sqrt(variance + 1e-5) + self.bias


class Head(nn.Module):
    """One head of attention as tutorials write it, with its own layers and its own causal mask."""

    def __init__(self, head_dim: int, causal: bool = False) -> None:
        super().__init__()
        self.key, self.query = (nn.Linear(HIDDEN, head_dim, bias=False) for _ in range(2))
        self.value, self.causal = nn.Linear(HIDDEN, head_dim), causal
        self.register_buffer("tril", torch.tril(torch.ones(64, 64)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * HIDDEN**-0.5
        scores = scores.masked_fill(mask[:, None, :] == 0, -1e9)
        if self.causal:
            length = x.shape[1]
            scores = scores.masked_fill(self.tril[:length, :length] == 0, -1e9)
        return scores.softmax(-1) @ self.value(x)


class Block(nn.Module):
    """Self-attention and a feed-forward layer; `style` is how the attention is written."""

    def __init__(
        self, style: str, heads: int = HEADS, pre_norm: bool = False, norm: Any = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.style, self.heads, self.pre_norm = style, heads, pre_norm
        self.head_dim = HIDDEN // heads
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.up, self.down = nn.Linear(HIDDEN, 64), nn.Linear(64, HIDDEN)
        self.norm1, self.norm2 = norm(HIDDEN), norm(HIDDEN)
        if "single heads" in style:
            causal = "causal" in style
            self.single = nn.ModuleList(Head(self.head_dim, causal) for _ in range(heads))

    def split(self, x: Tensor) -> Tensor:
        """[batch, sequence, heads, head_dim]"""
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_dim)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        if "single heads" in self.style:
            return self.o(torch.cat([head(x, mask) for head in self.single], dim=-1))
        q, k, v = (self.split(project(x)) for project in (self.q, self.k, self.v))
        keys = mask[:, None, None, :]
        if self.style == "einsum":
            # A query scale that is not 1/sqrt(head_dim): it must not be replaced by the default.
            scores = torch.einsum("bqnd,bknd->bnqk", q * 0.25, k)
            weights = scores.masked_fill(keys == 0, -1e9).softmax(-1)
            return self.o(torch.einsum("bnqk,bknd->bqnd", weights, v).reshape(x.shape))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if self.style in ("bmm", "a mask for each head"):
            return self.o(self.attend_merged(q, k, v, keys).reshape(x.shape))
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        if self.style == "fill":
            scores = scores.masked_fill(keys == 0, float("-inf"))
        elif self.style == "additive":
            scores = scores + (1.0 - keys.to(scores.dtype)) * -10000.0
        elif self.style == "halved":
            scores = (scores * math.sqrt(self.head_dim) / 2).masked_fill(keys == 0, -1e9)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(x.shape))

    def attend_merged(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor) -> Tensor:
        """Heads merged into the batch, and split again to apply the mask, or the mask repeated."""
        batch, heads, sequence, head_dim = q.shape
        q, k, v = (t.reshape(batch * heads, sequence, head_dim) for t in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(head_dim)
        if self.style == "a mask for each head":
            scores = scores.masked_fill(keys[:, 0].repeat_interleave(heads, dim=0) == 0, -1e9)
        else:
            scores = scores.view(batch, heads, sequence, sequence).masked_fill(keys == 0, -1e9)
        weights = scores.view(batch * heads, sequence, sequence).softmax(-1)
        return torch.bmm(weights, v).view(batch, heads, sequence, head_dim).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.attend(self.norm1(x), mask)
            return x + self.down(torch.relu(self.up(self.norm2(x))))
        x = self.norm1(x + self.attend(x, mask))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """An embedding, two blocks, and a head for every token."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.blocks = nn.ModuleList(Block(**options) for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, 3)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, mean=0.3, std=0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x, attention_mask)
        return self.head(x)


class TorchEncoder(nn.Module):
    """`nn.TransformerEncoder` behind the same inputs."""

    def __init__(self, pre_norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, 64, batch_first=True, norm_first=pre_norm)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)


class TorchSeq2Seq(nn.Module):
    """`nn.TransformerEncoder` and `nn.TransformerDecoder`; nothing said that has a default."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.written = (nn.Embedding(VOCABULARY, HIDDEN) for _ in range(2))
        reads = nn.TransformerEncoderLayer(HIDDEN, HEADS, 64, batch_first=True)
        writes = nn.TransformerDecoderLayer(HIDDEN, HEADS, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(reads, 1)
        self.decoder = nn.TransformerDecoder(writes, 1)

    def forward(self, source: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """`[batch, target, hidden]`"""
        padding, length = mask == 0, target.shape[1]
        later = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
        memory = self.encoder(self.read(source), src_key_padding_mask=padding)
        return self.decoder(
            self.written(target), memory, tgt_mask=later, memory_key_padding_mask=padding
        )


def export(module: nn.Module, path: Path, exporter: str, opset: int) -> Path:
    """Export with torch's `dynamo` or `torchscript` exporter, batch and sequence dynamic."""
    ids = torch.arange(14).view(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            axes = {name: {0: "batch", 1: "sequence"} for name in names["input_names"]}
            torch.onnx.export(
                module.eval(), (ids, mask), str(path), dynamo=False, opset_version=opset,
                dynamic_axes=axes, **names,
            )  # fmt: skip
        else:
            axes = {
                0: torch.export.Dim("batch", max=4096),
                1: torch.export.Dim("sequence", max=512),
            }
            program = torch.onnx.export(
                module.eval(), (ids, mask), dynamo=True, opset_version=opset,
                dynamic_shapes=(axes, axes), verbose=False, **names,
            )  # fmt: skip
            program.save(str(path))
    return path


def outputs(path: Path) -> list[Any]:
    """What the file gives for padding on the right, on the left and in holes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(3).integers(0, 100, (3, 9))
    found = []
    for keep in ([1] * 5 + [0] * 4, [0] * 4 + [1] * 5, [1, 0, 1] * 3):
        mask = np.ones_like(ids)
        mask[1] = keep
        feed = {"input_ids": ids, "attention_mask": mask}
        names = {value.name for value in session.get_inputs()}
        found.append(session.run(None, {k: v for k, v in feed.items() if k in names})[0])
    return found
