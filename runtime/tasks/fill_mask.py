"""Fill-mask: a text with mask tokens → the likeliest tokens in the place of each.

A prediction holds ``masks``: one list for each mask token of the text, in order, with the tokens
best first, each ``token_str`` (its text), ``token`` (its id), ``score`` (its probability) and
``sequence`` (the text with this token in the place of the mask).

Where the text has several masks, the others stay in ``sequence``; where it has one, special
tokens are left out of it, as transformers does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfc.errors import BadArtifact, BadInput, TfcError, UsageError
from tfc.runtime.tasks.base import Item, Prediction, Row, RowOutputs, TextModel, TextTask
from tfc.runtime.tasks.options import option
from tfc.runtime.tasks.scores import softmax

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FillMaskOptions:
    """What a call may choose."""

    top_k: int = option("how many tokens to give for each mask", 5)
    targets: tuple[str, ...] | None = option("choose among these tokens only", None)

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"top_k {self.top_k} is not possible", fix="Give 1 or more")


class FillMask(TextTask[FillMaskOptions]):
    """One row per text; the logits are `[tokens, vocabulary]`."""

    name = "fill-mask"
    options = FillMaskOptions

    def __init__(self, model: TextModel, options: FillMaskOptions) -> None:
        super().__init__(model, options)
        mask = model.encoder.preprocess.mask_id
        if mask is None:
            raise BadArtifact(
                "the tokenizer has no mask token, which fill-mask needs",
                fix="Export a checkpoint whose tokenizer has one",
            )
        self._mask = mask
        self._targets = None if options.targets is None else self._ids(options.targets)

    def rows(self, items: Sequence[Item]) -> list[Sequence[Row] | TfcError]:
        """One row per text; none where it has no mask token."""
        return [
            rows if isinstance(rows, TfcError) or self._mask in rows[0].ids else self._no_mask(item)
            for item, rows in zip(items, super().rows(items), strict=True)
        ]

    def read(self, item: Item, rows: Sequence[Row], outputs: Sequence[RowOutputs]) -> Prediction:
        """The likeliest tokens for each mask."""
        ids = np.array(rows[0].ids)
        places = np.flatnonzero(ids == self._mask).tolist()
        probabilities = softmax(outputs[0]["logits"][places])
        single = len(places) == 1
        return {
            "masks": [
                [self._filled(ids, place, token, row[token], single) for token in self._best(row)]
                for place, row in zip(places, probabilities, strict=True)
            ]
        }

    def _best(self, probabilities: npt.NDArray[np.float64]) -> list[int]:
        """The ids of the likeliest tokens, best first."""
        among = np.arange(len(probabilities)) if self._targets is None else self._targets
        values = probabilities[among]
        count = min(self._options.top_k, len(among))
        kept = np.argpartition(-values, count - 1)[:count]
        ordered: list[int] = among[kept[np.argsort(-values[kept], kind="stable")]].tolist()
        return ordered

    def _filled(
        self, ids: Ids, place: int, token: int, score: float, single: bool
    ) -> dict[str, object]:
        encoder = self._model.encoder
        tokens = ids.copy()
        tokens[place] = token
        tokens = tokens[tokens != encoder.preprocess.pad_id]
        return {
            "token_str": encoder.decode([token], skip_special_tokens=False),
            "token": token,
            "score": float(score),
            "sequence": encoder.decode(tokens.tolist(), skip_special_tokens=single),
        }

    def _ids(self, targets: Sequence[str]) -> Ids:
        """The token of each target: itself, or the first of the tokens that it is cut into."""
        found = []
        for target in targets:
            whole = self._model.encoder.token_id(target)
            pieces = self._model.encoder.tokenize([target])[0].ids if whole is None else [whole]
            if not pieces:
                raise UsageError(f"the target '{target}' has no token", fix="Give other targets")
            found.append(pieces[0])
        if not found:
            raise UsageError("there are no targets", fix="Give one or more, or leave them out")
        return np.unique(np.array(found, np.int64))

    def _no_mask(self, item: Item) -> BadInput:
        return BadInput(
            f"the text has no mask token in its first {self._model.longest} tokens",
            where=item.where,
            fix=f"Put {self._model.encoder.token(self._mask)} where a token is to be found",
        )
