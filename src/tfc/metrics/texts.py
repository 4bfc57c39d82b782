"""Texts that a model writes beside those of the data: BLEU and ROUGE.

BLEU is sacrebleu's of all rows together (Post, 2018, arXiv:1804.08771), in its own tokens (13a);
ROUGE-1, -2 and -L are means of each row's F1 by rouge-score (Lin, 2004), without stemming, of its
best reference. rouge-score reads Latin letters and digits only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np

from tfc.errors import BadData, require
from tfc.metrics.base import AnyLabels, Found, Indices, LoneRows, not_a

BLEU = "BLEU"
_ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


class WrittenTally(LoneRows):
    """What BLEU counts in each row, and the row's ROUGE.

    Args:
        counts: `[rows, 2 * orders + 2]`: n-grams that are right and that there are, by order,
            then the words that were written and those of the reference.
        rouge: `[rows]` by metric.
    """

    def __init__(self, counts: Sequence[Sequence[int]], rouge: dict[str, list[float]]) -> None:
        self._counts = np.asarray(counts)
        self._rouge = {name: np.asarray(values) for name, values in rouge.items()}

    def values(self, rows: Indices) -> dict[str, float]:
        """BLEU of the rows together, and the means of ROUGE."""
        from sacrebleu.metrics import BLEU as SACREBLEU

        total = self._counts[rows].sum(axis=0).tolist()
        orders = (len(total) - 2) // 2
        # With its default, a smoothed count for an order without a match, as corpus_score does.
        bleu = SACREBLEU.compute_bleu(total[:orders], total[orders:-2], *total[-2:])
        rouge = {name: float(values[rows].mean()) for name, values in self._rouge.items()}
        return {BLEU: bleu.score / 100, **rouge}

    def report(self) -> dict[str, dict[str, float]]:
        """Texts have no classes."""
        return {}


class WrittenScorer(AnyLabels):
    """A row's label is the text that should be written, or a list of texts that would do.

    Raises:
        MissingPackage: sacrebleu or rouge-score is not installed.
    """

    pair: ClassVar[str | None] = None
    splits: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __init__(self) -> None:
        require("sacrebleu", "eval")
        require("rouge_score", "eval")

    def gold(self, value: Any) -> list[str]:
        """The references."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts:
            raise not_a(value, "a text or a list of texts")
        if not all(isinstance(text, str) for text in texts):
            raise BadData("a reference is not a text")
        return texts

    def tally(
        self, golds: Sequence[list[str]], found: Sequence[Found], queries: Sequence[Hashable] = ()
    ) -> WrittenTally:
        """What each row's text shares with its references."""
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import BLEU as SACREBLEU

        bleu = SACREBLEU(effective_order=True)  # of single rows; counts are the same without
        rouge = RougeScorer(list(_ROUGE.values()))
        counts, shares = [], []
        for gold, each in zip(golds, found, strict=True):
            text = self.answer(each)
            row = bleu.sentence_score(text, gold)
            counts.append([*row.counts, *row.totals, row.sys_len, row.ref_len])
            shares.append(rouge.score_multi(gold, text))
        return WrittenTally(
            counts,
            {name: [share[key].fmeasure for share in shares] for name, key in _ROUGE.items()},
        )

    def answer(self, found: Found) -> str:
        """The text."""
        return str(found[0]["text"])

    def change(self, gold: list[str], reference: Found, engine: Found) -> float:
        """Of the row's own chrF, which knows every script."""
        from sacrebleu.metrics import CHRF

        chrf = CHRF()
        before = chrf.sentence_score(self.answer(reference), gold).score
        return float(chrf.sentence_score(self.answer(engine), gold).score - before) / 100
