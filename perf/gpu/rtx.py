"""Plans of TensorRT and TensorRT-RTX: whether they load and run here, in a process of their own.

TensorRT-RTX names no Hopper GPU among those that a plan can be built for ahead of time. So two
forms are tried: `portable`, the default plan, which can be built on another machine, and `current`,
a plan for the GPU that is present. A plan that ends the process must not end the campaign.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
from models import Model
from results import Skip, Stage, found_by

FORMS = {"rtx": ("portable", "current"), "tensorrt": ("here",)}
BACKENDS = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
STAGE = "rtx"
# Half precision computes in other orders: several times what PyTorch's own half loses against its
# fp32. A wrong kernel is off by the size of the values.
_TIMES = 4.0
_LEAST = 1e-3  # of the values: where PyTorch's own loss is next to nothing
_SECONDS = 120  # for building, loading and running one tiny model
_FIRST = "bert"
_MARK = "@@ "


def load_and_run(stage: Stage, work: Path, families: tuple[str, ...]) -> None:
    """Every form on one tiny BERT, then the form that works on every family."""
    for name, forms in FORMS.items():
        working = []
        for form in forms:
            apart = Apart(name, form, work)
            item = f"{name}:{form}:{_FIRST}"
            stage.item(item, lambda a=apart: a.judged(_FIRST))
            apart.close()
            if _passed(stage, item):
                working.append(form)
        if not working:
            continue
        apart = Apart(name, working[0], work)
        for family in families:
            item = f"{name}:{working[0]}:{family}"
            stage.item(item, lambda a=apart, y=family: a.judged(y))
        apart.close()


def working_form(results: Path, name: str) -> str:
    """The form of plans that ran and was right; Skip where none was."""
    found = found_by(results, STAGE)
    for form in FORMS[name]:
        if found.get(f"{name}:{form}:bert", {}).get("right"):
            return form
    raise Skip(f"no plan of {BACKENDS[name]} has run here: see the stage {STAGE}")


def _passed(stage: Stage, item: str) -> bool:
    return bool(stage.items[item].get("found", {}).get("right"))


class Apart:
    """A process that judges one family after another; where it ends, the next one has a new one."""

    def __init__(self, name: str, form: str, work: Path) -> None:
        self._command = (
            *(sys.executable, __file__, "--name", name, "--form", form),
            *("--work", str(work)),
        )
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (close() closes it)

    def judged(self, family: str) -> Mapping[str, Any]:
        """What `_one` finds. Raises Skip where it cannot run here, and where it ends, why."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        process = self._process
        timer = threading.Timer(_SECONDS, process.kill)
        timer.start()
        try:
            answer = _answer(process, family)
        finally:
            timer.cancel()
        if answer is None:
            self._end()
            raise RuntimeError(f"the process ended with {process.wait()}: {self._last_error()}")
        if "error" in answer:
            raise RuntimeError(answer["error"])
        if "skip" in answer:
            raise Skip(f"{answer['skip']} (built: {answer['bytes']} bytes)")
        return answer

    def close(self) -> None:
        """End the process."""
        self._end()
        self._errors.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(BrokenPipeError), process:
                pass  # closes its input, at whose end it ends, and waits for it

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "it printed nothing"


def _answer(process: subprocess.Popen[str], family: str) -> dict[str, Any] | None:
    """The line that begins with the mark; libraries print other lines. None at the end."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{family}\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    for line in process.stdout:
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line[len(_MARK) :])
            return found
    return None


def flavor_in(name: str, form: str) -> Any:
    """tfc's own flavor; in the form `current` it builds for the GPU that is present."""
    from tfc.runtime.backends.tensorrt_flavors import FLAVORS

    flavor = FLAVORS[BACKENDS[name]]
    if form == "current":
        return dataclasses.replace(flavor, target_hardware=_target_current)
    return flavor


def _target_current(trt: Any, config: Any, present: Any, asked: Any = ()) -> str:
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    return "the GPU that it was built on"


@dataclasses.dataclass(frozen=True)
class BuiltPlan:
    """A plan, and the flavor of TensorRT that it is of."""

    flavor: Any
    path: Path


def built(name: str, form: str, model: Model, precision: str) -> BuiltPlan:
    """A plan of tfc's graph; one that is there already is not built again."""
    from tfc.runtime.backends.base import Inputs, Profile, Range
    from tfc.runtime.backends.tensorrt import TensorRTBackend

    flavor = flavor_in(name, form)
    backend = TensorRTBackend(flavor)
    if reason := backend.availability().why_not_build:
        raise Skip(reason)
    path = model.place / f"{name}-{form}-{precision}{backend.suffix}"
    if not path.is_file():
        graph = models.graph_in(model, backend.target, precision)
        shape = models.SHAPES.get(model.name, models.SHAPES["bert-tiny"])
        profile = Profile(Range(*shape.batch), Range(*shape.sequence))
        inputs = models.signature_of(model).inputs
        tensors = {spec.name: (spec.dtype, tuple(spec.shape)) for spec in inputs}
        backend.build(graph, path, Inputs(tensors), profile)
    return BuiltPlan(flavor, path)


def load(plan: BuiltPlan, *, graphs: bool = True) -> Any:
    """The plan's runner; Skip where nothing of this flavor runs here."""
    from tfc.runtime.backends.tensorrt import TensorRTBackend
    from tfc.runtime.backends.tensorrt_runner import RunSettings, runner_from_plan

    if reason := TensorRTBackend(plan.flavor).availability().why_not_run:
        raise Skip(reason)
    return runner_from_plan(plan.flavor, plan.path, RunSettings(graphs=graphs))


def _one(name: str, form: str, family: str, work: Path) -> dict[str, Any]:
    """Build, load and run one tiny model, against PyTorch in fp32 and in fp16 on the CPU."""
    import contestants

    plan = built(name, form, models.of_family(family, work), "fp16")
    told: dict[str, Any] = {"bytes": plan.path.stat().st_size}
    try:
        runner = load(plan)
    except Skip as reason:
        return {**told, "skip": str(reason)}
    model = models.of_family(family, work)
    where = contestants.Where("cpu", "fp32", work)
    exact = contestants.torch_call(model, where, contestants.SDPA, "fp32")
    half = contestants.torch_call(model, where, contestants.SDPA, "fp16")
    shape = models.SHAPES["bert-tiny"]
    sizes = zip(shape.batch, shape.sequence, strict=True)  # smallest, best, largest
    batches = {}
    for rows, tokens in sizes:
        lengths = [max(1, tokens - 3 * row) for row in range(rows)]
        feed = models.batch_of(model, rows, lengths, seed=rows)
        expected = exact(feed)["logits"]
        found = contestants.distance(runner.run(feed)["logits"], expected)
        own = contestants.distance(half(feed)["logits"], expected)
        allowed = max(_TIMES * own["relative"], _LEAST)
        right = found["finite"] and found["relative"] <= allowed
        batches[f"{rows}×{tokens}"] = {**found, "allowed": allowed, "right": right, "torch": own}
    told["memory"] = dataclasses.asdict(runner.memory)
    runner.close()
    return {**told, "batches": batches, "right": all(b["right"] for b in batches.values())}


def main() -> None:
    """Judge the families that are named on standard input, a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--form", required=True)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    for line in sys.stdin:
        try:
            found = _one(asked.name, asked.form, line.strip(), asked.work)
        except Skip as reason:  # it cannot even be built here
            found = {"skip": str(reason), "bytes": 0}
        except Exception as error:  # the next family may fare better
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        print(f"{_MARK}{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
