"""Is a headline good or bad news for the company's investors? Text classification, three classes.

    python examples/financial_news.py

On the 130 headlines that are held out, accuracy is 73.8%, of PyTorch and of the fp16 engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from commands import DATA, plan_from, tfc
from training import Row, fit, from_base, label_config, read_rows, save
from transformers import AutoModelForSequenceClassification

TRAIN, EVAL, NEW = (DATA / "financial_news" / f"{name}.jsonl" for name in ("train", "eval", "new"))
LABELS = ["negative", "neutral", "positive"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune, compile, verify and run."""
    plan = plan_from(__doc__, "financial_news", arguments)
    model, tokenizer = from_base(
        AutoModelForSequenceClassification, **label_config(LABELS), **plan.base
    )

    def loss_of(rows: list[Row]) -> torch.Tensor:
        inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        labels = [LABELS.index(row["label"]) for row in rows]
        return model(**inputs, labels=torch.tensor(labels)).loss

    fit(model, plan.some(read_rows(TRAIN)), loss_of, epochs=plan.epochs(8))
    save(model, tokenizer, plan.checkpoint)
    tfc("export", plan.checkpoint, "-o", plan.artifact, "--overwrite")
    tfc("build-engine", plan.artifact, "--fp16")
    tfc("verify", plan.artifact, "--data", EVAL, "--label-column", "label", *plan.fewer)
    tfc("report", plan.artifact, "-o", plan.report)
    tfc("run", plan.artifact, NEW, "-o", plan.predictions)
    for row in read_rows(plan.predictions):
        found = row["prediction"]
        print(f"{found['label']:9}{found['score']:.2f}  {row['text']}")


if __name__ == "__main__":
    main()
