"""The plain loop: texts in, labels out, a window of them in memory at a time.

python examples/loop.py my-artifact < texts.txt
"""

from __future__ import annotations

import sys

from tfc.runtime import Session


def main(artifact: str) -> None:
    """Print the prediction of each line of standard input."""
    with Session.load(artifact) as session:
        texts = (line.rstrip("\n") for line in sys.stdin)
        for prediction in session.map(texts):
            print(f"{prediction['score']:.3f} {prediction['label']}")


if __name__ == "__main__":
    main(sys.argv[1])
