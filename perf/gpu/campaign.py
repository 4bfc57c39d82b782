"""The whole GPU campaign, in stages that can be called one by one, each within its own time.

    python perf/gpu/campaign.py environment peak rtx tests --work /tmp/campaign --copy-to out

What a stage finds is written as JSON after every item, under `<work>/results` and in the folder
`--copy-to`. A stage that is called again goes on with what is not done. `--device cpu --small`
runs all of it on a machine without a GPU, with a tiny model: what needs the GPU says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "src")]

import contestants  # noqa: E402  (its folder is put on the path above)
import machine  # noqa: E402
import models  # noqa: E402
import rtx  # noqa: E402
import speed  # noqa: E402
from contestants import Where  # noqa: E402
from results import DONE, Skip, Stage  # noqa: E402
from summary import summary  # noqa: E402

MINUTES = 9.0  # of one call: a call is often cut at ten
FULL = speed.Asked(
    models=("bert-base", "bert-large"),
    rows=(1, 8, 32, 128, 256, 512, 1024),
    callers=(1, 2, 4, 8),
    contestants=contestants.NAMES,
    compiled_rows=(0, 32, 256),  # 0: mixed text
    texts=16384,
)
SMALL = speed.Asked(
    models=("bert-tiny",),
    rows=(1, 8),
    callers=(1, 2),
    contestants=tuple(name for name in contestants.NAMES if name != contestants.COMPILE),
    compiled_rows=(),
    texts=64,
    tokens=16,
    seconds=0.05,
)


@dataclass(frozen=True)
class Call:
    """One call of the campaign: where it runs, what it measures, of which families, which tests."""

    where: Where
    asked: speed.Asked
    families: tuple[str, ...]
    tests: tuple[str, ...]


def prepared(stage: Stage, call: Call) -> None:
    """Export every model and make its graphs, so that the later stages only load and measure."""
    where, precision = call.where, call.where.precision
    for name in call.asked.models:
        stage.item(f"{name} export", lambda n=name: _size(models.shaped(n, where.work).artifact))
        model = models.Model(name, where.work / name)
        stage.item(f"{name} raw", lambda m=model: _size(models.raw_graph(m, precision)))
        stage.item(f"{name} fused", lambda m=model: _size(_fused(m, precision)))
        for who in rtx.FORMS:
            stage.item(f"{name} {who}", lambda m=model, w=who: _planned(w, m, where))


def _fused(model: models.Model, precision: str) -> Path:
    from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return models.graph_in(model, OnnxRuntimeBackend().target, precision)


def _planned(who: str, model: models.Model, where: Where) -> dict[str, Any]:
    form = rtx.working_form(where.work / "results", who)
    return _size(rtx.built(who, form, model, where.precision).path)


def _size(path: Path) -> dict[str, Any]:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return {"path": str(path), "bytes": sum(each.stat().st_size for each in files)}


def tests(stage: Stage, call: Call) -> None:
    """`pytest -m gpu`, each test by name with its outcome; done is that they ran, not passed."""
    stage.item("pytest -m gpu", lambda: _pytest(call))


def _pytest(call: Call) -> dict[str, Any]:
    report = call.where.work / "junit.xml"
    # Other versions of packages than this repository pins give other warnings.
    options = ("-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default")
    command = (sys.executable, "-m", "pytest", "-m", "gpu", *options, f"--junitxml={report}")
    done = subprocess.run(
        (*command, *call.tests), capture_output=True, text=True, check=False, cwd=ROOT
    )
    if not report.is_file():
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stderr[-2000:]}")
    cases = [_outcome(case) for case in ElementTree.parse(report).iter("testcase")]
    if not cases:
        raise RuntimeError(f"pytest collected nothing: {done.stdout[-2000:]}")
    return {"cases": cases, "exit_code": done.returncode, "output": done.stdout[-8000:]}


def _outcome(case: ElementTree.Element) -> dict[str, Any]:
    told = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
    outcome = told.tag if told is not None else "passed"
    reason = (told.get("message") or "")[:500] if told is not None else ""
    name = f"{case.get('classname')}::{case.get('name')}"
    return {"name": name, "outcome": outcome, "reason": reason, "seconds": case.get("time")}


def job(stage: Stage, call: Call) -> None:
    """Texts in, predictions out, with the best engine that runs here: the whole batch job."""
    for name in call.asked.models:
        stage.item(name, lambda n=name: _job(n, call))


def _job(name: str, call: Call) -> dict[str, Any]:
    import tfc
    from tfc.runtime import Session

    model = models.shaped(name, call.where.work)
    half = call.where.device != "cpu"
    batch, sequence = models.SHAPES[name].batch, models.SHAPES[name].sequence
    engine = tfc.build_engine(
        model.artifact,
        precision="fp16" if half else "fp32",
        backend="onnxruntime",
        batch=batch,
        sequence=sequence,
    )
    source = ROOT / "examples" / "data" / "support_intents" / "train.jsonl"
    texts = [json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()]
    repeated = [texts[i % len(texts)] for i in range(call.asked.texts)]
    with Session.load(model.artifact, engine.name) as session:
        session.predict(repeated[:32])
        begun = time.perf_counter()
        outcomes = list(session.outcomes(repeated))
        seconds = time.perf_counter() - begun
    tokens = sum(outcome.tokens for outcome in outcomes)
    failed = sum(outcome.error is not None for outcome in outcomes)
    rate = tokens / seconds
    return {"engine": engine.name, "hardware": session.hardware, "texts": len(outcomes)} | {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": rate,
        "failed": failed,
    }


Work = Callable[[Stage, Call], None]
# In the order in which they are worth their time: what comes first is there if time runs out.
STAGES: dict[str, Work] = {
    "environment": lambda stage, call: machine.environment(stage),
    "peak": lambda stage, call: speed.peak(stage, call.where),
    "rtx": lambda stage, call: rtx.load_and_run(stage, call.where.work, call.families),
    "tests": tests,
    "models": prepared,
    "throughput": lambda stage, call: speed.full_batches(stage, call.where, call.asked),
    "mixed": lambda stage, call: speed.mixed_text(stage, call.where, call.asked),
    "concurrency": lambda stage, call: speed.concurrency(stage, call.where, call.asked),
    "graphs": lambda stage, call: speed.cuda_graphs(stage, call.where, call.asked),
    "profile": lambda stage, call: speed.profile(stage, call.where, call.asked),
    "job": job,
}


def run(names: list[str], call: Call, copies: tuple[Path, ...], minutes: float) -> int:
    """Run stages; returns how many items are not done."""
    until = time.monotonic() + minutes * 60
    left = 0
    for name in names:
        stage = Stage(name, (call.where.work / "results", *copies), until)
        try:
            STAGES[name](stage, call)
        except Skip as reason:
            print(f"{name}: {reason}", flush=True)
        stage.write(complete=True)
        left += sum(item["status"] != DONE for item in stage.items.values())
    text = summary(call.where.work / "results")
    for folder in (call.where.work / "results", *copies):
        (folder / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--work", type=Path, required=True, help="models, and results/")
    parser.add_argument("--copy-to", type=Path, action="append", default=[])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="a tiny model, few batches")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--families", default=",".join(models.FAMILIES))
    parser.add_argument("--tests", default="tests", help="what pytest collects")
    asked = parser.parse_args()
    # For the processes of the stages rtx and tests, too.
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update({"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)})
    if unknown := [name for name in asked.stages if name not in STAGES]:
        parser.error(f"there is no stage {unknown[0]}; there are {', '.join(STAGES)}")
    where = Where(asked.device, "fp32" if asked.device == "cpu" else "fp16", asked.work)
    families = tuple(filter(None, asked.families.split(",")))
    call = Call(where, SMALL if asked.small else FULL, families, tuple(asked.tests.split(",")))
    run(asked.stages or list(STAGES), call, tuple(asked.copy_to), asked.minutes)
    return 0


if __name__ == "__main__":
    if (found := machine.with_cuda_folders(dict(os.environ))) is not None:
        os.execve(sys.executable, [sys.executable, *sys.argv], found)
    sys.exit(main())
