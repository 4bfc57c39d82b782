"""As many sites in int8 as an accuracy budget allows, measured on real rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tfc.errors import ContractNotReached
from tfc.manifest import Task
from tfc.runtime.padding import Feed
from tfc.steps.int8.accuracy import Accuracy, Answers, accuracy_of, answers_of
from tfc.steps.int8.forms import Form
from tfc.steps.int8.rows import CalibrationRows
from tfc.steps.record import OnProgress

if TYPE_CHECKING:
    import onnx_ir as ir

    from tfc.optimizers.precision.int8.sites import Site

# What one site costs is measured on so many tokens, padding included: the errors of sites differ
# by factors of ten, and more tokens change little in their order.
_TOKENS = 1024


@dataclass(frozen=True)
class Bench:
    """What quantised graphs are tried on: the fp32 graph's answers on the same rows.

    Attributes:
        task: says what matters in an answer.
        rows: all of them.
        exact: what the fp32 graph says.
        max_drop: the budget.
        on_progress: called with what is under way.
    """

    task: Task
    rows: CalibrationRows
    exact: Answers
    max_drop: float
    on_progress: OnProgress

    def accuracy(self, graph: ir.Model, what: str) -> Accuracy:
        """A graph beside the fp32 graph."""
        from tfc.optimizers.executor import runner_of

        got = answers_of(runner_of(graph), self.rows, partial(self.on_progress, what))
        return accuracy_of(self.task, self.exact, got)


@dataclass(frozen=True)
class Chosen:
    """What a form quantises, what it leaves, each site's own error, and what all of it keeps.

    `errors` is empty where the budget held with all sites: nothing was to be left.
    """

    form: Form
    quantized: tuple[Site, ...]
    left: tuple[Site, ...]
    errors: dict[str, float]
    accuracy: Accuracy
    trials: int


def bench_of(
    model: ir.Model, task: Task, rows: CalibrationRows, max_drop: float, on_progress: OnProgress
) -> Bench:
    """Run the fp32 graph on all rows."""
    from tfc.optimizers.executor import runner_of

    exact = answers_of(runner_of(model), rows, partial(on_progress, "running fp32"))
    return Bench(task, rows, exact, max_drop, on_progress)


def errors_of(form: Form, model: ir.Model, sites: Sequence[Site], bench: Bench) -> dict[str, float]:
    """The error of the output with each site quantised alone, by the name of its node.

    It is the root mean square difference, as a share of the output's root mean square, on a part
    of the rows.
    """
    from tfc.optimizers.executor import runner_of

    rows = some_rows(bench.rows)
    quiet = _nobody
    exact = answers_of(runner_of(model), rows, quiet)
    found = {}
    for number, site in enumerate(sites):
        bench.on_progress(f"{form.name}: one site at a time", number, len(sites))
        got = answers_of(runner_of(form.graph([site])), rows, quiet)
        found[site.node] = accuracy_of(bench.task, exact, got).error
    bench.on_progress(f"{form.name}: one site at a time", len(sites), len(sites))
    return found


def chosen_sites(
    form: Form,
    model: ir.Model,
    sites: Sequence[Site],
    flops: dict[str, int],
    bench: Bench,
) -> Chosen:
    """Search the sites to quantise in a form.

    Args:
        form: how they are quantised, in fp32 otherwise.
        model: the fp32 graph.
        sites: all that may be.
        flops: the operations of each by the name of its node.
        bench: what they are tried on.

    Raises:
        ContractNotReached: the budget does not hold with any site in int8.
    """
    from tfc.optimizers.precision.int8.search import order_of, search

    everything = bench.accuracy(form.graph(sites), f"{form.name}: all sites")
    if everything.holds(bench.max_drop):
        return Chosen(form, tuple(sites), (), {}, everything, 1)
    errors = errors_of(form, model, sites, bench)
    tried = {frozenset(site.node for site in sites): everything}

    def holds(quantized: Sequence[Site]) -> bool:
        names = frozenset(site.node for site in quantized)
        if names in tried:
            return tried[names].holds(bench.max_drop)
        left = len(sites) - len(quantized)
        found = bench.accuracy(form.graph(quantized), f"{form.name}: all sites but {left}")
        tried[names] = found
        return found.holds(bench.max_drop)

    found = search(sites, order_of(sites, errors, flops), flops, holds)
    if found is None:
        raise refusal(form.name, min(tried.values(), key=lambda one: one.drop), bench.max_drop)
    accuracy = tried[frozenset(site.node for site in found.quantized)]
    return Chosen(form, found.quantized, found.left, errors, accuracy, found.trials)


def refusal(form: str, best: Accuracy, max_drop: float) -> ContractNotReached:
    """What is said where no number of sites in int8 keeps the budget."""
    what = best.metric or best.measure
    return ContractNotReached(
        f"int8 ({form}) does not keep the accuracy, however few products it is used for: {what} "
        f"drops by {best.drop:.2%} at best ({best.measure} as fp32: {best.agreement:.2%}), and "
        f"{max_drop:.2%} is allowed",
        fix="Build in half precision (--fp16, --bf16), or allow more with --max-drop",
    )


def settled(
    before: Chosen, form: Form, model: ir.Model, flops: dict[str, int], bench: Bench
) -> Chosen:
    """The same for another base graph: more sites are left out until the budget holds there too.

    The search runs in fp32 beside int8; what is built may round the rest to half.

    Raises:
        ContractNotReached: it does not hold with any site in int8.
    """
    from tfc.optimizers.precision.int8.search import order_of

    chosen = before
    accuracy = bench.accuracy(form.graph(chosen.quantized), "the graph that is built")
    chosen = dataclasses.replace(chosen, form=form, accuracy=accuracy, trials=chosen.trials + 1)
    if accuracy.holds(bench.max_drop):
        return chosen
    errors = chosen.errors or errors_of(before.form, model, before.quantized, bench)
    for site in order_of(chosen.quantized, errors, flops)[:-1]:
        quantized = tuple(other for other in chosen.quantized if other is not site)
        accuracy = bench.accuracy(form.graph(quantized), "the graph that is built")
        chosen = Chosen(form, quantized, (*chosen.left, site), errors, accuracy, chosen.trials + 1)
        if accuracy.holds(bench.max_drop):
            return chosen
    raise refusal(form.name, accuracy, bench.max_drop)


def some_rows(rows: CalibrationRows) -> CalibrationRows:
    """Batches of every length with so many tokens together; the labels are not needed."""
    feeds = rows.feeds
    mean = np.mean([_tokens(feed) for feed in feeds])
    number = int(min(len(feeds), max(1, _TOKENS // mean)))
    places = np.unique(np.linspace(0, len(feeds) - 1, number).round().astype(int))
    chosen = [feeds[place] for place in places]
    return CalibrationRows(dataclasses.replace(rows.cases, feeds=chosen), None)


def _tokens(feed: Feed) -> int:
    return max(array.size for array in feed.values())


def _nobody(done: int, total: int) -> None:
    """Report to nobody."""
