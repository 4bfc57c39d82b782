"""Orders, products, places and dates in messages about deliveries: token classification.

    python examples/delivery_entities.py

On the 99 messages that are held out, entity F1 is 82.9%, of PyTorch and of the fp16 engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from commands import DATA, plan_from, tfc
from training import Row, fit, from_base, label_config, read_rows, save
from transformers import AutoModelForTokenClassification

TRAIN, EVAL, NEW = (DATA / "delivery_entities" / f"{n}.jsonl" for n in ("train", "eval", "new"))
KINDS = ("ORDER", "PRODUCT", "PLACE", "DATE")
TAGS = ["O", *(f"{begin}-{kind}" for kind in KINDS for begin in "BI")]
IGNORED = -100  # what transformers leaves out of the loss: special tokens and padding


def tag(row: Row, start: int, end: int) -> int:
    """The tag of the token at these characters; of a special token, which has none, `IGNORED`."""
    if start == end:
        return IGNORED
    for entity in row["entities"]:
        if entity["start"] <= start < entity["end"]:
            return TAGS.index(("B-" if start == entity["start"] else "I-") + entity["label"])
    return TAGS.index("O")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune, compile, verify and run."""
    plan = plan_from(__doc__, "delivery_entities", arguments)
    model, tokenizer = from_base(AutoModelForTokenClassification, **label_config(TAGS), **plan.base)

    def loss_of(rows: list[Row]) -> torch.Tensor:
        texts = [row["text"] for row in rows]
        inputs = tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping").tolist()
        tags = [[tag(row, *span) for span in each] for row, each in zip(rows, offsets, strict=True)]
        return model(**inputs, labels=torch.tensor(tags)).loss

    fit(model, plan.some(read_rows(TRAIN)), loss_of, epochs=plan.epochs(12), lr=4e-4)
    save(model, tokenizer, plan.checkpoint)
    tfc("export", plan.checkpoint, "-o", plan.artifact, "--overwrite")
    tfc("build-engine", plan.artifact, "--fp16")
    tfc("verify", plan.artifact, "--data", EVAL, "--label-column", "entities", *plan.fewer)
    tfc("report", plan.artifact, "-o", plan.report)
    tfc("run", plan.artifact, NEW, "-o", plan.predictions, "--set", "aggregation=first")
    for row in read_rows(plan.predictions):
        print("\n" + row["text"])
        for entity in row["prediction"]["entities"]:
            print(f"  {entity['label']:8}{entity['text']}  ({entity['score']:.2f})")


if __name__ == "__main__":
    main()
