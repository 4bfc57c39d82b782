"""A pandas frame: two new columns beside its texts.

python examples/frame.py my-artifact tickets.parquet labelled.parquet
"""

from __future__ import annotations

import sys

import pandas as pd

from tfc.runtime import Session


def with_labels(frame: pd.DataFrame, session: Session) -> pd.DataFrame:
    """The frame with the label of each text, and the label's probability."""
    found = pd.DataFrame(session.predict(frame["text"].tolist()), index=frame.index)
    return frame.assign(label=found["label"], score=found["score"])


def main(artifact: str, source: str, target: str) -> None:
    """Read a Parquet file, write another."""
    with Session.load(artifact) as session:
        labelled = with_labels(pd.read_parquet(source), session)
    labelled.to_parquet(target)
    print(labelled["label"].value_counts().to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
