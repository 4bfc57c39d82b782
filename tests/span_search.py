"""Question answering as transformers 4.57 has it, with nothing clever.

The pipeline is gone from transformers 5. Its documented algorithm is here as transformers' own
windows, PyTorch's logits, and two loops over every span.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


class BruteForce:
    """The pipeline's algorithm, span by span."""

    def __init__(self, folder: Any) -> None:
        import torch
        import transformers

        self.torch = torch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()

    def answers(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        max_answer_len: int = 15,
        max_seq_len: int = 128,
        doc_stride: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> list[dict[str, Any]]:
        windows = self.tokenizer(
            [question],
            [context],
            truncation="only_second",
            max_length=max_seq_len,
            stride=min(max_seq_len // 2, 128) if doc_stride is None else doc_stride,
            return_overflowing_tokens=True,
        )
        wanted = top_k * 2 + 10 if align_to_words else top_k
        found: list[dict[str, Any]] = []
        impossible = []
        for encoding in windows.encodings:
            start, end = self._probabilities(encoding)
            impossible.append(start[0] * end[0])
            spans = [
                (start[s] * end[e], s, e)
                for s in range(len(start))
                for e in range(s, min(s + max_answer_len, len(start)))
                if encoding.sequence_ids[s] == encoding.sequence_ids[e] == 1
            ]
            for score, s, e in sorted(spans, key=lambda span: -span[0])[:wanted]:
                first, last = encoding.offsets[s][0], encoding.offsets[e][1]
                if align_to_words:
                    first = encoding.word_to_chars(encoding.word_ids[s], 1)[0]
                    last = encoding.word_to_chars(encoding.word_ids[e], 1)[1]
                text = context[first:last]
                for known in found:
                    if known["answer"].lower() == text.lower():
                        known["score"] += score
                        break
                else:
                    found.append({"answer": text, "score": score, "start": first, "end": last})
        if handle_impossible_answer:
            found.append({"answer": "", "score": min(impossible), "start": 0, "end": 0})
        return sorted(found, key=lambda answer: -answer["score"])[:top_k]

    def _probabilities(self, encoding: Any) -> list[np.ndarray]:
        named = {"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}
        taken = {
            name: self.torch.tensor([ids])
            for name, ids in named.items()
            if name in self.tokenizer.model_input_names
        }
        with self.torch.no_grad():
            outputs = self.model(**taken)
        may = np.array(
            [
                text == 1 or id == self.tokenizer.cls_token_id
                for text, id in zip(encoding.sequence_ids, encoding.ids, strict=True)
            ]
        )
        found = []
        for logits in (outputs.start_logits, outputs.end_logits):
            powers = np.where(may, np.exp(logits[0].double().numpy()), 0.0)
            found.append(powers / powers.sum())
        return found


def expected_prediction(answers: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    """What a session must give, its scores within rounding."""
    answers = answers or [{"answer": "", "score": 0.0, "start": 0, "end": 0}]
    close = [{**a, "score": pytest.approx(a["score"], rel=1e-4, abs=1e-7)} for a in answers]
    return {**close[0], "answers": close} if "top_k" in options else close[0]
