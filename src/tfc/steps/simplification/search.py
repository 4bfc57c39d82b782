"""How much of a graph can go: greedy by measured effect for each operation saved.

1. Each site has its units in the order in which they go (`optimizers.simplification.fitting`),
   with the error that each step adds to the product that reads them.
2. How much of that reaches the outputs is measured: a part of each site's units alone is taken
   out, and the graph is run. The error of the outputs over that of the product is the site's
   weight.
3. The steps of all sites stand in one line, by weighted error for each operation saved, the order
   within a site kept.
4. The line is followed as far as the gate allows on the rows to choose on: its end is found by
   halving, and every stand is a graph that was built and run.
5. From there each site goes on alone, as far as the gate still holds.
6. What is found must hold on the rows to judge on, which nothing was chosen on. Where it does not,
   steps at the end of the line are taken back until it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tfc.manifest import Task
from tfc.steps.int8.accuracy import Accuracy, Answers, accuracy_of, answers_of
from tfc.steps.int8.rows import CalibrationRows
from tfc.steps.record import OnProgress
from tfc.steps.simplification.rows import Halves

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.simplification.fitting import Path

# Of a site's steps, so many are taken to measure its weight.
_PROBED = 1 / 3
# Where the rows to judge on refuse, so much of the line is taken back at a time.
_BACK = 0.08


@dataclass(frozen=True)
class Stand:
    """How many steps each site has gone, by name, and what that costs on the rows to choose on."""

    steps: dict[str, int]
    accuracy: Accuracy


@dataclass(frozen=True)
class Bench:
    """Builds graphs and runs them.

    `fitted` is off where the matrices are to stay as they were, to see what fitting is worth.
    """

    model: ir.Model
    paths: dict[str, Path]
    task: Task
    halves: Halves
    max_drop: float
    on_progress: OnProgress
    fitted: bool = True
    exact: dict[int, Answers] = field(default_factory=dict)
    trials: list[Accuracy] = field(default_factory=list)

    def graph(self, steps: dict[str, int]) -> ir.Model:
        """The graph after so many steps of each site."""
        from tfc.optimizers.simplification.removal import simplified

        kept = {
            name: self.paths[name].kept_after(count, fitted=self.fitted)
            for name, count in steps.items()
            if count
        }
        return simplified(self.model, kept)

    def on_choosing(self, steps: dict[str, int]) -> Accuracy:
        """What the steps cost on the rows to choose on."""
        return self._accuracy(self.graph(steps), self.halves.choosing)

    def on_judging(self, steps: dict[str, int]) -> Accuracy:
        """And on the others."""
        return self._accuracy(self.graph(steps), self.halves.judging)

    def _accuracy(self, model: ir.Model, rows: CalibrationRows) -> Accuracy:
        exact = self.exact.get(id(rows))
        if exact is None:
            exact = self.exact[id(rows)] = self._answers(self.model, rows, "the whole graph")
        got = self._answers(model, rows, f"trial {len(self.trials) + 1}")
        self.trials.append(accuracy_of(self.task, exact, got))
        return self.trials[-1]

    def _answers(self, model: ir.Model, rows: CalibrationRows, what: str) -> Answers:
        from tfc.optimizers.executor import runner_of

        def on_batch(done: int, total: int) -> None:
            self.on_progress(what, done, total)

        return answers_of(runner_of(model), rows, on_batch)


@dataclass(frozen=True)
class Found:
    """What was chosen: the steps of each site, and what they cost on either half."""

    steps: dict[str, int]
    choosing: Accuracy
    judging: Accuracy
    weights: dict[str, float]


def searched(bench: Bench, sequence: int) -> Found:
    """The most that the gate allows. Texts have so many tokens where operations are counted."""
    weights = _weights(bench)
    line = _line(bench.paths, weights, sequence)
    end = _farthest(bench, line)
    steps = _alone(bench, _after(line[:end], bench.paths), line[end:])
    return _judged(bench, steps, line, weights)


def _weights(bench: Bench) -> dict[str, float]:
    """Case 2: the squared error of the outputs for that of the site's product."""
    found = {}
    for name, path in bench.paths.items():
        count = max(1, round(_PROBED * len(path.groups)))
        error = sum(path.errors[:count])
        found[name] = bench.on_choosing({name: count}).rms ** 2 / error if error > 0 else 0.0
    return found


def _line(paths: dict[str, Path], weights: dict[str, float], sequence: int) -> list[str]:
    """Case 3: the sites in the order in which each goes one step."""
    steps = []
    for name, path in paths.items():
        highest = 0.0
        each = path.site.flops(sequence)
        for number, (group, error) in enumerate(zip(path.groups, path.errors, strict=True)):
            highest = max(highest, weights[name] * max(error, 0.0) / (each * len(group)))
            steps.append((highest, number, name))
    return [name for _, _, name in sorted(steps)]


def _after(line: Sequence[str], paths: dict[str, Path]) -> dict[str, int]:
    return {name: line.count(name) for name in paths}


def _farthest(bench: Bench, line: Sequence[str]) -> int:
    """Case 4: how many steps of the line hold."""
    holds, fails = 0, len(line) + 1
    while fails - holds > 1:
        middle = (holds + fails) // 2
        if _holds(bench, _after(line[:middle], bench.paths)):
            holds = middle
        else:
            fails = middle
    return holds


def _holds(bench: Bench, steps: dict[str, int]) -> bool:
    return bench.on_choosing(steps).holds(bench.max_drop)


def _alone(bench: Bench, steps: dict[str, int], rest: Sequence[str]) -> dict[str, int]:
    """Case 5: the sites in the order in which the line would have gone on."""
    for name in dict.fromkeys(rest):
        further = {**steps, name: steps[name] + 1}
        if _holds(bench, further):
            steps = further
    return steps


def _judged(
    bench: Bench, steps: dict[str, int], line: Sequence[str], weights: dict[str, float]
) -> Found:
    """Case 6."""
    size = max(1, round(_BACK * len(line)))
    while True:
        choosing, judging = bench.on_choosing(steps), bench.on_judging(steps)
        held = choosing.holds(bench.max_drop) and judging.holds(bench.max_drop)
        if held or not any(steps.values()):
            return Found(steps, choosing, judging, weights)
        steps = _taken_back(steps, line, size)


def _taken_back(steps: dict[str, int], line: Sequence[str], size: int) -> dict[str, int]:
    """Without the last steps of the line that were gone."""
    steps, passed = dict(steps), {name: line.count(name) for name in steps}
    for name in reversed(line):
        if not size:
            break
        if passed[name] <= steps[name]:
            steps[name] -= 1
            size -= 1
        passed[name] -= 1
    return steps
