"""Search in a bank's help centre: an embedding model retrieves, a cross-encoder ranks anew.

python examples/help_centre.py
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from commands import DATA, plan_from, tfc
from retrieval import DEPTH, candidates, nearest, ordered, summary
from training import Row, fit, from_base, packaged_base, read_rows, save, write_rows
from transformers import AutoModelForSequenceClassification

from tfc.runtime import Session

FOLDER = DATA / "help_centre"
ARTICLES, TRAIN, EVAL = (read_rows(FOLDER / f"{n}.jsonl") for n in ("articles", "train", "eval"))
TITLES = {row["id"]: row["title"] for row in ARTICLES}  # what the cross-encoder reads
TEXTS = {row["id"]: f"{row['title']} {row['text']}" for row in ARTICLES}
WRONG = 5  # articles beside the right one that a training query is shown with
COSINE = 20  # what a cosine counts beside the score, in which differences are larger


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile what retrieves; fine-tune, compile and verify what ranks; show what it gains."""
    plan = plan_from(__doc__, "help_centre", arguments)
    queries, held_out, pairs = plan.some(TRAIN), plan.some(EVAL), plan.folder / "pairs.jsonl"
    tfc("export", packaged_base(), "-o", plan.folder / "retriever", "--overwrite")
    tfc("build-engine", plan.folder / "retriever", "--fp16")
    with Session.load(str(plan.folder / "retriever")) as session:
        near = {row["text"]: nearest(session, [row], TEXTS)[0] for row in queries}
        write_rows(pairs, candidates(held_out, nearest(session, held_out, TEXTS), TITLES))
    model, tokenizer = from_base(AutoModelForSequenceClassification, num_labels=1, **plan.base)

    def loss_of(rows: list[Row]) -> torch.Tensor:
        shown = []  # the right article first, then some of the nearest wrong ones
        for row in rows:
            wrong = [each for each in near[row["text"]] if each not in row["relevant"]][:DEPTH]
            right = max(row["relevant"], key=row["relevant"].get)
            shown += [(row["text"], each) for each in (right, *random.sample(wrong, WRONG))]
        read = [(query, TITLES[each]) for query, each in shown]
        scores = model(**tokenizer(read, padding=True, return_tensors="pt")).logits[:, 0]
        cosines = torch.tensor([near[query][each] for query, each in shown])
        odds = (scores + COSINE * cosines).view(len(rows), -1).log_softmax(dim=-1)
        return -odds[:, 0].mean()

    fit(model, queries, loss_of, epochs=plan.epochs(6), batch_size=8)
    save(model, tokenizer, plan.checkpoint)
    columns = ("--pair-column", "text_pair", "--label-column", "relevance", "--limit", "1000")
    tfc("export", plan.checkpoint, "-o", plan.artifact, "--overwrite")
    tfc("build-engine", plan.artifact, "--fp16")
    tfc("verify", plan.artifact, "--data", pairs, *columns, *plan.fewer)
    tfc("run", plan.artifact, pairs, "-o", plan.predictions, "--pair-column", "text_pair")
    rows = read_rows(plan.predictions)
    before = ordered(rows, lambda row: row["cosine"])
    after = ordered(rows, lambda row: row["prediction"]["score"] + COSINE * row["cosine"])
    print("", summary("retrieved", before, held_out), summary("anew", after, held_out), sep="\n")


if __name__ == "__main__":
    main()
