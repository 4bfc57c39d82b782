"""From a fine-tuned classifier to a verified engine and a finished batch job, step by step.

`make demo` runs this. Each command is shown as one would type it, with its own output. What is up
to date already (the fine-tuned checkpoint, the export, the engines) is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tfc import Artifact, TfcError

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "support_intents"
EVAL = DATA / "eval.jsonl"
BUILD = Path("build/demo")
CHECKPOINT, ARTIFACT = BUILD / "checkpoint", BUILD / "artifact"
PREDICTIONS = BUILD / "predictions.jsonl"
STAMP = BUILD / "checkpoint.sha256"
ALL_SHAPES = ["--batch", "1,32", "--seq", "16,64,128"]
ONE_SHAPE = ["--batch", "4", "--seq", "16", "--seconds", "0.2", "--no-start"]


def main() -> None:
    """Run the steps in a folder `build/demo` below the current one."""
    parser = argparse.ArgumentParser(description="From checkpoint to verified engine.")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="train for one epoch and measure one shape, to see it work sooner",
    )
    options = parser.parse_args()
    begun = time.perf_counter()
    BUILD.mkdir(parents=True, exist_ok=True)
    finetune(["--epochs", "1"] if options.quick else [])
    tfc("export", CHECKPOINT, "-o", ARTIFACT, *overwrite())
    tfc("build-engine", ARTIFACT, "--fp16")
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        tfc("build-engine", ARTIFACT, "--fp16", "--backend", "tensorrt-rtx")
    tfc("verify", ARTIFACT, "--data", relative(EVAL))
    tfc("bench", ARTIFACT, *(ONE_SHAPE if options.quick else ALL_SHAPES))
    tfc("run", ARTIFACT, relative(EVAL), "-o", PREDICTIONS)
    summary(time.perf_counter() - begun)


def finetune(flags: list[str]) -> None:
    """Fine-tune the classifier, unless the script and its data are those of the last time."""
    sources = [HERE / "finetune_intent.py", DATA / "train.jsonl", EVAL]
    content = b"".join(path.read_bytes() for path in sources) + " ".join(flags).encode()
    digest = hashlib.sha256(content).hexdigest()
    command = ["python", relative(sources[0]), "-o", CHECKPOINT, *flags]
    if CHECKPOINT.is_dir() and STAMP.is_file() and STAMP.read_text() == digest:
        say(command, "# the script and its data did not change: the checkpoint is kept")
        return
    say(command)
    subprocess.run([sys.executable, *map(str, command[1:])], check=True)
    STAMP.write_text(digest)


def overwrite() -> list[str]:
    """The flag that replaces the artifact of an earlier demo: of another checkpoint or tfc."""
    manifest = ARTIFACT / "tfc.json"
    if not manifest.is_file():
        return []
    newer = STAMP.stat().st_mtime > manifest.stat().st_mtime
    return ["--overwrite"] if newer or not is_readable(ARTIFACT) else []


def is_readable(artifact: Path) -> bool:
    """Whether this tfc reads the artifact; an older one may have written another format."""
    try:
        Artifact.open(artifact)
    except TfcError:
        return False
    return True


def tfc(*arguments: object) -> None:
    """Show and run one command; end the demo with its exit code if it fails."""
    say(["tfc", *arguments])
    done = subprocess.run([sys.executable, "-m", "tfc", *map(str, arguments)], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def say(command: list[object], remark: str = "") -> None:
    """Print a command line as it is typed."""
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)
    if remark:
        print(remark, flush=True)


def relative(path: Path) -> str:
    """The path as one would type it here."""
    return os.path.relpath(path)


def summary(seconds: float) -> None:
    """Accuracy before and after, parity, throughput, and where everything lies."""
    rows = [json.loads(line) for line in PREDICTIONS.read_text(encoding="utf-8").splitlines()]
    right = sum(row["prediction"]["label"] == row["label"] for row in rows)
    expected = pytorch_labels([row["text"] for row in rows])
    before = sum(label == row["label"] for label, row in zip(expected, rows, strict=True))
    same = sum(
        label == row["prediction"]["label"] for label, row in zip(expected, rows, strict=True)
    )
    verified = json.loads((ARTIFACT / "reports/verify.json").read_text(encoding="utf-8"))
    print(f"\nSummary ({seconds:.0f} s)")
    print(f"  accuracy     PyTorch {before / len(rows):.1%}, engine {right / len(rows):.1%} "
          f"on {len(rows)} utterances; {same} of {len(rows)} labels are the same")  # fmt: skip
    for name, found in verified["engines"].items():
        print(f"  parity       {name}: {parity_line(found)}")
    bench = json.loads((ARTIFACT / "reports/bench.json").read_text(encoding="utf-8"))
    for cell in bench["cells"]:
        print(f"  throughput   {throughput_line(cell)}")
    print(f"  artifact     {ARTIFACT}")
    print(f"  predictions  {PREDICTIONS}")


def parity_line(found: dict[str, Any]) -> str:
    """The verdict, and the numbers behind it where there are some."""
    if not found["outputs"]:
        return f"{found['verdict']} (built ahead of time; there is no GPU here)"
    (numbers,) = found["outputs"].values()
    return (
        f"{found['verdict']}, max abs {numbers['max_abs']:.1e}, "
        f"argmax agreement {numbers['argmax_agreement']:.2%}"
    )


def throughput_line(cell: dict[str, Any]) -> str:
    """One shape: each engine's sequences per second, and its ratio to PyTorch."""
    engines = [
        f"{name} {timing['sequences_per_second']:.0f}/s ({cell['ratios'][name]:.2f}×)"
        for name, timing in cell["timings"].items()
    ]
    return f"{cell['workload']} tokens: {', '.join(engines)}"


def pytorch_labels(texts: list[str]) -> list[str]:
    """What the checkpoint itself says, through transformers and PyTorch."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = AutoModelForSequenceClassification.from_pretrained(CHECKPOINT).eval()
    labels: list[str] = []
    for start in range(0, len(texts), 16):
        batch = tokenizer(
            texts[start : start + 16], padding=True, truncation=True, return_tensors="pt"
        )
        with torch.inference_mode():
            best = model(**batch).logits.argmax(dim=-1)
        labels += [model.config.id2label[int(index)] for index in best]
    return labels


if __name__ == "__main__":
    main()
