"""A tiny random model as a session and as transformers' pipeline, and texts for both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfc.runtime import Session

TEXTS = [
    "I was charged twice this month, please help!",
    "Ada Lovelace met Charles Babbage in London, near Westminster Abbey.",
    "Zürich – 東京 🎉 and São Paulo; мир — γειά, नमस्ते (naïve café) 👩‍👩‍👧‍👦.",
    "x",
    "unbelievably tokenization-heavy supercalifragilistic words, e.g. don't and U.S.A.",
]


@dataclass(frozen=True)
class Both:
    """The same model twice: a loaded session, and the folder of its checkpoint."""

    session: Session
    checkpoint: Path

    def pipeline(self, task: str, **options: Any) -> Any:
        """Transformers' pipeline of the checkpoint."""
        import transformers

        return transformers.pipeline(
            task, model=str(self.checkpoint), tokenizer=str(self.checkpoint), **options
        )


def names(labels: list[str]) -> dict[int, str]:
    """What a config calls its logits."""
    return dict(enumerate(labels))
