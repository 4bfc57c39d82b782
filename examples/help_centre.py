"""Search in a bank's help centre: an embedding model retrieves, a cross-encoder ranks anew.

python examples/help_centre.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from commands import DATA, plan_from, tfc
from retrieval import candidates, contrast, nearest, ordered, summary
from training import Row, fit, from_base, packaged_base, read_rows, save, write_rows
from transformers import AutoModelForSequenceClassification

PARTS = "articles", "train", "eval"
ARTICLES, TRAIN, EVAL = (read_rows(DATA / f"help_centre/{part}.jsonl") for part in PARTS)
TITLES = {row["id"]: row["title"] for row in ARTICLES}  # what the cross-encoder reads
TEXTS = {row["id"]: f"{row['title']} {row['text']}" for row in ARTICLES}
WRONG, COSINE = 3, 20  # wrong articles per right one in training; what a cosine counts for


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile what retrieves; fine-tune, compile and verify what ranks; show what it gains."""
    plan = plan_from(__doc__, "help_centre", arguments)
    queries, held_out = plan.some(TRAIN), plan.some(EVAL)
    retriever, pairs = plan.folder / "retriever", plan.folder / "pairs.jsonl"
    tfc("export", packaged_base(), "-o", retriever, "--overwrite")
    tfc("build-engine", retriever, "--fp16")
    near = nearest(retriever, queries, TEXTS)
    write_rows(pairs, candidates(held_out, nearest(retriever, held_out, TEXTS), TITLES))
    kind = AutoModelForSequenceClassification
    model, tokenizer = from_base(kind, num_labels=1, frozen=3, **plan.base)

    def loss_of(rows: list[Row]) -> torch.Tensor:
        """Of the articles shown with a query, the right one, which is first, shall win."""
        shown = [(row["text"], *each) for row in rows for each in contrast(row, near, WRONG)]
        read = [(query, TITLES[article]) for query, article, _ in shown]
        scores = model(**tokenizer(read, padding=True, return_tensors="pt")).logits[:, 0]
        scores = scores + COSINE * torch.tensor([cosine for *_, cosine in shown])
        return -scores.view(len(rows), -1).log_softmax(dim=-1)[:, 0].mean()

    fit(model, queries, loss_of, epochs=plan.epochs(3), lr=3e-4, batch_size=8)
    save(model, tokenizer, plan.checkpoint)
    columns = ("--pair-column", "text_pair", "--label-column", "relevance", "--limit", "1000")
    tfc("export", plan.checkpoint, "-o", plan.artifact, "--overwrite")
    tfc("build-engine", plan.artifact, "--fp16")
    tfc("verify", plan.artifact, "--data", pairs, *columns, *plan.fewer)
    tfc("report", plan.artifact, "-o", plan.report)
    tfc("run", plan.artifact, pairs, "-o", plan.predictions, "--pair-column", "text_pair")
    rows = read_rows(plan.predictions)
    print(summary("retrieved", ordered(rows, lambda row: row["cosine"]), held_out))
    anew = ordered(rows, lambda row: row["prediction"]["score"] + COSINE * row["cosine"])
    print(summary("ranked anew", anew, held_out))


if __name__ == "__main__":
    main()
