"""The modules that are exported: a checkpoint's model behind named tensors.

Those for text take `input_ids`, `attention_mask` and, where the model has them,
`token_type_ids`, all int64 `[batch, sequence]`.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tfc.errors import BadCheckpoint, first_line
from tfc.exporter.sentence_embedding import NO_POOLING, Dense, EmbeddingHead, Normalize


class TextOutputsOf(torch.nn.Module):
    """Fields of a text model's output, e.g. its logits."""

    def __init__(self, model: Any, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The fields, in order; logits are given before softmax or sigmoid."""
        found = _call(self.model, input_ids, attention_mask, token_type_ids)
        return tuple(getattr(found, field) for field in self.fields)


class ImageOutputsOf(torch.nn.Module):
    """Fields of an image model's output; its input is `pixel_values` `[batch, c, h, w]`."""

    def __init__(self, model: Any, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The fields, in order."""
        found = self.model(pixel_values=pixel_values, return_dict=True)
        return tuple(getattr(found, field) for field in self.fields)


class EosLogitsOf(torch.nn.Module):
    """Logits of an encoder-decoder classifier (BART, T5): `[batch, labels]`.

    transformers selects the rows' last end-of-sequence tokens with a boolean mask, whose size
    depends on the data, and insists that all rows have as many of them. Here each row's last one
    is gathered by its place; a row without any, which transformers refuses, gives its first token.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, before softmax or sigmoid."""
        return _eos_logits(self.model, input_ids, attention_mask)


def classifies_at_eos(model: Any) -> bool:
    """Whether the model is an encoder-decoder that classifies (BART, T5)."""
    return bool(model.config.is_encoder_decoder) and hasattr(model, "classification_head")


class EmbeddingOf(torch.nn.Module):
    """Embeddings: `[batch, hidden]`, or `[batch, sequence, hidden]` without pooling."""

    def __init__(self, model: Any, head: EmbeddingHead) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.layers = torch.nn.ModuleList(map(_layer, head.layers))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Token embeddings, pooled, and through the layers of the head."""
        found = _call(self.model, input_ids, attention_mask, token_type_ids)
        if is_projected(self.model):
            return found.text_embeds
        hidden = found.last_hidden_state
        if self.head.pooling != NO_POOLING:
            hidden = pooled(hidden, attention_mask, self.head.pooling)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class ScoresOf(torch.nn.Module):
    """The score of a CrossEncoder, `[batch, 1]`: its logit behind an activation of torch.nn."""

    def __init__(self, model: Any, activation: str) -> None:
        super().__init__()
        self.model = model
        self.activation = getattr(torch.nn, activation)()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The score."""
        if classifies_at_eos(self.model):
            return (self.activation(_eos_logits(self.model, input_ids, attention_mask)),)
        logits = _call(self.model, input_ids, attention_mask, token_type_ids).logits
        return (self.activation(logits),)


class UnitLength(torch.nn.Module):
    """The Normalize module of sentence-transformers."""

    def forward(self, embedding: Tensor) -> Tensor:
        """`[…, hidden]`, each vector divided by its length."""
        return torch.nn.functional.normalize(embedding, p=2, dim=-1)


class DenseLayer(torch.nn.Module):
    """The Dense module of sentence-transformers, with its weights.

    Raises:
        BadCheckpoint: the weights are missing or of another shape.
    """

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        sizes = dense.in_features, dense.out_features
        self.linear = torch.nn.Linear(*sizes, bias=dense.bias)
        self.activation = getattr(torch.nn, dense.activation)()
        self.residual = _residual(dense)
        try:
            self.load_state_dict(_weights(dense), strict=True)
        except (RuntimeError, OSError, ValueError) as error:
            raise BadCheckpoint(
                f"the weights of a Dense module cannot be loaded ({first_line(error)})",
                where=str(dense.folder),
                fix="Save the model again with sentence-transformers",
            ) from error

    def forward(self, embedding: Tensor) -> Tensor:
        """`[batch, in_features]` → `[batch, out_features]`."""
        found: Tensor = self.activation(self.linear(embedding))
        return found if self.residual is None else found + self.residual(embedding)


def _layer(layer: Dense | Normalize) -> torch.nn.Module:
    return DenseLayer(layer) if isinstance(layer, Dense) else UnitLength()


def _residual(dense: Dense) -> torch.nn.Module | None:
    if not dense.residual:
        return None
    if dense.in_features == dense.out_features:
        return torch.nn.Identity()
    return torch.nn.Linear(dense.in_features, dense.out_features, bias=False)


def _weights(dense: Dense) -> dict[str, Tensor]:
    path = dense.folder / "model.safetensors"
    if path.is_file():
        return load_file(path)
    # Permission for the pickle was checked when the checkpoint was located.
    pickled = dense.folder / "pytorch_model.bin"
    found: dict[str, Tensor] = torch.load(pickled, map_location="cpu", weights_only=True)
    return found


def is_projected(model: Any) -> bool:
    """Whether the model itself gives one vector per text: the text tower of a CLIP-like model."""
    return type(model).__name__.endswith("TextModelWithProjection")


class ImageEmbeddingOf(torch.nn.Module):
    """One vector per image `[batch, hidden]`: the projection, or else the model's own pooling."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The embedding, as the model pools it."""
        found = self.model(pixel_values=pixel_values, return_dict=True)
        for field in ("image_embeds", "pooler_output"):
            embedding = getattr(found, field, None)
            if embedding is not None:
                return embedding.flatten(1)
        raise ValueError("the model gives no pooled output, so there is no one vector per image")


def pooled(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Pool `hidden` `[batch, sequence, hidden]` over the tokens whose mask is 1.

    The definitions are those of sentence-transformers' Pooling module: divisions are guarded
    by 1e-9, `max` ignores masked tokens, `cls` takes the first unmasked token and `lasttoken`
    the last one, wherever the padding is; `weightedmean` weighs by the place in the text.
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "cls":
        return _token_at(hidden, mask.argmax(dim=1))
    if mode == "lasttoken":
        positions = torch.arange(mask.shape[1], device=mask.device)
        return _token_at(hidden, (mask * positions).argmax(dim=1))
    if mode == "max":
        return hidden.masked_fill(weights == 0, torch.finfo(hidden.dtype).min).amax(dim=1)
    if mode == "weightedmean":
        weights = weights * _places(mask).unsqueeze(-1).to(hidden.dtype)
    total = (hidden * weights).sum(dim=1)
    count = weights.sum(dim=1).clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def _eos_logits(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    extra = {}
    if hasattr(model, "_shift_right"):  # T5's base model does not do it itself
        extra["decoder_input_ids"] = model._shift_right(input_ids)
    hidden = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **extra
    ).last_hidden_state
    is_end = (input_ids == model.config.eos_token_id).long()
    places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    last = (is_end * places).argmax(dim=1)
    logits: Tensor = model.classification_head(_token_at(hidden, last))
    return logits


def _token_at(hidden: Tensor, index: Tensor) -> Tensor:
    index = index.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, index).squeeze(1)


def _places(mask: Tensor) -> Tensor:
    """1, 2, 3, … from the first unmasked token of each row on, `[batch, sequence]`."""
    ranks = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return ranks - mask.argmax(dim=1, keepdim=True)


def _call(model: Any, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None) -> Any:
    extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
    return model(input_ids=input_ids, attention_mask=mask, return_dict=True, **extra)
