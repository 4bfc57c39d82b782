"""Search in a bank's help centre: an embedding model retrieves, a cross-encoder ranks anew.

python examples/help_centre.py
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from commands import DATA, plan_from, tfc
from retrieval import nearest, pairs, reranked, summary
from training import Row, fit, from_base, packaged_base, read_rows, save, write_rows
from transformers import AutoModelForSequenceClassification

from tfc.runtime import Session

FOLDER = DATA / "help_centre"
TEXTS = {row["id"]: row["text"] for row in read_rows(FOLDER / "articles.jsonl")}
WRONG = 3  # articles beside the right one that a training query is shown with


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile what retrieves; fine-tune, compile and verify what ranks; show what it gains."""
    plan = plan_from(__doc__, "help_centre", arguments)
    train, held_out = (plan.some(read_rows(FOLDER / f"{name}.jsonl")) for name in ("train", "eval"))
    retriever, candidates = plan.folder / "retriever", plan.folder / "candidates.jsonl"
    tfc("export", packaged_base(), "-o", retriever, "--overwrite")
    tfc("build-engine", retriever, "--fp16")
    with Session.load(str(retriever)) as session:
        found, before = (
            nearest(session, [row["text"] for row in rows], TEXTS) for rows in (train, held_out)
        )
    near = dict(zip((row["text"] for row in train), found, strict=True))
    model, tokenizer = from_base(AutoModelForSequenceClassification, num_labels=1, **plan.base)
    rng = random.Random(0)

    def loss_of(rows: list[Row]) -> torch.Tensor:
        shown = []  # the right article, and a few wrong ones that are near
        for row in rows:
            wrong = [each for each in near[row["text"]] if each not in row["relevant"]]
            right = max(row["relevant"], key=row["relevant"].get)
            shown += [(row["text"], TEXTS[each]) for each in (right, *rng.sample(wrong, WRONG))]
        scores = model(**tokenizer(shown, padding=True, return_tensors="pt")).logits
        target = torch.zeros(len(rows), dtype=torch.long)
        return torch.nn.functional.cross_entropy(scores.view(len(rows), -1), target)

    fit(model, train, loss_of, epochs=plan.epochs(4), lr=1e-4, batch_size=8)
    save(model, tokenizer, plan.checkpoint)
    write_rows(candidates, pairs(held_out, before, TEXTS))
    tfc("export", plan.checkpoint, "-o", plan.artifact, "--overwrite")
    tfc("build-engine", plan.artifact, "--fp16")
    columns, limit = ("--pair-column", "text_pair"), ("--limit", "1000", *plan.rows_to_verify)
    tfc("verify", plan.artifact, "--data", candidates, *columns,
        "--label-column", "relevance", *limit)  # fmt: skip
    tfc("run", plan.artifact, candidates, "-o", plan.predictions, *columns)
    worth = [row["relevant"] for row in held_out]
    print("\n" + summary("retrieved", before, worth))
    print(summary("ranked anew", reranked(read_rows(plan.predictions)), worth))


if __name__ == "__main__":
    main()
