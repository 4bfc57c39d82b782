"""Plans of TensorRT and TensorRT-RTX: whether they load and run here, in a process of their own.

TensorRT-RTX names no Hopper GPU among those that a plan can be built for ahead of time. So two
forms are tried: `portable`, the default plan, which can be built on another machine, and `current`,
a plan for the GPU that is present. A plan that ends the process must not end the campaign.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
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
_SECONDS = 240  # for a process that builds, loads and runs one tiny model


def load_and_run(stage: Stage, work: Path, families: tuple[str, ...]) -> None:
    """Every form on one tiny BERT, then the form that works on every family."""
    for name, forms in FORMS.items():
        for form in forms:
            stage.item(f"{name}:{form}:bert", lambda n=name, f=form: _apart(n, f, "bert", work))
        working = [form for form in forms if _passed(stage, f"{name}:{form}:bert")]
        for family in families if working else ():
            item = f"{name}:{working[0]}:{family}"
            stage.item(item, lambda n=name, f=working[0], y=family: _apart(n, f, y, work))


def working_form(results: Path, name: str) -> str:
    """The form of plans that ran and was right; Skip where none was."""
    found = found_by(results, STAGE)
    for form in FORMS[name]:
        if found.get(f"{name}:{form}:bert", {}).get("right"):
            return form
    raise Skip(f"no plan of {BACKENDS[name]} has run here: see the stage {STAGE}")


def _passed(stage: Stage, item: str) -> bool:
    return bool(stage.items[item].get("found", {}).get("right"))


def _apart(name: str, form: str, family: str, work: Path) -> Mapping[str, Any]:
    """Build, load and run in another process; what it prints last is JSON."""
    asked = ("--name", name, "--form", form, "--family", family, "--work", str(work))
    done = subprocess.run(
        (sys.executable, __file__, *asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    if done.returncode != 0:
        told = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise RuntimeError(f"the process ended with {done.returncode}: {told}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "skip" in found:
        raise Skip(f"{found['skip']} (built: {found['bytes']} bytes)")
    return found


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("--name", "--form", "--family"):
        parser.add_argument(option, required=True)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    try:
        found = _one(asked.name, asked.form, asked.family, asked.work)
    except Skip as reason:  # it cannot even be built here
        found = {"skip": str(reason), "bytes": 0}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
